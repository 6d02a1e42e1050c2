"""The table of docs/choosing.md, from docs/results.md: a row per planner, a column per task.

    python -m grasp_bench.choosing_table docs/results.md docs/choosing.md

`make table` does it, too.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from grasp_bench.options_table import replaced
from grasp_planner.evaluation.results import table as markdown

BEGIN, END = "<!-- planners: begin -->", "<!-- planners: end -->"
HORIZON = 50


def table(results: str) -> str:
    """Success in the environment, and mean milliseconds per plan, at one horizon."""
    cells: dict[str, dict[str, str]] = {}
    sections = re.findall(rf"### (\S+), T = {HORIZON}\n\n((?:\|.*\n)+)", results)
    for task, rows in sections:
        for row in rows.splitlines()[2:]:
            planner, environment, _, milliseconds, *_ = (c.strip() for c in row[1:].split("|"))
            success = environment.partition("%")[0]
            cells.setdefault(planner, {})[task] = f"{success} %, {_rounded(milliseconds)} ms"
    names = [task for task, _ in sections]
    lines = [[planner, *(row[task] for task in names)] for planner, row in cells.items()]
    return markdown(["planner", *names], lines).rstrip()


def _rounded(milliseconds: str) -> str:
    return f"{float(milliseconds.replace(',', '')):,.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes the table of planners into a page.")
    parser.add_argument("results", type=Path, help="docs/results.md")
    parser.add_argument("page", type=Path, help="has the two markers")
    arguments = parser.parse_args()
    page: Path = arguments.page
    found = table(arguments.results.read_text())
    page.write_text(replaced(page.read_text(), BEGIN, END, found))


if __name__ == "__main__":
    main()
