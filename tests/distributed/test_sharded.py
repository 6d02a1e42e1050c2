"""Plans shared out over 2 and 4 processes are those of one, to the bit."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from grasp_planner import CEMConfig, CEMPlanner, GraspConfig, GraspPlanner
from grasp_planner.distributed import Sharded
from grasp_planner.distributed.time_axis import SlicedPlans, Span
from grasp_planner.interruptible import CheckpointMismatchError
from launching import processes
from sharded_ranks import CASES, differences, grasp, point, problems

HERE = Path(__file__).parent


def torchrun(script: str, processes: int, timeout: float) -> list[dict[str, Any]]:
    """The JSON objects that the ranks print."""
    done = subprocess.run(
        [
            sys.executable,
            *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node"),
            str(processes),
            str(HERE / script),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.mark.parametrize("processes", [2, 4])
def test_every_sharding_is_one_process_to_the_bit(processes: int) -> None:
    found: dict[str, Any] = {}
    for part in torchrun("sharded_ranks.py", processes, timeout=240):
        found |= part
    assert list(found) == list(CASES)
    for over, by_rank in found.items():
        assert len(by_rank) == processes
        for rank, cases in enumerate(by_rank):
            told = cases.pop("another seed", None)
            if over == "problems":  # what differs is seen
                assert {"actions", "states", "cost", "loss_history"} <= set(told)
            assert cases
            assert not {name: which for name, which in cases.items() if which}, (over, rank)


KILLED = f"""
import os, signal, sys
sys.path.insert(0, {str(HERE)!r})
from grasp_planner.distributed import RankLostError, Sharded, ranks
from sharded_ranks import grasp, point, problems

with ranks(timeout=60.0) as world:
    calls = []

    def model(state, action):
        calls.append(None)
        if world.rank == 1 and len(calls) == 30:
            os.kill(os.getpid(), signal.SIGKILL)
        return point(state, action)

    try:
        Sharded(grasp(model), sys.argv[1]).plan(*problems(4))
    except RankLostError as error:
        print(error)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("over", ["problems", "time"])
def test_a_killed_rank_is_named_to_those_who_wait_for_it(over: str) -> None:
    with processes(3, KILLED, over) as runs:
        assert runs[1].process.wait(60) == -signal.SIGKILL
        killed = f"rank 1 of 3 (host {socket.gethostname()}, pid {runs[1].process.pid}) is dead"
        said = [runs[rank].end() for rank in (0, 2)]
    assert all(status == 0 for status, _, _ in said), said
    assert any(killed in out for _, out, _ in said)  # who hears of it second may hear of another
    assert all("waited for" in out for _, out, _ in said)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks /proc for its memory")
def test_a_long_horizon_takes_a_share_of_the_memory() -> None:
    """20,000 steps on 4 ranks: each has a quarter of them, of the memory, and the same bits."""
    done = subprocess.run(
        [sys.executable, str(HERE / "long_horizon.py")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    whole = json.loads(done.stdout)
    assert len(set(whole["actions"].values())) == len(set(whole["states"].values())) == 20
    parts = torchrun("long_horizon.py", 4, timeout=240)
    assert sum(part["steps"] for part in parts) == whole["steps"] == 20_000
    for name in ("actions", "states"):
        known = {k: v for part in parts for k, v in part[name].items()}
        assert len(known) >= 16  # stretches that lie within one rank
        assert known.items() <= whole[name].items()
    for part in parts:
        assert part["losses"] == whole["losses"]
        assert part["cost"] == whole["cost"]
        # Its share of the steps, and little more: buffers that do not grow with them.
        assert part["mebibytes"] < whole["mebibytes"] * (part["steps"] / 20_000 + 0.05)


@pytest.mark.parametrize("over", ["problems", "candidates", "time"])
def test_a_world_of_one_is_the_planner_itself(over: str) -> None:
    start, goal = problems(2)
    planner = grasp()
    assert not differences(Sharded(planner, over).plan(start, goal), planner.plan(start, goal))


@pytest.mark.parametrize(("horizon", "hold"), [(7, 1), (50, 1), (14, 3), (20_000, 1), (9000, 4)])
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_spans_cover_the_horizon_and_cut_no_block(horizon: int, hold: int, size: int) -> None:
    spans = [Span.of(rank, size, horizon, hold) for rank in range(size)]
    assert spans[0].first == 0
    assert spans[-1].last == horizon
    assert all(one.last == other.first for one, other in itertools.pairwise(spans))
    assert all(span.first % hold == 0 and span.steps > 0 for span in spans)
    steps = [span.steps for span in spans]
    assert max(steps) - min(steps) <= max(2 * hold, 1024 * hold if horizon >= 4096 else 0)


def test_bad_arguments_are_named() -> None:
    planner = grasp()
    with pytest.raises(TypeError, match="planner must be a Planner, got function"):
        Sharded(point)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="planner must be one that is not shared out yet"):
        Sharded(Sharded(planner, "candidates"), "problems")
    with pytest.raises(ValueError, match=r"over must be one of 'problems', .* got 'space'"):
        Sharded(planner, "space")
    cem = CEMPlanner(point, CEMConfig(horizon=5, action_features=2))
    for over in ("candidates", "time"):
        with pytest.raises(ValueError, match=f"over '{over}' needs a GraspPlanner, got CEMPlanner"):
            Sharded(cem, over)
    with pytest.raises(ValueError, match=r"over 'candidates' needs config.stop_cost None"):
        Sharded(grasp(stop_cost=0.1), "candidates")
    with pytest.raises(ValueError, match=r"config.horizon must .* each of 4 ranks, .* got 3"):
        Span.of(0, 4, 3, 1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"state_optimizer": "adam"}, "config.state_optimizer 'sgd'"),
        ({"state_gradient_scale": 0.5}, "config.state_gradient_scale 0"),
        ({"sync_optimizer": "gauss-newton"}, "config.sync_optimizer 'adam' or 'sgd'"),
        ({"running_goal_weight": 1.0}, "a config that adds nothing"),
    ],
)
def test_what_time_cannot_be_shared_out_with(changes: dict[str, Any], words: str) -> None:
    """Seen before any rank waits for another."""
    shared = Sharded(grasp(**changes), "time")
    shared.neighbours.size = 2
    with pytest.raises(ValueError, match=words):
        shared.plan(*problems(2))


def test_no_checkpoint_and_no_time_budget_over_time() -> None:
    shared = Sharded(grasp(), "time")
    shared.neighbours.size = 2
    for given in ({"checkpoint": "search.pt"}, {"time_budget_ms": 5.0}):
        with pytest.raises(ValueError, match=f"over 'time' {next(iter(given))} must be None"):
            shared.plan(*problems(2), **given)
    words = r"actions must have shape \(B, T, A\) = \(2, 9, 2\), got \(2, 8, 2\)"
    with pytest.raises(ValueError, match=words):
        shared.plan(*problems(2), actions=torch.zeros(2, 8, 2))


def test_over_time_all_ranks_wait_to_know_who_has_arrived() -> None:
    """Else a GPU's flags might reach them in different iterations, and their messages not match."""
    assert SlicedPlans.waits


def test_a_checkpoint_of_other_candidates_is_refused(tmp_path: Path) -> None:
    """As it is met where a world of another size goes on from the files of one before."""
    planner, path = grasp(), str(tmp_path / "search.pt.0")
    planner.share = range(3)
    planner.plan(*problems(2), checkpoint=path)
    planner.share = range(2)
    with pytest.raises(CheckpointMismatchError, match="of another search"):
        planner.plan(*problems(2), checkpoint=path)


def test_an_mlp_says_which_kernels_time_needs() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.Tanh(), torch.nn.Linear(16, 4))
    from grasp_kernels import MLPDynamics

    dynamics = MLPDynamics.from_sequential(network, action_features=2, residual=True)
    planner = GraspPlanner(dynamics, GraspConfig(horizon=9, iterations=2))
    if "whole" not in planner.plan(*problems(1)).path:
        pytest.skip("no kernels here")
    shared = Sharded(planner, "time")
    shared.neighbours.size = 2
    with pytest.raises(ValueError, match=r"set config.kernels to 'step'"):
        shared.plan(*problems(1))
