"""`grasp bench` as a user calls it: files, keys, exit status, a page that stands alone."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from grasp_bench import ceilings, main, page, peers, plots, report, runner, scaling
from grasp_bench.cases import CASES, Case, Shape
from grasp_bench.timing import Flush
from grasp_planner import cli

KEYS = {
    "case",
    "backend",
    "median_ms",
    "bytes",
    "operations",
    "fraction_of_ceiling",
    "gate",
    "q1_ms",
    "q3_ms",
    "cold_median_ms",
    "bandwidth_gb_per_s",
    "rate_gop_per_s",
    "of_copy",
    "of_triad",
    "of_product",
    "threads",
    "device",
}
SMALL = ["--case", "noise white N=1 T=50 D=4 "]
FAST = ["--rounds", "2", "--cold-rounds", "1", "--no-compile", "--threads", "1"]


def status_of(*arguments: str) -> int:
    try:
        return cli.main(["bench", *arguments])
    except SystemExit as stop:
        return int(stop.code or 0)


@pytest.fixture(autouse=True)
def small_machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ceilings and flushes of kilobytes, so that the command ends at once; threads as before."""
    monkeypatch.setattr(ceilings, "SIZES", (2**12, 2**14))
    monkeypatch.setattr(ceilings, "SQUARE", 32)
    monkeypatch.setattr(Flush, "size", staticmethod(lambda: 2**14))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def load(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "bench.json").read_text())
    return found


def test_writes_what_it_promises(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "out"
    assert status_of("--case", "D=4 float32", *FAST, "--no-peers", "--out", str(out)) == 0
    found = load(out)
    green = [row for row in found["rows"] if row["gate"] == "green"]
    ops = {"lifted_step_", "lifted_loss", "gaussian_noise", "lifted_newton_step_"}
    assert {row["op"] for row in green} == ops
    for row in green:
        assert row.keys() >= KEYS
        assert row["median_ms"] > 0
        assert row["q1_ms"] <= row["median_ms"] <= row["q3_ms"]
        assert row["cold_median_ms"] > 0
        assert row["bytes"] > 0
        assert row["fraction_of_ceiling"] > 0
        assert row["bound"] in ("latency", "memory", "arithmetic")
    assert {"processor", "torch", "simd", "caches_bytes"} <= found["environment"].keys()
    assert found["ceilings"][0]["threads"] == 1
    assert found["interrupted"] is False
    with (out / "bench.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["case"] for line in lines] == [row["case"] for row in found["rows"]]
    assert float(lines[0]["median_ms"]) == found["rows"][0]["median_ms"]
    said = capsys.readouterr().out
    assert "Ceilings, measured in this run" in said
    assert "gaussian_noise white N=1 T=50 D=4" in said
    assert not list(out.glob("*.part"))
    assert status_of("compare", str(out), str(out / "bench.json")) == 0


def test_the_page_stands_alone(tmp_path: Path) -> None:
    assert status_of(*SMALL, *FAST, "--no-peers", "--out", str(tmp_path)) == 0
    text = (tmp_path / "bench.html").read_text()
    assert "http" not in text
    assert not re.search(r"<(script|link|iframe)", text)
    sources = re.findall(r'src="([^"]{0,30})', text)
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    if plots.available():
        assert len(sources) == 1
    assert "How it was measured" in text
    for unit in ("warm ms", "GB/s", "Gop/s", "% of ceiling", "temporary bytes"):
        assert unit in text


def test_the_page_has_the_sweeps() -> None:
    sweep = next(s for s in scaling.SWEEPS if s.name == "gaussian_noise white over N")
    curve = scaling.Curve(sweep)
    for value in (1, 10, 100):
        curve.points.append(
            scaling.Point(value, value, 4.0 * value, value, value, value, 1e6, 8, "green")
        )
    empty = scaling.Curve(scaling.SWEEPS[1]).as_json()
    found = report.Report(runner.Settings(), scaling=[curve.as_json(), empty])
    text = page.page(found)
    assert "Growth over N, T and D" in text
    assert "1.00" in text
    assert "gate red" in text


def test_names_are_escaped() -> None:
    row = runner.Row("<b>", "op", "N=1", "float32", "native", "cpu", 1, "failed: <script>")
    text = page.page(report.Report(runner.Settings(), rows=[row]))
    assert "<script>" not in text
    assert "&lt;script&gt;" in text


def test_a_red_gate_is_the_exit_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def red(self: runner.CPURunner, case: Case) -> list[runner.Row]:
        return [
            runner.Row(case.name, case.op, "", "float32", "native", "cpu", 1, "failed: it is wrong")
        ]

    monkeypatch.setattr(runner.CPURunner, "rows", red)
    assert status_of(*SMALL, *FAST, "--no-peers", "--out", str(tmp_path)) == 1
    (row,) = load(tmp_path)["rows"]
    assert row["gate"] == "failed: it is wrong"
    assert row["median_ms"] is None


def test_ctrl_c_keeps_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = runner.CPURunner.rows
    calls: list[str] = []

    def interrupted(self: runner.CPURunner, case: Case) -> list[runner.Row]:
        calls.append(case.name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return honest(self, case)

    monkeypatch.setattr(runner.CPURunner, "rows", interrupted)
    assert status_of("--case", "D=4 float32", *FAST, "--no-peers", "--out", str(tmp_path)) == 130
    found = load(tmp_path)
    assert found["interrupted"] is True
    assert {row["case"] for row in found["rows"]} == {calls[0]}
    assert "interrupted: incomplete" in (tmp_path / "bench.html").read_text()


@pytest.mark.parametrize(
    "arguments", [["--case", "no such"], ["--threads", "0"], ["--threads", "x"], ["--rounds", "0"]]
)
def test_what_cannot_run(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of(*arguments, "--out", str(tmp_path / "out")) == 2
    assert capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_out_that_is_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").write_text("")
    assert status_of("--out", str(tmp_path / "out")) == 2
    assert "--out" in capsys.readouterr().err


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("--list") == 0
    assert capsys.readouterr().out.splitlines() == [case.name for case in CASES]


def test_quick_has_a_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main, "QUICK_SECONDS", 0.0)
    assert status_of("--quick", *FAST, "--out", str(tmp_path)) == 0
    gates = {row["gate"] for row in load(tmp_path)["rows"]}
    assert gates == {"not run: the time of --quick was spent"}


def test_peers_that_are_not_installed_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    small = Case("complete plan", Shape(1, 4, 3, 2, 8, 2))
    monkeypatch.setattr(peers, "CASE", small)

    def lazy(given: dict[str, Any]) -> peers.Plan:
        return lambda: torch.zeros_like(given["actions"])

    def perfect(given: dict[str, Any]) -> peers.Plan:
        return lambda: given["actions"]

    def moved(given: dict[str, Any]) -> peers.Plan:
        raise TypeError("unexpected keyword\nmore")

    monkeypatch.setattr(
        peers,
        "PEERS",
        {
            "torch": ("torch", lazy),
            "numpy": ("numpy", moved),
            "rich": ("rich", perfect),
            "no_such_package": ("no-such-package", lazy),
        },
    )
    problem = peers.problem()
    problem["goal"] = peers.roll_out(problem["model"], problem["start"], problem["actions"])[:, -1]
    monkeypatch.setattr(peers, "problem", lambda: problem)
    absent: dict[str, str] = {}
    rows = peers.rows(runner.Settings(rounds=2, seconds=0.0), absent)
    assert absent == {"no-such-package": "not installed"}
    assert [row.gate.split(":")[0] for row in rows] == ["failed", "not run", "green"]
    assert [row.median_ms is None for row in rows] == [True, True, False]
    assert rows[2].note is not None
