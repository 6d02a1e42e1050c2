"""What makes one planner another: its variables, and how an iteration moves them.

Symbols: B' problems that are still searched.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

if TYPE_CHECKING:
    from grasp_planner.search import Search


class Algorithm(ABC):
    """A planner's variables in one search, and how an iteration moves them.

    `__init__` makes what follows from settings and problems alone; `begin` makes the variables.
    """

    variables: ClassVar[tuple[str, ...]]
    """Attributes with a row, or as many rows each, for every problem that is still searched: a
    tensor, or a dict or list of tensors. They are what is saved, and what is cut when problems are
    done."""

    candidates = 1
    """Plans of a problem that are kept and reported one by one."""

    first_candidate = 0
    """The number of the first of them, where others are planned elsewhere."""

    multiplier_rows = 1
    """Plans of a problem that have multipliers of their own, for its constraints."""

    waits = False
    """Whether it is worth waiting for the device to know which problems are done."""

    def __init__(self, search: Search) -> None:
        self.search = search
        self.config: Any = search.config

    @abstractmethod
    def begin(self) -> None:
        """The variables before the first iteration."""

    @abstractmethod
    def step(self, k: int) -> int:
        """Makes iteration k, or k ... k' in one launch; returns the last one that it made."""

    def finish(self) -> None:  # noqa: B027 (nothing comes after most)
        """What comes after the last iteration."""

    def done(self) -> Tensor | None:
        """`(B',)` bool on the device: the problems that need no further iteration; None is none."""
        return None
