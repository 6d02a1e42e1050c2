"""The roll of a launched run: names, signs of life, arrivals and departures, in the store.

The store is that by which `torch.distributed` finds its processes. So every rank that waits learns
the names of those it waits for in vain, also of rank 0, and without any other traffic.
"""

from __future__ import annotations

import itertools
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TypeVar, cast

import torch.distributed as dist

T = TypeVar("T")
POLL = 0.02  # seconds between two looks for those who are waited for
LOOK = 0.5  # seconds between two looks for those who are lost
FAREWELL = 5.0  # seconds that rank 0, where it has the store, waits for the others to leave
TOLD = "was told to end"
ROLL = "roll"
PROPOSED = "grasp_planner/proposed"


class RankLostError(RuntimeError):
    """Ranks that died, left or fell silent; the message names them and what was expected."""


class Roll:
    """The roll of a world, in the store: names, signs of life, arrivals and departures."""

    def __init__(self, store: dist.Store, rank: int, size: int, timeout: float) -> None:
        self.store = dist.PrefixStore(ROLL, store)
        self.rank, self.size, self.timeout = rank, size, timeout
        self.others = [other for other in range(size) if other != rank]
        self.meetings = itertools.count()
        self.heard = {other: (-1, time.monotonic()) for other in self.others}
        """The last sign of each, and when it was first seen."""
        self.cards: dict[int, list[str]] = {}
        """Name, place and pid of each, as far as they were needed."""
        self.answers = True
        card = f"{name_of(rank, size)}\n{_place()}\n{os.getpid()}"
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
        answers: SimpleQueue[tuple[T | None, Exception | None]] = SimpleQueue()

        def ask() -> None:
            try:
                answers.put((question(), None))
            except Exception as error:
                answers.put((None, error))

        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        try:
            answer, error = answers.get(timeout=self.timeout)
            thread.join()  # none is left to meet the interpreter's end
        except Empty:
            answer, error = None, TimeoutError(f"nothing came for {self.timeout:g} s")
        if error is None:
            return cast(T, answer)
        self.answers = False
        reason = str(error).split("\n", 1)[0]
        whose = "the launcher's store" if launcher_has_store() else f"rank 0 of {self.size}"
        raise RankLostError(f"{whose} no longer answers: {reason}") from error

    @property
    def _keeps(self) -> bool:
        """Whether the store is in this process: rank 0 has it where the launcher has none."""
        return self.rank == 0 and not launcher_has_store()

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
        pid = int(self.cards[other][2])
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        with suppress(OSError, IndexError):  # it may have ended, and its parent not have looked
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
            return state in "ZX"
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


def apart(store: dist.Store, rank: int, size: int, timeout: float) -> dist.Store:
    """A part of a store for these ranks alone.

    torchrun's store outlives a restart, and would hand out the addresses of the dead. So rank 0
    proposes a new name until all others have answered it, and confirms it by their answers; who
    reads the name of a world before this one finds answers there that are not its own.

    Raises RankLostError where ranks do not come.
    """
    own, end = uuid.uuid4().hex, time.monotonic() + timeout
    others = range(1, size)
    if rank == 0:
        store.set(PROPOSED, own)
    while time.monotonic() < end:
        if rank == 0:
            answers = [f"{own}/{other}" for other in others]
            if store.check(answers):
                store.set(f"{own}/confirmed", " ".join(store.get(key).decode() for key in answers))
                return dist.PrefixStore(own, store)
        elif store.check([PROPOSED]):
            name = store.get(PROPOSED).decode()
            store.set(f"{name}/{rank}", own)
            done = store.check([f"{name}/confirmed"])
            if done and store.get(f"{name}/confirmed").decode().split()[rank - 1] == own:
                return dist.PrefixStore(name, store)
        time.sleep(POLL)
    missing = [k for k in others if rank == 0 and not store.check([f"{own}/{k}"])] or [0]
    names = ", ".join(f"rank {k} of {size}" for k in missing)
    raise RankLostError(f"{names} did not come to {name_of(rank, size)} within {timeout:g} s")


def died_before(store: dist.Store, size: int) -> tuple[str, ...]:
    """Who ended without a word in the attempt before this one; asked before `apart`, by rank 0."""
    if not store.check([PROPOSED]):
        return ()
    before = dist.PrefixStore(ROLL, dist.PrefixStore(store.get(PROPOSED).decode(), store))
    came = [k for k in range(size) if before.check([f"name/{k}"])]
    dead = [k for k in came if not before.check([f"left/{k}"])]
    return tuple(before.get(f"name/{k}").decode().split("\n")[0] for k in dead)


def name_of(rank: int, size: int) -> str:
    """Of this process."""
    return f"rank {rank} of {size} (host {socket.gethostname()}, pid {os.getpid()})"


def launcher_has_store() -> bool:
    """Whether the store is the launcher's, as torchrun's is."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _place() -> str:
    """Where a pid means the same process: host, and its space of pids where there are several."""
    host = socket.gethostname()
    with suppress(OSError):
        return f"{host} {os.readlink('/proc/self/ns/pid')}"
    return host
