"""Peak memory of a call, as torch's dispatcher sees it.

Counted: the storages that torch operations make during the call, those it returns included, at
their peak. Not counted: the operands, and what compiled code allocates by itself below the
dispatcher (scratch of a native kernel, workspaces of a library). tracemalloc sees neither.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Bytes of all storages that are made inside, now and at the peak."""

    def __init__(self, known: Sequence[Tensor] = ()) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known = {tensor.untyped_storage()._cdata for tensor in known}

    def _freed(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if not isinstance(tensor, Tensor):
                continue
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key not in self.known:
                self.known.add(key)
                self.now += size
                weakref.finalize(storage, self._freed, key, size)
        self.peak = max(self.peak, self.now)
        return result


def peak_bytes(function: Callable[[], object], operands: Sequence[Any] = ()) -> int:
    """The peak during one call; what it gives is dropped after it."""
    with LiveBytes([value for value in operands if isinstance(value, Tensor)]) as live:
        function()
    return live.peak
