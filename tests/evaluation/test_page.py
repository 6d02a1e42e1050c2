"""The page, and docs/results.md."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from evaluation_cases import DESCRIPTION, SETTINGS, results
from grasp_planner import tasks
from grasp_planner.evaluation import results as markdown
from grasp_planner.evaluation.page import number, page, pictures
from grasp_planner.evaluation.summary import summarise

WALL = {"wall": tasks.load("wall")}
ROWS = json.loads(json.dumps(summarise(SETTINGS, results(), DESCRIPTION)))
VOID = {"meta", "img", "br"}


class Reader(HTMLParser):
    """Cells by table row, headings, list items, pictures; fails where a tag is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.text: dict[str, list[str]] = {}
        self.images: list[dict[str, str | None]] = []
        self.links: list[str | None] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.images.append(dict(attrs))
        self.links += [value for name, value in attrs if name in ("href", "src")]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        self.text.setdefault(tag, []).append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in set(self.open):
            self.text[tag][-1] += data
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def whole() -> Reader:
    pytest.importorskip("matplotlib")
    problems = {("wall", 50): WALL["wall"].sample_problems(4, horizon=50, seed=0)}
    images = pictures(ROWS, results(), WALL, problems)
    return Reader(page(ROWS, DESCRIPTION, WALL, images))


def test_every_planner_has_its_row(whole: Reader) -> None:
    (table,) = [k for k, row in enumerate(whole.rows) if row[:2] == ["planner", "environment"]]
    header, *rows = whole.rows[table : table + 4]
    shown = [dict(zip(header, row, strict=True)) for row in rows]
    assert [row["planner"] for row in shown] == ["lifted-newton", "cem", "icem"]
    assert [row["environment"] for row in shown] == ["75%"] * 3
    assert [row["ms per plan"] for row in shown] == ["100", "400", "900"]
    assert [row["failed"] for row in shown] == ["", "", "1"]


def test_the_comparison_is_there(whole: Reader) -> None:
    assert ["wall-single, T = 50", "75% (30-95)", "cem", "75%", "at least", "100", "400", "0.25",
            "yes"] in whole.rows  # fmt: skip
    assert any("Met in 1 of 1 cells" in text for text in whole.text["p"])


def test_it_explains_itself_and_shows_failures(whole: Reader) -> None:
    words = " ".join(whole.text["li"])
    assert "open loop" in words
    assert "ValueError: <no> way" in words  # which was escaped
    assert ["processor", "an abacus"] in whole.rows
    assert any("settings of cem" in text for text in whole.text["summary"])


def test_it_needs_nothing_else(whole: Reader) -> None:
    assert len(whole.images) == 3  # the overview, the race, the plans
    for image in whole.images:
        start = "data:image/png;base64,"
        assert image["alt"]
        assert (image["src"] or "").startswith(start)
        assert base64.b64decode(image["src"][len(start) :]).startswith(b"\x89PNG")
    assert all(link and link.startswith(("#", "data:")) for link in whole.links)


def test_tables_only_without_pictures() -> None:
    plain = Reader(page(ROWS, DESCRIPTION, WALL, {}))
    assert plain.images == []
    assert ["planner", "environment"] in [row[:2] for row in plain.rows]


def test_results_are_written_from_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "eval.json").write_text(json.dumps(ROWS))
    target = tmp_path / "results.md"
    monkeypatch.setattr("sys.argv", ["results", str(tmp_path), str(target)])
    assert markdown.main() == 0
    text = target.read_text()
    assert "--tasks wall --horizons 50" in text
    assert "--planners lifted-newton,cem,icem" in text
    assert "| wall-single | 50 | 75% (30-95) | cem | 75% | at least | 100 | 400 | 0.25 |" in text
    assert "| icem | 75% (30-95) | 75% | 900 | 900 | 900 |" in text
    assert "processor: an abacus" in text
    assert "icem: 1 of 4: ValueError: <no> way" in text
    (picture,) = re.findall(r"!\[[^]]+\]\(([^)]+)\)", text)
    assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, ""), (0.0, "0"), (0.0371234, "0.0371"), (57.26, "57.3"), (1503.6, "1,504")],
)
def test_numbers_are_read_easily(value: float | None, shown: str) -> None:
    assert number(value) == shown
