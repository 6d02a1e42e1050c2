"""The table of options in `docs/planning.md`, from the docstrings: no line of it was typed.

python -m grasp_bench.options_table docs/planning.md
"""

from __future__ import annotations

import argparse
import inspect
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from grasp_planner import PlannerConfig, Schedule

BEGIN, END = "<!-- options: begin -->", "<!-- options: end -->"
NUMBER = r"\d[\d.]*(?:e-?\d+)?(?:\*\*\d+)?(?: - 1)?"
OTHERS = r"`[a-z_]+`(?: and `[a-z_]+`)?"
RANGE = re.compile(
    rf"(?:^|[ (])((?:>=|>) {NUMBER}|{NUMBER} to (?:{NUMBER}|{OTHERS}))(?=;|, together)"
)


@dataclass(frozen=True)
class Option:
    """A field of a config as its docstring has it.

    `names`: the fields that share the entry; `said`: the whole of it; `meaning`: what comes before
    the range; `range`: such as ">= 1" or "0 to 1"; "" where there is none; `default`: what comes
    after it.
    """

    names: tuple[str, ...]
    said: str
    meaning: str
    range: str
    default: str


def documented(config: type) -> dict[str, Option]:
    """What the docstrings of a config class and of its bases say of each field."""
    found = {}
    for owner in config.__mro__[-2::-1]:  # the base first, so that a subclass has the last word
        text = (inspect.getdoc(owner) or "").split("Attributes:")[-1]
        for names, words in re.findall(r"^    ([a-z_, ]+): ((?:.|\n        )+)", text, re.M):
            together = tuple(names.split(", "))
            found.update(dict.fromkeys(together, _option(together, " ".join(words.split()))))
    return found


def _option(names: tuple[str, ...], said: str) -> Option:
    ranges = list(RANGE.finditer(said))
    if not ranges:  # the default stands at the end, after a list of choices or nothing
        meaning = re.sub(r'(?: "[a-z0-9-]+"| \(\))?\.$', "", said)
        return Option(names, said, meaning.rstrip("."), "", said[len(meaning) :].strip(" ."))
    last = ranges[-1]
    meaning, default = (
        said[: last.start()].rstrip(" .,"),
        said[last.end() :].partition(";")[2].strip(" ."),
    )
    return Option(names, said, meaning, last.group(1), default)


def choices(said: str) -> list[str]:
    """The words in quotation marks, in their order."""
    return list(dict.fromkeys(re.findall(r'"([a-z0-9-]+)"', said)))


def table() -> str:
    """Name, meaning, range and default of every field of `PlannerConfig`."""
    lines = ["| option | meaning | range | default |", "| --- | --- | --- | --- |"]
    options, default = documented(PlannerConfig), PlannerConfig()
    for field in fields(PlannerConfig):
        option, value = options[field.name], getattr(default, field.name)
        allowed = option.range or _kind(str(field.type), option.said)
        shown = option.default if value is None and option.default else f"`{_shown(value)}`"
        cells = (f"`{field.name}`", option.meaning, allowed, shown)
        lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    return "\n".join(lines)


def _kind(annotation: str, said: str) -> str:
    """What is allowed where a range has no meaning."""
    if annotation == "str":
        return ", ".join(f'`"{word}"`' for word in choices(said))
    if "Callable" in annotation:
        return "a function"
    return "`Constraint`s" if "Constraint" in annotation else "numbers"


def _shown(value: Any) -> str:
    if isinstance(value, Schedule):
        value = value.start
    if isinstance(value, str):
        return f'"{value}"'
    return f"{value:g}" if isinstance(value, float) else str(value)


def replaced(page: str, begin: str, end: str, text: str) -> str:
    """A page with `text` between two markers that it has."""
    before, rest = page.split(begin)
    return f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes the table of options into a page.")
    parser.add_argument("page", type=Path, help="has the two markers")
    page: Path = parser.parse_args().page
    page.write_text(replaced(page.read_text(), BEGIN, END, table()))


if __name__ == "__main__":
    main()
