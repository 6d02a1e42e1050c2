"""The examples of the documentation run as they stand, and its tables are the code's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from grasp_bench import keep_out, options_table

DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "planning.md").read_text()


def test_the_examples_of_the_planning_page() -> None:
    """In one go: each builds on those before it."""
    sources = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(sources) >= 8
    scope: dict[str, object] = {"__name__": "planning"}
    for source in sources:
        exec(compile(source, "docs/planning.md", "exec"), scope)


def test_the_table_of_options_is_the_codes() -> None:
    """To write it again: python -m grasp_bench.options_table docs/planning.md"""
    shown = PAGE.split(options_table.BEGIN)[1].split(options_table.END)[0].strip()
    assert shown == options_table.table()


def test_the_keep_out_tables_have_every_row() -> None:
    """To write them again: make keep-out"""
    shown = PAGE.split(keep_out.BEGIN)[1].split(keep_out.END)[0]
    lines = [line.split(" | ") for line in shown.splitlines() if re.match(r"\| [a-z]", line)]
    rows = [line[:2] for line in lines]
    expected = [[f"| {name}", method] for name in keep_out.NAMES for method in keep_out.METHODS]
    headers = [row for row in rows if row[0] == "| planner"]
    assert [row for row in rows if row[0] != "| planner"] == expected * len(headers)
    assert len(headers) == 2


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\(([^)]+)\)", text):
        file, _, heading = target.partition("#")
        if "://" in target:
            continue
        assert not file or (page.parent / file).exists(), target
        if heading and not file:
            titles = re.findall(r"^#+ (.*)$", text, re.M)
            slugs = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]
            assert heading in slugs, target
