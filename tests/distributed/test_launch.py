"""The ranks of a launched run: shares, meetings, and the names of those who are lost."""

from __future__ import annotations

import ast
import itertools
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from grasp_planner.distributed.launch import LaunchError, RankLostError, Ranks, ranks
from grasp_planner.distributed.roll import Roll
from launching import LAUNCHERS, processes

TIMEOUT = 2.0
SCRIPT = f"""
import os, re, signal, sys, time
import torch, torch.distributed as dist
from grasp_planner.cli.launched import naming_the_lost
from grasp_planner.distributed.launch import RankLostError, ranks
from grasp_planner.distributed.neighbours import Neighbours

with ranks(timeout={TIMEOUT}) as outer:
    with ranks(timeout={TIMEOUT}) as world:  # of a group that is there already
        print(world.rank, world.size, world.local_rank, world.local_size, world.mine(range(10)))
        total = torch.tensor(float(world.rank))
        dist.all_reduce(total)
        print("total", total.item())
    assert dist.is_initialized()
    begin = time.monotonic()
    if outer.first:  # takes its time, but is at work
        while time.monotonic() < begin + {1.5 * TIMEOUT}:
            outer.sign()
            time.sleep(0.1)
    outer.meet("the slow one")
    print("met", outer.name, flush=True)
    if outer.rank == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    if outer.rank == 3:
        os.kill(os.getpid(), signal.SIGSTOP)
    try:
        with naming_the_lost(outer, "a share"):
            Neighbours().everyones(outer.rank)
    except RankLostError as error:
        print("of a collective:", error)
    begin, said = time.monotonic(), ""
    silent = re.compile("rank 3 of 4 [^;]* gave no sign")  # on a busy machine others may seem so
    while not silent.search(said) and time.monotonic() < begin + {10 * TIMEOUT}:
        try:
            outer.meet("the end")
        except RankLostError as error:
            if not said:
                print("at once" if time.monotonic() < begin + {TIMEOUT} else "late", error)
            said = str(error)
        time.sleep(0.05)
    print("in the end", said)
    print("lost", outer.lost())
assert not dist.is_initialized()
print("out")
"""


@pytest.fixture
def unlaunched(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_a_dead_and_a_silent_rank_are_named_to_all_others() -> None:
    with processes(4, SCRIPT) as runs:
        assert runs[2].process.wait(60) == -signal.SIGKILL  # nobody is dead before that
        for rank in (0, 1):
            status, out, error = runs[rank].end()
            assert status == 0, error
            assert f"{rank} 4 {rank} 4 {list(range(rank, 10, 4))}" in out
            assert "total 6.0" in out
            dead, silent = (
                f"rank {k} of 4 (host {socket.gethostname()}, pid {runs[k].process.pid})"
                for k in (2, 3)
            )
            # One had waited for the dead rank, the other for the silent one.
            assert f"of a collective: {dead} is dead" in out
            assert "expected for: a share" in out
            assert f"at once {dead} is dead" in out
            # Of the first two ranks, one may have left before the other looks for the last time.
            end = out.split("\nin the end ")[1].splitlines()[0]
            assert {f"{dead} is dead", f"{silent} gave no sign for 2 s"} <= set(
                end.removesuffix("; expected for: the end").split("; ")
            )
            lost = set(ast.literal_eval(out.split("\nlost ")[1].splitlines()[0]))
            assert {f"{dead} is dead", f"{silent} gave no sign for 2 s"} <= lost
            assert out.endswith("out\n")
            assert "Traceback" not in error


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.usefixtures("unlaunched")
def test_a_rank_whose_end_its_parent_has_not_seen_is_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    store = dist.HashStore()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with child, monkeypatch.context() as patched:
        patched.setattr(os, "getpid", lambda: child.pid)
        Roll(store, 1, 2, TIMEOUT)
        patched.undo()
        roll = Roll(store, 0, 2, TIMEOUT)
        assert roll.lost() == {}
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        name = f"rank 1 of 2 (host {socket.gethostname()}, pid {child.pid})"
        assert roll.lost() == {1: f"{name} is dead"}


@pytest.mark.usefixtures("unlaunched")
def test_without_a_launcher_there_is_a_world_of_one() -> None:
    with ranks(timeout=5) as world:
        assert world == Ranks(0, 1, 0, 1, torch.device("cpu"), 5)
        assert world.first
        assert world.name.startswith("rank 0 of 1 (host ")
        assert world.mine("abc") == ["a", "b", "c"]
        world.sign()
        world.meet("nobody")
        assert world.lost() == []
        assert not dist.is_initialized()


def test_shares_are_disjoint_and_whole() -> None:
    items = list(range(11))
    shares = [Ranks(rank, 4, rank, 4, torch.device("cpu"), 1).mine(items) for rank in range(4)]
    assert sorted(itertools.chain(*shares)) == items
    assert max(map(len, shares)) - min(map(len, shares)) == 1


@pytest.mark.usefixtures("unlaunched")
@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"RANK": "0"}, "WORLD_SIZE is not set"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}, "MASTER_PORT is not set"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK must be below WORLD_SIZE = 2, got 2"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK must be a whole number from 0, got '-1'"),
        ({"RANK": "0", "WORLD_SIZE": "two"}, "WORLD_SIZE must be a whole number from 0, got 'two'"),
    ],
)
def test_a_launcher_that_says_too_little_is_told_so(
    variables: dict[str, str], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if len(variables) == 2:
        variables = {**variables, "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(LaunchError, match=named), ranks():
        pass


@pytest.mark.parametrize("timeout", [0.0, -1.0, float("nan")])
def test_a_timeout_is_above_zero(timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout must be above 0"), ranks(timeout=timeout):
        pass


@pytest.mark.usefixtures("unlaunched")
def test_ranks_that_never_come_are_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    place = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    missed = pytest.raises(
        RankLostError, match=r"rank 1 of 2 did not come to rank 0 of 2 .* within 0.5 s"
    )
    with missed, ranks(timeout=0.5):
        pass
    assert not dist.is_initialized()
