"""What counts as slower: the arithmetic, the sides that lack something, the command."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from grasp_bench import compare
from grasp_planner import cli


def row(
    case: str, median: float | None = 1.0, spread: float = 0.1, gate: str = "green", **more: Any
) -> dict[str, Any]:
    low, high = (None, None) if median is None else (median - spread / 2, median + spread / 2)
    return {
        "case": case,
        "backend": "native",
        "device": "cpu",
        "threads": 1,
        "gate": gate,
        "median_ms": median,
        "q1_ms": low,
        "q3_ms": high,
        **more,
    }


def report(*rows: dict[str, Any], **environment: Any) -> dict[str, Any]:
    return {"rows": list(rows), "environment": environment}


def test_tolerance_is_the_spread_of_both() -> None:
    one, other = row("a", 1.0, 0.3), row("a", 1.2, 0.4)
    assert compare.tolerance(one, other) == pytest.approx(0.5)  # sqrt(0.3^2 + 0.4^2)
    few = {**one, "rounds": 5}, {**other, "rounds": 25}
    assert compare.tolerance(*few) == pytest.approx(math.hypot(0.3 * math.sqrt(3), 0.4))
    assert compare.tolerance(row("a", 1.0, 0.0), row("a", 3.0, 0.0)) == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        (1.0, 1.499, "unchanged"),
        (1.0, 1.501, "slower"),
        (1.501, 1.0, "faster"),
        (1.0, 1.0, "unchanged"),
    ],
)
def test_verdicts(before: float, after: float, verdict: str) -> None:
    found = compare.compare(report(row("a", before, 0.3)), report(row("a", after, 0.4)))
    assert [d.verdict for d in found.differences] == [verdict]
    assert found.status == (verdict == "slower")
    assert found.differences[0].ratio == pytest.approx(after / before)


def test_cold_caches_are_compared_by_themselves() -> None:
    cold = {"cold_median_ms": 2.0, "cold_q1_ms": 1.9, "cold_q3_ms": 2.1}
    slow = {"cold_median_ms": 4.0, "cold_q1_ms": 3.9, "cold_q3_ms": 4.1}
    found = compare.compare(report(row("a", **cold)), report(row("a", **slow)))
    assert [(d.caches, d.verdict) for d in found.differences] == [
        ("warm", "unchanged"),
        ("cold", "slower"),
    ]
    nothing = {"cold_median_ms": None, "cold_q1_ms": None, "cold_q3_ms": None}
    found = compare.compare(report(row("a", **cold)), report(row("a", **nothing)))
    assert [d.caches for d in found.differences] == ["warm"]


def test_what_one_side_lacks() -> None:
    skipped = row("c", None, gate="not run: --no-compile")
    before = report(row("a"), row("b"), skipped)
    after = report(row("a"), row("c"), row("d"))
    found = compare.compare(before, after)
    assert [key[0] for key in found.only_before] == ["b"]
    assert [key[0] for key in found.only_after] == ["c", "d"]
    assert found.status == 0


def test_a_gate_that_turned_red_fails() -> None:
    red = row("a", None, gate="failed: loss is off")
    found = compare.compare(report(row("a")), report(red))
    assert [(key[0], gate) for key, gate in found.broken] == [("a", "failed: loss is off")]
    assert found.status == compare.SLOWER
    assert compare.compare(report(red), report(red)).status == 0  # nothing new


def test_another_machine_is_named() -> None:
    found = compare.compare(report(processor="A", torch="1"), report(processor="B", torch="1"))
    assert found.environment == {"processor": ("A", "B")}


def test_plain_torch_tells_of_the_machine() -> None:
    ours, plain = row("a", 1.0), [{**row(c, 1.0), "backend": "eager"} for c in "abc"]
    later = [{**row(c, m), "backend": "eager"} for c, m in zip("abc", (2.0, 3.0, 9.0), strict=True)]
    found = compare.compare(report(ours, *plain), report(row("a", 5.0), *later))
    assert found.baseline_ratio == pytest.approx(3.0)
    assert compare.compare(report(ours), report(ours)).baseline_ratio is None


def test_threads_and_backends_are_apart() -> None:
    one, two = row("a", 1.0), {**row("a", 5.0), "threads": 2}
    found = compare.compare(report(one, two), report(one, two))
    assert all(d.verdict == "unchanged" for d in found.differences)
    assert len(found.differences) == 2


def test_the_false_alarm_rate_of_normal_noise() -> None:
    """The docstring's number: IQR sqrt 2 is 1.9 deviations, medians of 15 differ by 0.46."""
    iqr = 2 * 0.67449
    assert math.sqrt(2) * iqr == pytest.approx(1.9, abs=0.02)
    assert math.sqrt(math.pi / 2) * math.sqrt(2 / 15) == pytest.approx(0.46, abs=0.01)


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fast = write(tmp_path / "a.json", report(row("step"), row("gone")))
    slow = write(tmp_path / "b.json", report(row("step", 2.0)))
    assert cli.main(["bench", "compare", str(fast), str(slow)]) == 1
    said = capsys.readouterr().out
    assert "slower" in said
    assert "only in the first: gone" in said
    assert "S = IQR sqrt(max(1, 15 / turns))" in said
    assert cli.main(["bench", "compare", str(fast), str(fast)]) == 0
    assert cli.main(["bench", "compare", str(slow), str(fast)]) == 0


@pytest.mark.parametrize("text", ["not json", "[]", '{"rows": 3}', '{"rows": [{"case": "a"}]}'])
def test_what_is_no_report(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bench.json"
    path.write_text(text)
    assert cli.main(["bench", "compare", str(path), str(path)]) == 2
    assert str(path) in capsys.readouterr().err
    assert cli.main(["bench", "compare", str(tmp_path), str(tmp_path / "none.json")]) == 2
