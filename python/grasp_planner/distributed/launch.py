"""The ranks of a run under `torchrun`, or a launcher like it: who is there, and who no longer is.

Ranks say that they are there, and where they meet, in the store of `torch.distributed`, by which
it finds its processes. So every rank that waits learns the names of those it waits for in vain,
also of rank 0, and without any other traffic.
"""

from __future__ import annotations

import itertools
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from queue import Empty, SimpleQueue
from typing import TypeVar, cast

import torch
import torch.distributed as dist

T = TypeVar("T")
VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
POLL = 0.02  # seconds between two looks for those who are waited for
LOOK = 0.5  # seconds between two looks for those who are lost
FAREWELL = 5.0  # seconds that rank 0, where it has the store, waits for the others to leave
TOLD = "was told to end"


class LaunchError(ValueError):
    """What the launcher set says no world; the message names it."""


class RankLostError(RuntimeError):
    """Ranks that died, left or fell silent; the message names them and what was expected."""


@dataclass(frozen=True)
class Ranks:
    """This process among all that run the same command.

    Attributes:
        rank, size: its number, from 0, among how many.
        local_rank, local_size: the same, on this machine.
        device: where it computes.
        timeout: seconds after which a rank that gives no sign is lost.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    device: torch.device
    timeout: float
    _roll: _Roll | None = field(default=None, repr=False, compare=False)

    @property
    def first(self) -> bool:
        """Whether this rank speaks for all."""
        return self.rank == 0

    @property
    def name(self) -> str:
        """As in "rank 1 of 4 (host h, pid p)"."""
        return _name(self.rank, self.size)

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
        """The names of the ranks that died, left by an error or fell silent, and how.

        Those who were told to end, by Ctrl-C or by their launcher, are not lost.
        """
        lost = self._roll.lost().values() if self._roll else []
        return [words for words in lost if not words.endswith(TOLD)]


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
        yield Ranks(0, 1, 0, 1, device, timeout)
        return
    try:
        if theirs:
            # There is no public way to the store of a group that somebody else has made.
            store = _apart(dist.distributed_c10d._get_default_store(), rank, size, timeout)
        else:
            store = _begin(device, rank, size, timeout)
    except RankLostError:
        raise
    except RuntimeError as error:  # of the store, gloo or nccl, which have no errors in common
        reason = str(error).split("\n", 1)[0]
        raise RankLostError(f"{_name(rank, size)} could not join the others: {reason}") from error
    try:
        roll = _Roll(store, rank, size, timeout)
        try:
            yield Ranks(rank, size, local_rank, local_size, device, timeout, roll)
        except BaseException as error:
            roll.leave(error)
            raise
        roll.leave(None)
    finally:
        if not theirs and dist.is_initialized():
            dist.destroy_process_group()


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


def _begin(device: torch.device, rank: int, size: int, timeout: float) -> dist.Store:
    """Makes the default process group; returns its store."""
    seconds = timedelta(seconds=timeout)
    everyones = dist.TCPStore(
        os.environ["MASTER_ADDR"],
        _number("MASTER_PORT"),
        is_master=rank == 0 and not _launchers(),
        timeout=seconds,
        wait_for_workers=False,  # `_apart` does, and knows who is missing
        multi_tenant=True,
    )
    store = _apart(everyones, rank, size, timeout)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=seconds)
    return store


def _apart(store: dist.Store, rank: int, size: int, timeout: float) -> dist.Store:
    """A part of a store for these ranks alone.

    torchrun's store outlives a restart, and would hand out the addresses of the dead. So rank 0
    proposes a new name until all others have answered it, and confirms it by their answers; who
    reads the name of a world before this one finds answers there that are not its own.

    Raises RankLostError where ranks do not come.
    """
    own, end = uuid.uuid4().hex, time.monotonic() + timeout
    others = range(1, size)
    if rank == 0:
        store.set("grasp_planner/proposed", own)
    while time.monotonic() < end:
        if rank == 0:
            answers = [f"{own}/{other}" for other in others]
            if store.check(answers):
                store.set(f"{own}/confirmed", " ".join(store.get(key).decode() for key in answers))
                return dist.PrefixStore(own, store)
        elif store.check(["grasp_planner/proposed"]):
            name = store.get("grasp_planner/proposed").decode()
            store.set(f"{name}/{rank}", own)
            done = store.check([f"{name}/confirmed"])
            if done and store.get(f"{name}/confirmed").decode().split()[rank - 1] == own:
                return dist.PrefixStore(name, store)
        time.sleep(POLL)
    missing = [k for k in others if rank == 0 and not store.check([f"{own}/{k}"])] or [0]
    names = ", ".join(f"rank {k} of {size}" for k in missing)
    raise RankLostError(f"{names} did not come to {_name(rank, size)} within {timeout:g} s")


def _name(rank: int, size: int, host: str | None = None, pid: int | None = None) -> str:
    host, pid = host or socket.gethostname(), pid or os.getpid()
    return f"rank {rank} of {size} (host {host}, pid {pid})"


class _Roll:
    """The roll of a world, in the store: names, signs of life, arrivals and departures."""

    def __init__(self, store: dist.Store, rank: int, size: int, timeout: float) -> None:
        self.store = dist.PrefixStore("roll", store)
        self.rank, self.size, self.timeout = rank, size, timeout
        self.others = [other for other in range(size) if other != rank]
        self.meetings = itertools.count()
        self.heard = {other: (-1, time.monotonic()) for other in self.others}
        """The last sign of each, and when it was first seen."""
        self.cards: dict[int, list[str]] = {}
        """Name, place and pid of each, as far as they were needed."""
        self.answers = True
        card = f"{_name(rank, size)}\n{_place()}\n{os.getpid()}"
        self._ask(lambda: self.store.set(f"name/{rank}", card))

    def leave(self, error: BaseException | None) -> None:
        """Says goodbye; whose process has the store waits for the others to do so."""
        if not self.answers:
            return
        if isinstance(error, KeyboardInterrupt):
            how = TOLD
        else:
            how = f"left: {type(error).__name__}: {error}" if error else "left"
        with suppress(RankLostError):
            self._ask(lambda: self.store.set(f"left/{self.rank}", how))
            end = time.monotonic() + FAREWELL
            while self._keeps and len(self.lost()) < len(self.others):
                if time.monotonic() > end:
                    break
                time.sleep(POLL)

    def sign(self) -> None:
        self._ask(lambda: self.store.add(f"sign/{self.rank}", 1))

    def meet(self, what: str) -> None:
        meeting = next(self.meetings)
        arrivals = {other: f"meeting/{meeting}/{other}" for other in self.others}
        self._ask(lambda: self.store.set(f"meeting/{meeting}/{self.rank}", what))
        look = 0.0  # at once
        while not self._ask(lambda: self.store.check(list(arrivals.values()))):
            if time.monotonic() >= look:
                self.sign()
                lost = self.lost()  # before who is missing: one may come and then leave
                missing = self._ask(lambda: [k for k in arrivals if not self._has(arrivals[k])])
                self.refuse({k: how for k, how in lost.items() if k in missing}, what)
                look = time.monotonic() + LOOK
            time.sleep(POLL)

    def lost(self) -> dict[int, str]:
        """Who is lost, by name, and how."""
        found = {other: self._ask(partial(self._loss, other)) for other in self.others}
        return {other: f"{self._named(other)} {how}" for other, how in found.items() if how}

    def refuse(self, lost: dict[int, str], what: str) -> None:
        if lost:
            raise RankLostError(f"{'; '.join(lost.values())}; expected for: {what}")

    def _ask(self, question: Callable[[], T]) -> T:
        """What the store answers, within `timeout`: its process may be dead, or hang.

        Its own timeouts do not hold where it hangs, so a thread waits for it, and dies with us.
        """
        answers: SimpleQueue[tuple[T, None] | tuple[None, dist.DistError]] = SimpleQueue()

        def ask() -> None:
            try:
                answers.put((question(), None))
            except dist.DistError as error:
                answers.put((None, error))

        threading.Thread(target=ask, daemon=True).start()
        try:
            answer, error = answers.get(timeout=self.timeout)
        except Empty:
            answer, error = None, None
            reason = f"nothing came for {self.timeout:g} s"
        else:
            reason = str(error).split("\n", 1)[0]
            if error is None:
                return cast(T, answer)
        self.answers = False
        keeper = "the launcher's store" if _launchers() else f"the store of rank 0 of {self.size}"
        raise RankLostError(f"{keeper} no longer answers: {reason}") from error

    @property
    def _keeps(self) -> bool:
        """Whether the store is in this process: rank 0 has it where the launcher has none."""
        return self.rank == 0 and not _launchers()

    def _has(self, key: str) -> bool:
        found: bool = self.store.check([key])
        return found

    def _loss(self, other: int) -> str:
        """How a rank was lost; nothing of one that is there."""
        if other not in self.cards and self._has(f"name/{other}"):
            self.cards[other] = self.store.get(f"name/{other}").decode().split("\n")
        if self._has(f"left/{other}"):
            return str(self.store.get(f"left/{other}").decode())
        if self._gone(other):
            return "is dead"
        silent = self._silence(other) > self.timeout
        return f"gave no sign for {self.timeout:g} s" if silent else ""

    def _named(self, other: int) -> str:
        return self.cards[other][0] if other in self.cards else f"rank {other} of {self.size}"

    def _gone(self, other: int) -> bool:
        """Whether it ran on this machine and no longer does: known at once, not at the timeout."""
        if other not in self.cards or self.cards[other][1] != _place():
            return False
        try:
            os.kill(int(self.cards[other][2]), 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        return False

    def _silence(self, other: int) -> float:
        """Seconds since its last sign, at most as long as it was looked for."""
        count = self.store.add(f"sign/{other}", 0)
        before, since = self.heard[other]
        now = time.monotonic()
        if count != before:
            self.heard[other] = (count, now)
            return 0.0
        return now - since


def _launchers() -> bool:
    """Whether the store is the launcher's, as torchrun's is."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _place() -> str:
    """Where a pid means the same process: host, and its space of pids where there are several."""
    host = socket.gethostname()
    with suppress(OSError):
        return f"{host} {os.readlink('/proc/self/ns/pid')}"
    return host
