"""What ranks say to one another while they plan: `torch.distributed` calls, and who was lost.

Every call here is made by all ranks of the group, or by two neighbours, in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from grasp_planner.distributed.launch import RankLostError, lost_here


class Neighbours:
    """This rank of a process group, in line with the others."""

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        alone = not (dist.is_available() and dist.is_initialized())
        self.rank = 0 if alone else dist.get_rank(group)
        self.size = 1 if alone else dist.get_world_size(group)
        if self.rank < 0:
            raise ValueError("group must have this rank in it, which it has not")

    @property
    def first(self) -> bool:
        return self.rank == 0

    @property
    def last(self) -> bool:
        return self.rank == self.size - 1

    def shift(self, mine: Tensor) -> Tensor | None:
        """Everyone's tensor to the next rank, all at once; the previous one's, None for the first.

        One message per rank, however many ranks there are.
        """
        mine = mine.contiguous()
        theirs = None if self.first else torch.empty_like(mine)
        calls = []
        if not self.last:
            calls.append(dist.P2POp(dist.isend, mine, self._world(self.rank + 1), self.group))
        if theirs is not None:
            calls.append(dist.P2POp(dist.irecv, theirs, self._world(self.rank - 1), self.group))
        with self._told("a boundary row"):
            for work in dist.batch_isend_irecv(calls) if calls else ():
                work.wait()
        return theirs

    def send(self, values: Tensor, step: int) -> None:
        """To the next rank (`step` 1) or the previous one (-1)."""
        with self._told(f"rank {self.rank + step} to take a boundary row"):
            dist.send(values.contiguous(), self._world(self.rank + step), self.group)

    def receive(self, like: Tensor, step: int) -> Tensor:
        """From the next rank (`step` 1) or the previous one (-1), of the shape of `like`."""
        found = torch.empty_like(like, memory_format=torch.contiguous_format)
        with self._told(f"a boundary row of rank {self.rank + step}"):
            dist.recv(found, self._world(self.rank + step), self.group)
        return found

    def from_last(self, values: Tensor) -> Tensor:
        """The last rank's tensor, for all; of the others the shape alone counts."""
        values = values.contiguous()
        with self._told("the cost of the plans"):
            dist.broadcast(values, self._world(self.size - 1), self.group)
        return values

    def all_true(self, flags: Tensor) -> Tensor:
        """Where every rank's bool is True."""
        counted = flags.to(torch.int32)
        with self._told("who met a number that is not finite"):
            dist.all_reduce(counted, dist.ReduceOp.MIN, self.group)
        return counted.bool()

    def everyones(self, mine: Any) -> list[Any]:
        """What each rank has, in order; one collective."""
        if self.size == 1:
            return [mine]
        found: list[Any] = [None] * self.size
        with self._told("the plans of all ranks"):
            dist.all_gather_object(found, mine, self.group)
        return found

    def left_by(self, rank: int, error: str) -> RankLostError:
        """For those who wait for a rank that met an error of its own."""
        return RankLostError(f"rank {rank} of {self.size} raised {error}")

    def _world(self, rank: int) -> int:
        return rank if self.group is None else dist.get_global_rank(self.group, rank)

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Backends say that a connection is gone, each in its own words."""
        try:
            yield
        except RuntimeError as error:
            names = "; ".join(lost_here()) or f"lost a rank: {error}"
            raise RankLostError(
                f"rank {self.rank} of {self.size} waited for {what}: {names}"
            ) from error
