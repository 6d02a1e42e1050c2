"""`grasp plan` under `torchrun`: the plans of one process, to the bit, written once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from grasp_planner import GraspPlanner, cli, tasks
from grasp_planner.cli.plan import task_config
from launching import LAUNCHERS, torchrun, until

# The paper's last sync is short, which is most of the time of a small run.
SMALL = ["plan", "wall-single", "--paper", "--problems", "5", "--iterations", "12",
         "--candidates", "3", "--horizon", "30", "--no-pictures", "--min-success", "0"]  # fmt: skip

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="looks for processes in /proc"
)


def planned(ranks: int, out: Path, *arguments: str) -> dict[str, Any]:
    """plan.json of a run that leaves no process behind."""
    with torchrun(ranks, *SMALL, "--out", str(out), *arguments) as run:
        status, said, error = run.end()
        assert status == 0, error
        until(lambda: not run.living(), 20)
    assert said.count("success in the environment") == 1  # rank 0 alone speaks
    assert {path.name for path in out.iterdir()} == {"plan.json"}
    report: dict[str, Any] = json.loads((out / "plan.json").read_text())
    assert report["ranks"] == ranks
    return report


def test_the_plans_are_those_of_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)
    out = tmp_path / "alone"  # where --shard says nothing
    assert cli.main([*SMALL, "--shard", "time", "--out", str(out)]) == 0
    alone = json.loads((out / "plan.json").read_text())
    assert (alone["ranks"], alone["shard"]) == (1, None)
    shared = planned(2, tmp_path / "shared")
    assert shared["shard"] == "problems"
    for name in ("actions", "states_model", "states_environment", "success_environment", "path"):
        assert shared[name] == alone[name], name


def test_over_time_the_plans_are_those_of_the_step_kernels(tmp_path: Path) -> None:
    report = planned(4, tmp_path / "out", "--shard", "time")
    task = tasks.load("wall-single")
    problems = task.sample_problems(5, horizon=30, seed=0)
    changes = {"candidates": 3, "iterations": 12, "kernels": "step"}
    config = task_config(task, horizon=30, paper=True, **changes)
    plan = GraspPlanner(task.world_model, config).plan(problems.start, problems.goal)
    assert report["actions"] == plan.actions.tolist()
    assert report["states_model"] == plan.states.tolist()
