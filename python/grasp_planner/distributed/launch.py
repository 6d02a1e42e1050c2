"""The ranks of a run under `torchrun`, or a launcher like it."""

from __future__ import annotations

import importlib
import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from grasp_planner.distributed.roll import (
    LOOK,
    POLL,
    TOLD,
    RankLostError,
    Roll,
    apart,
    died_before,
    launcher_has_store,
    name_of,
)

__all__ = ["LaunchError", "RankLostError", "Ranks", "own_device", "ranks"]

T = TypeVar("T")
VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


_worlds: list[Ranks] = []  # those of this process that are open, the innermost last


class LaunchError(ValueError):
    """What the launcher set says no world; the message names it."""


@dataclass(frozen=True)
class Ranks:
    """This process among all that run the same command.

    Attributes:
        rank, size: its number, from 0, among how many.
        local_rank, local_size: the same, on this machine.
        device: where it computes.
        timeout: seconds after which a rank that gives no sign is lost.
        died_before: of rank 0: the names of the ranks that ended without a word before the launcher
            restarted all.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    device: torch.device
    timeout: float
    died_before: tuple[str, ...] = ()
    _roll: Roll | None = field(default=None, repr=False, compare=False)

    @property
    def first(self) -> bool:
        """Whether this rank speaks for all."""
        return self.rank == 0

    @property
    def name(self) -> str:
        """As in "rank 1 of 4 (host h, pid p)"."""
        return name_of(self.rank, self.size)

    def mine(self, items: Sequence[T]) -> list[T]:
        """This rank's share: every `size`-th item, so that long and short ones spread evenly."""
        return list(items[self.rank :: self.size])

    def sign(self) -> None:
        """Says that this rank is at work; wanted more often than every `timeout` seconds.

        Raises RankLostError if another is not.
        """
        if self._roll:
            self._roll.sign()
            self._roll.refuse(self._roll.lost(), "to be at work")

    def meet(self, what: str) -> None:
        """Returns when all ranks have called it, equally often; those on the way may take time.

        Raises:
            RankLostError: a rank died, left or gave no sign for `timeout` seconds before it
                came. Every other rank learns its name.
        """
        if self._roll:
            self._roll.meet(what)

    def lost(self) -> list[str]:
        """The names of the ranks that died, left (by an error, or at their end) or fell silent.

        Those who were told to end, by Ctrl-C or by their launcher, are not lost.
        """
        lost = self._roll.lost().values() if self._roll else []
        return [words for words in lost if not words.endswith(TOLD)]


#: The world of one process that no launcher started, on its CPU.
ALONE = Ranks(0, 1, 0, 1, torch.device("cpu"), math.inf)


@contextmanager
def ranks(device: torch.device | str = "cpu", timeout: float = 600.0) -> Iterator[Ranks]:
    """The world that a launcher started this process in; without a launcher, a world of one.

    A launcher is known by RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, and should set LOCAL_RANK
    and LOCAL_WORLD_SIZE (without them all ranks are taken to be on one machine). The process group
    is made here, gloo for CPU tensors and, where `device` is a GPU, nccl for those, and is taken
    down at the end, also after an error; one that is there already is used, and left.

    Args:
        device: where this rank computes; "cuda" is the GPU numbered LOCAL_RANK.
        timeout: seconds, of collectives and of waiting for a rank that gives no sign. > 0; 600.

    Raises:
        ValueError: `timeout` is not above 0.
        LaunchError: the launcher's variables are incomplete or no numbers.
        RankLostError: ranks that did not come within `timeout`.
    """
    if not timeout > 0:
        raise ValueError(f"timeout must be above 0 seconds, got {timeout}")
    device = own_device(device)
    theirs = dist.is_available() and dist.is_initialized()
    if theirs:
        rank, size = dist.get_rank(), dist.get_world_size()
    else:
        rank, size = _launched()
    local_rank = _number("LOCAL_RANK", rank)
    local_size = _number("LOCAL_WORLD_SIZE", size)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # collectives of objects pass through it
    if size == 1:
        yield replace(ALONE, device=device, timeout=timeout)
        return
    dead: tuple[str, ...] = ()
    try:
        if theirs:
            # There is no public way to the store of a group that somebody else has made.
            store = apart(dist.distributed_c10d._get_default_store(), rank, size, timeout)
        else:
            store, dead = _begin(device, rank, size, timeout)
    except RankLostError:
        raise
    except RuntimeError as error:  # of the store, gloo or nccl, which have no errors in common
        reason = str(error).split("\n", 1)[0]
        raise RankLostError(f"{name_of(rank, size)} could not join the others: {reason}") from error
    try:
        roll = Roll(store, rank, size, timeout)
        world = Ranks(rank, size, local_rank, local_size, device, timeout, dead, roll)
        _worlds.append(world)
        try:
            yield world
        except BaseException as error:
            roll.leave(error)
            raise
        finally:
            _worlds.remove(world)
        roll.leave(None)
    finally:
        if not theirs and dist.is_initialized():
            dist.destroy_process_group()


def lost_here() -> list[str]:
    """The names of the lost ranks of the world that is open here; none where no world is open.

    Called when a connection broke: a process that is about to end gets a moment for it.
    """
    end = time.monotonic() + LOOK
    with suppress(RankLostError):  # nobody knows any more
        while _worlds:
            found = _worlds[-1].lost()
            if found or time.monotonic() > end:
                return found
            time.sleep(POLL)
    return []


def own_device(device: torch.device | str) -> torch.device:
    """A device as a rank means it: "cuda" is the GPU numbered LOCAL_RANK, where that is set."""
    found = torch.device(device)
    if found.type == "cuda" and found.index is None and "LOCAL_RANK" in os.environ:
        return torch.device("cuda", _number("LOCAL_RANK"))
    return found


def _launched() -> tuple[int, int]:
    """Rank and size as the launcher has it."""
    if "RANK" not in os.environ:
        return 0, 1
    missing = [name for name in VARIABLES if name not in os.environ]
    if missing:
        raise LaunchError(f"a launcher must set {', '.join(VARIABLES)}; {missing[0]} is not set")
    rank, size = _number("RANK"), _number("WORLD_SIZE")
    if rank >= size:
        raise LaunchError(f"RANK must be below WORLD_SIZE = {size}, got {rank}")
    return rank, size


def _number(name: str, default: int = 0) -> int:
    """A launcher's variable."""
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise LaunchError(f"{name} must be a whole number from 0, got {text!r}")
    return int(text)


def _begin(
    device: torch.device, rank: int, size: int, timeout: float
) -> tuple[dist.Store, tuple[str, ...]]:
    """Makes the default process group; returns its store, and who died before."""
    # Imported while there is a group, as the first use of `torch.utils.checkpoint` has it, this
    # module holds the group by its default arguments: its threads then meet the interpreter's end,
    # and abort.
    importlib.import_module("torch.distributed.nn.functional")
    seconds = timedelta(seconds=timeout)
    everyones = dist.TCPStore(
        os.environ["MASTER_ADDR"],
        _number("MASTER_PORT"),
        is_master=rank == 0 and not launcher_has_store(),
        timeout=seconds,
        wait_for_workers=False,  # `apart` does, and knows who is missing
        multi_tenant=True,
    )
    dead = died_before(everyones, size) if rank == 0 else ()
    store = apart(everyones, rank, size, timeout)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=seconds)
    return store, dead
