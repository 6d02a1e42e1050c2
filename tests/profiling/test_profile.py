"""`grasp profile` on a CPU: the phases add up, the counters count, the page says what it must."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from grasp_planner import GraspConfig, GraspPlanner, whole_plan
from grasp_planner.cli import main
from grasp_planner.profiling.counting import Counts
from grasp_planner.profiling.page import page, tables
from grasp_planner.profiling.phases import LOOP, PHASES, REST, Stopwatch, around
from grasp_planner.profiling.run import Profile, profile
from grasp_planner.search import Search
from grasp_planner.tasks.mlp import ResidualMLP
from rich.console import Console

from grasp_kernels import native


def config(**changes: Any) -> GraspConfig:
    settings = {"horizon": 5, "iterations": 6, "candidates": 2, "sync_every": 3, "sync_steps": 2}
    return GraspConfig(**{**settings, "final_sync_steps": 2, "action_features": 2, **changes})


def model() -> ResidualMLP:
    torch.manual_seed(0)
    return ResidualMLP(4, 2, hidden=8, layers=1)


def problems() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)).unbind(0)


def general(state: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
    return state + 0.1 * action.tanh().repeat(1, 2)


def profiled(world_model: Any, tmp_path: Path, **changes: Any) -> Profile:
    start, goal = problems()
    return profile(
        world_model,
        config(**changes),
        start,
        goal,
        name="a model",
        trace=tmp_path / "trace.json",
        repeats=2,
    )


def test_phases_are_exclusive_and_add_up(tmp_path: Path) -> None:
    found = profiled(general, tmp_path)
    names = {phase.name for phase in found.phases}
    assert names == {
        "initialisation",
        "model forward",
        "model VJP",
        "fused step",
        "action step",
        "sync",
        REST,
    }
    assert sum(phase.share for phase in found.phases) == pytest.approx(1.0)
    calls = {phase.name: phase.calls for phase in found.phases}
    assert calls["model forward"] == calls["fused step"] == calls["action step"] == 6
    assert calls["sync"] == 3  # the first judgement, one sync, the last
    assert all(phase.seconds >= 0 for phase in found.phases)


def test_what_a_cost_adds_is_a_phase(tmp_path: Path) -> None:
    """Where the config adds to the goal's cost, and nowhere else."""
    found = profiled(general, tmp_path, running_goal_weight=0.1)
    calls = {phase.name: phase.calls for phase in found.phases}
    assert calls["extra cost term"] == 6  # once an iteration
    assert calls["fused step"] == 6
    assert "extra cost term" not in {phase.name for phase in profiled(general, tmp_path).phases}


def test_one_more_iteration_asks_for_the_models_operators(tmp_path: Path) -> None:
    found = profiled(general, tmp_path)
    by_name = found.iteration.by_name
    assert by_name["aten::tanh"] == 1.0
    assert found.iteration.operators > 10
    assert found.iteration.allocations > 3
    # Forward and back through the rollout: T model calls, each with one tanh.
    assert found.sync_step.by_name["aten::tanh"] == 5.0
    assert found.iteration.launches is None


@pytest.mark.native
@pytest.mark.skipif(not native.status().available, reason=str(native.status().reason))
def test_whole_plan_kernels_ask_for_nothing_more(tmp_path: Path) -> None:
    found = profiled(model(), tmp_path)
    assert found.path == whole_plan.WHOLE_PLAN
    assert found.iteration.operators == found.sync_step.operators == 0
    assert found.iteration.allocations == found.sync_step.allocations == 0
    calls = {phase.name: phase.calls for phase in found.phases}
    assert calls["lifted iterations"] == 2
    assert calls["sync"] == 3


def test_reads_in_the_loop_are_named(tmp_path: Path) -> None:
    assert profiled(general, tmp_path).host_reads == {}

    def reading(state: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        return general(state, action) * (1.0 if float(state.detach().sum()) > -1e9 else 0.0)

    found = profiled(reading, tmp_path)
    assert "__float__" in found.host_reads
    assert "aten::_local_scalar_dense" in found.host_reads


def test_peak_memory_follows_what_is_alive() -> None:
    counts = Counts()
    with counts.watching():
        one = torch.zeros(1000)
        two = one + 1
        del two
        one + 2
    assert counts.peak_bytes == 8000
    assert counts.live_bytes == 4000
    assert counts.allocations == 0  # not in a loop
    with counts.watching(), counts.loop("loop"):
        one * 3
    assert counts.allocations == 1
    assert counts.operators == {"aten::mul": 1}


def test_instruments_are_taken_off_again_also_after_an_error() -> None:
    watched = PHASES + LOOP
    before = [getattr(owner, name) for owner, name, _ in watched]

    def broken(state: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("out of order")

    stopwatch = Stopwatch()
    run = Search.run
    with around(watched, stopwatch.phase):
        assert Search.run is not run
        with pytest.raises(RuntimeError, match="out of order"):
            GraspPlanner(broken, config()).plan(*problems())
    assert [getattr(owner, name) for owner, name, _ in watched] == before
    assert stopwatch.running is None


def test_a_profile_changes_no_plan() -> None:
    plain = GraspPlanner(general, config()).plan(*problems())
    counts = Counts()
    with around(PHASES, Stopwatch().phase), around(LOOP, counts.loop), counts.watching():
        seen = GraspPlanner(general, config()).plan(*problems())
    assert torch.equal(plain.actions, seen.actions)
    assert torch.equal(plain.loss_history, seen.loss_history)


def test_the_page_stands_alone_and_names_what_does_not_apply(tmp_path: Path) -> None:
    found = profiled(general, tmp_path)
    text = page(found)
    assert "http" not in text
    assert "does not apply: the plan ran on a CPU" in text
    assert "model VJP" in text
    assert found.path.split(":")[0] in text
    console = Console(record=True, width=100)
    for table in tables(found):
        console.print(table)
    shown = console.export_text()
    assert "host synchronisations in the loop" in shown
    assert "power, energy, utilisation" in shown


def test_the_trace_names_the_phases(tmp_path: Path) -> None:
    profiled(general, tmp_path)
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    names = {event.get("name") for event in events}
    assert {"grasp: model forward", "grasp: fused step", "grasp: sync"} <= names


def test_rates_stand_beside_ceilings_and_threads_stay_as_they_were(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = profiled(general, tmp_path)
        assert torch.get_num_threads() == found.threads == 2
    finally:
        torch.set_num_threads(before)
    (rate,) = found.achieved
    assert rate.phase == "fused step"
    seconds = {phase.name: phase.seconds for phase in found.phases}["fused step"]
    moved = 4 * 6 * (4 * 5 + 1 + 5 + 4)  # 6 plans of 5 steps and 4 features, at least
    assert rate.bytes_per_second > 6 * moved / seconds
    assert rate.copy_bytes_per_second > rate.bytes_per_second
    assert rate.product_operations_per_second > rate.operations_per_second


def test_bad_repeats() -> None:
    with pytest.raises(ValueError, match="repeats must be at least 1, got 0"):
        profile(general, config(), *problems(), name="", trace=Path("x"), repeats=0)


# -------------------------------------------------------------------------------- the command

OWN = """
import torch

class Model(torch.nn.Module):
    state_features, action_features = 4, 2
    def forward(self, state, action):
        return state + 0.1 * action.tanh().repeat(1, 2)

def make():
    return Model()

number = 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own_world_model.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    return tmp_path


QUICK = ["--horizon", "4", "--iterations", "3", "--problems", "2", "--repeats", "1"]


@pytest.mark.parametrize("attribute", ["Model", "make"])
def test_a_world_model_of_ones_own(attribute: str, own: Path) -> None:
    out = own / "out"
    status = main(["profile", f"own_world_model:{attribute}", *QUICK, "--out", str(out)])
    assert status == 0
    report = json.loads((out / "profile.json").read_text())
    assert report["world_model"] == f"own_world_model:{attribute}"
    assert report["path"].startswith("general path")
    assert report["host_reads"] == {}
    assert {path.name for path in out.iterdir()} == {
        "profile.json",
        "profile.html",
        "trace.json",
    }


def test_the_command_shows_what_a_weight_costs(own: Path) -> None:
    out = own / "out"
    weights = ["--running-goal-weight", "0.5", "--action-weight", "0.1"]
    assert main(["profile", "own_world_model:Model", *QUICK, *weights, "--out", str(out)]) == 0
    phases = json.loads((out / "profile.json").read_text())["phases"]
    assert "extra cost term" in {phase["name"] for phase in phases}


@pytest.mark.parametrize("bad", ["-1", "nan", "inf", "much"])
def test_a_weight_that_is_none(bad: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["profile", "wall-single", *QUICK, f"--action-change-weight={bad}"])
    assert "must be a finite number from 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "must be one of .* or module:attribute, got 'nothing'"),
        ("no_such_module:model", "cannot import no_such_module:model"),
        ("own_world_model:none", "cannot import own_world_model:none"),
        ("own_world_model:number", "is a int, not a world model"),
        ("torch:tanh", "--state-features is needed: torch:tanh"),
    ],
)
def test_what_cannot_be_profiled_is_refused_by_name(
    name: str, message: str, own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["profile", name, *QUICK]) == 2
    assert re.search(message, capsys.readouterr().err)
