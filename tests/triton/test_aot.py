"""Budgets of the compiled kernels: spills, width of accesses, instructions per element."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytest.importorskip("triton")
from grasp_kernels import aot

pytestmark = pytest.mark.aot

NVIDIA = ("sm_80", "sm_90", "sm_100", "sm_120")
MAIN = ("lifted_step_none", "lifted_step_white")
OTHERS = (
    "lifted_step_bridge",
    "lifted_step_white_weighted",
    "lifted_loss",
    "lifted_loss_backward",
    "gaussian_noise_white",
    "gaussian_noise_bridge",
    "action_step_sgd",
    "action_step_adam",
)
SMALL = [("philox_words", "int32"), ("sum_feature_tiles", "float32")]

QUICK = [
    *[(name, "float32", target) for name in MAIN for target in NVIDIA],
    ("lifted_step_white", "float32", "gfx942"),
    *[(name, "float32", "sm_90") for name in OTHERS],
    *[(name, dtype, "sm_90") for name, dtype in SMALL],
]
EVERYTHING = [
    *[(n, d, t) for t in aot.TARGETS for n in MAIN + OTHERS for d in ("float32", "bfloat16")],
    *[(name, dtype, target) for target in aot.TARGETS for name, dtype in SMALL],
]
SLOW = [case for case in EVERYTHING if case not in QUICK]

# Instructions per element, float32. An H100 is memory-bound below about 178.
INSTRUCTIONS = {"lifted_step_none": 20, "lifted_step_white": 110}


def check(name: str, dtype: str, target: str) -> None:
    report = aot.compile_variant(name, dtype, target, features=1024)
    assert report.spill_bytes == 0
    assert 0 < report.occupancy <= 1
    if target == "gfx942":
        return  # the budgets are for NVIDIA; a wave of 64 holds half the elements a thread
    assert report.narrowest_bulk_access_bits == 128, report.global_access_bits
    if dtype == "float32":
        assert report.instructions_per_element <= INSTRUCTIONS.get(name, 110)


@pytest.mark.parametrize(("name", "dtype", "target"), QUICK)
def test_budgets(name: str, dtype: str, target: str) -> None:
    check(name, dtype, target)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dtype", "target"), SLOW)
def test_budgets_of_everything(name: str, dtype: str, target: str) -> None:
    check(name, dtype, target)


def test_every_kernel_has_a_budget() -> None:
    from grasp_kernels.triton.variants import variants

    elsewhere = ("mlp_", "lifted_newton")  # test_mlp_aot.py, test_newton_aot.py
    found = {(v.name, v.dtype) for v in variants() if not v.name.startswith(elsewhere)}
    assert found == {(n, d) for n, d, _ in EVERYTHING}


def test_accesses_are_told_apart() -> None:
    """Coefficients and plan id are scalars, losses are rows, bounds are gathered: not bulk."""
    step = aot.compile_variant("lifted_step_white", "float32", "sm_90", 1024)
    # 16 elements a thread: 4 accesses each for prediction, state, goal, cotangent and new state.
    assert (step.global_access_bits, step.scalar_accesses, step.row_accesses) == ({"128": 20}, 4, 2)
    action = aot.compile_variant("action_step_adam", "float32", "sm_90", 1024)
    assert action.gather_accesses == 16  # two bounds for each of 8 elements


def test_unaligned_rows_are_seen_as_narrow() -> None:
    """The instrument itself: with rows of 67 numbers the same kernel must not show 128 bits."""
    report = aot.compile_variant("lifted_step_none", "float32", "sm_90", features=67)
    assert report.narrowest_bulk_access_bits == 32


def test_loops_are_counted_by_themselves() -> None:
    report = aot.compile_variant("gaussian_noise_bridge", "float32", "sm_90", 1024)
    assert 5 < report.loop_instructions_per_element < report.instructions_per_element


def test_json_is_all_there_is_on_stdout() -> None:
    command = [sys.executable, "-m", "grasp_kernels.aot"]
    command += ["--target", "sm_90", "--kernel", "philox", "--json", "--jobs", "2"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (report,) = json.loads(done.stdout)
    assert report["name"] == "philox_words"
    assert report["target"] == "sm_90"
    assert report["registers"] > 0
    assert report["global_access_bits"] == {"128": 4}
    assert "philox_words" in done.stderr  # the progress


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert aot.main(["--target", "sm_90", "--kernel", "philox", "--jobs", "1"]) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header.split()[:4] == ["kernel", "dtype", "target", "regs"]
    assert row.split()[:3] == ["philox_words", "int32", "sm_90"]


def test_a_bad_target_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        aot.main(["--target", "sm_91"])
    assert stopped.value.code == 2
    captured = capsys.readouterr()
    assert "'sm_91'" in captured.err
    assert "gfx942" in captured.err
    assert captured.out == ""


def test_a_filter_without_a_match_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert aot.main(["--kernel", "nothing", "--json"]) == 2
    captured = capsys.readouterr()
    assert "'nothing'" in captured.err
    assert captured.out == ""


def test_a_failed_compilation_fails_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    task = ("lifted_loss", "float32", "sm_90")
    monkeypatch.setattr(aot, "compile_all", lambda *_: ([], {task: RuntimeError("ptxas died")}))
    assert aot.main(["--json"]) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out) == []
    assert "lifted_loss float32 sm_90: ptxas died" in captured.err


def test_occupancy() -> None:
    target = aot.TARGETS["sm_90"]
    assert aot.occupancy(target, registers=32, shared_bytes=0, warps=4) == (1.0, "warps")
    # 100 registers are allocated as 104: 512 // 104 = 4 warps in each of the 4 partitions.
    assert aot.occupancy(target, registers=100, shared_bytes=0, warps=4) == (0.25, "registers")
    assert aot.occupancy(target, registers=32, shared_bytes=0, warps=1) == (0.5, "blocks")
    limit = aot.occupancy(target, registers=32, shared_bytes=100 << 10, warps=4)
    assert limit == (0.125, "shared memory")


def test_importing_the_package_does_not_import_triton() -> None:
    code = "import sys, grasp_kernels; sys.exit('triton' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
