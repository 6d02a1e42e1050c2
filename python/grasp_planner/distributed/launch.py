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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

T = TypeVar("T")
VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
POLL = 0.02  # seconds between two looks for those who are waited for
LOOK = 0.5  # seconds between two looks for those who are lost
FAREWELL = 5.0  # seconds that rank 0, whose process may be the store's, waits for others to leave

_worlds = itertools.count()  # all ranks enter `ranks` equally often, and so agree on the number


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
        """The names of the ranks that died, left or fell silent, and how."""
        return list(self._roll.lost().values()) if self._roll else []


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
        ValueError: the launcher's variables are incomplete, or `timeout` is not above 0.
        RankLostError: ranks that did not come within `timeout`.
    """
    if not timeout > 0:
        raise ValueError(f"timeout must be above 0 seconds, got {timeout}")
    device = torch.device(device)
    theirs = dist.is_available() and dist.is_initialized()
    if theirs:
        rank, size = dist.get_rank(), dist.get_world_size()
    else:
        rank, size = _launched()
    local_rank = int(os.environ.get("LOCAL_RANK", rank))
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", size))
    if size > 1 and device.type == "cuda":
        device = torch.device("cuda", local_rank if device.index is None else device.index)
        torch.cuda.set_device(device)
    if size == 1:
        yield Ranks(0, 1, 0, 1, device, timeout)
        return
    if not theirs:
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        _begin(backend, timeout, rank, size)
    try:
        roll = _Roll(rank, size, timeout)
        try:
            yield Ranks(rank, size, local_rank, local_size, device, timeout, roll)
        except BaseException as error:
            roll.leave(error)
            raise
        roll.leave(None)
    finally:
        if not theirs and dist.is_initialized():
            dist.destroy_process_group()


def _launched() -> tuple[int, int]:
    """Rank and size as the launcher has it."""
    if "RANK" not in os.environ:
        return 0, 1
    missing = [name for name in VARIABLES if name not in os.environ]
    if missing:
        raise ValueError(f"a launcher must set {', '.join(VARIABLES)}, got no {', '.join(missing)}")
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def _begin(backend: str, timeout: float, rank: int, size: int) -> None:
    try:
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
    except dist.DistError as error:
        reason = str(error).split("\n", 1)[0]
        raise RankLostError(f"{_name(rank, size)}: the others did not come: {reason}") from error


def _name(rank: int, size: int, host: str | None = None, pid: int | None = None) -> str:
    host, pid = host or socket.gethostname(), pid or os.getpid()
    return f"rank {rank} of {size} (host {host}, pid {pid})"


class _Roll:
    """The roll of a world, in the store: names, signs of life, arrivals and departures."""

    def __init__(self, rank: int, size: int, timeout: float) -> None:
        # There is no public way to the store of a group that somebody else has made.
        store: Any = dist.distributed_c10d._get_default_store()
        self.store = dist.PrefixStore(f"grasp_planner/{next(_worlds)}", store)
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
        """Says goodbye; rank 0 waits for the others to do so, since the store may be its own."""
        if not self.answers:
            return
        how = f"left: {type(error).__name__}: {error}" if error else "left"
        with suppress(RankLostError):
            self._ask(lambda: self.store.set(f"left/{self.rank}", how))
            end = time.monotonic() + FAREWELL
            while self.rank == 0 and len(self.lost()) < len(self.others):
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
        raise RankLostError(f"{self._keeper} no longer answers: {reason}") from error

    @property
    def _keeper(self) -> str:
        """Whose process has the store: the launcher's, or that of rank 0."""
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            return "the launcher's store"
        return f"the store of rank 0 of {self.size}"

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


def _place() -> str:
    """Where a pid means the same process: host, and its space of pids where there are several."""
    host = socket.gethostname()
    with suppress(OSError):
        return f"{host} {os.readlink('/proc/self/ns/pid')}"
    return host
