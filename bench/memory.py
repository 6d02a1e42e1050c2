"""Peak memory of a call, as torch's dispatcher sees it.

Counted: the storages that torch operations make during the call, those it returns included, at
their peak. Not counted: the operands, and what compiled code allocates by itself below the
dispatcher (scratch of a native kernel, workspaces of a library). tracemalloc sees neither.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from grasp_planner.profiling.counting import Counts
from torch import Tensor


def peak_bytes(function: Callable[[], object], operands: Sequence[Any] = ()) -> int:
    """The peak during one call; what it gives is dropped after it."""
    counts = Counts([value for value in operands if isinstance(value, Tensor)])
    with counts.watching():
        function()
    return counts.peak_bytes
