"""The examples of the documentation run as they stand, and its tables are the code's."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import grasp_planner
import pytest
from grasp_bench import choosing_table, keep_out, options_table
from grasp_planner import diagnostics, distributed

import grasp_kernels

DOCS = Path(__file__).parent.parent / "docs"
CONSTANTS = {"SCHEMAS", "VERDICTS"}  # described where they are used
PAGE = (DOCS / "planning.md").read_text()


@pytest.mark.parametrize(
    "name", ["index", "planning", "choosing", "models", "kernels", "learning", "distributed"]
)
def test_the_examples_of_a_page(name: str) -> None:
    """In one go: each builds on those before it."""
    text = (DOCS / f"{name}.md").read_text()
    sources = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert sources
    scope: dict[str, object] = {"__name__": name}
    for source in sources:
        exec(compile(source, f"docs/{name}.md", "exec"), scope)


def test_the_table_of_options_is_the_codes() -> None:
    """To write it again: python -m grasp_bench.options_table docs/planning.md"""
    shown = PAGE.split(options_table.BEGIN)[1].split(options_table.END)[0].strip()
    assert shown == options_table.table()


def test_the_table_of_planners_is_that_of_the_results() -> None:
    """To write it again: python -m grasp_bench.choosing_table docs/results.md docs/choosing.md"""
    page = (DOCS / "choosing.md").read_text()
    shown = page.split(choosing_table.BEGIN)[1].split(choosing_table.END)[0].strip()
    assert shown == choosing_table.table((DOCS / "results.md").read_text())


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


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: page.name)
def test_tables_end_with_an_empty_line(page: Path) -> None:
    """What follows without one is a row of the table to the site, whatever it looks like."""
    rows = re.findall(r"^ *\|.*\n(?! *\||\n|<!--)(.+)", page.read_text(), flags=re.M)
    assert rows == []


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All pages as HTML; a warning is an error, as in `make docs`."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder]
    done = subprocess.run(command, cwd=DOCS.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_site_has_every_page_and_draws_its_equations(site: Path) -> None:
    pages = {page.relative_to(site).with_suffix("").as_posix() for page in site.rglob("*.html")}
    sources = {page.relative_to(DOCS).with_suffix("").as_posix() for page in DOCS.rglob("*.md")}
    assert pages == sources | {"404"}
    method = (site / "method.html").read_text()
    assert method.count('<math xmlns="http://www.w3.org/1998/Math/MathML" display="block">') >= 3
    assert "arithmatex" not in method


def test_two_attributes_described_at_once_are_two_names(site: Path) -> None:
    """`low, high: ...`: the second is not the type of the first."""
    pages = {page.stem: page.read_text() for page in (site / "reference").glob("*.html")}
    assert "<b><code>action_low, action_high</code></b>" in pages["planners"]
    assert not [name for name, text in pages.items() if re.search(r",(</span>)?</code></b>", text)]


def test_the_site_fetches_nothing(site: Path) -> None:
    """It is read where there is no network, too."""
    text = "".join(page.read_text() for page in site.rglob("*.html"))
    text += "".join(sheet.read_text() for sheet in site.rglob("*.css"))
    fetched = r"""(?:src=|<link[^>]+href=|url\(|@import )["']?((?:https?:)?//[^"' >)]+)"""
    assert re.findall(fetched, text) == []


def test_the_api_pages_show_every_public_name(site: Path) -> None:
    text = "".join(page.read_text() for page in (site / "reference").glob("*.html"))
    missing = []
    for package in (grasp_planner, grasp_kernels, diagnostics, distributed):
        for name in set(package.__all__) - CONSTANTS:
            value = getattr(package, name)
            names = {f"{package.__name__}.{name}"}  # or, of a function named like its module:
            names |= {f"{getattr(value, '__module__', '')}.{name}"}
            if not inspect.ismodule(value) and not any(f'id="{n}"' in text for n in names):
                missing += names
    assert missing == [], "one of them is a line `::: NAME` in a page of docs/reference"
