"""What a plan asks of torch: operator calls, allocations, and reads that make the host wait.

Counted by looking on at every operator call of a plan of a few iterations. On a CPU nothing waits,
but what would wait on a GPU is the same.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

READING_OPS = (
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "is_nonzero",
    "equal",
    "_unique",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "_is_all_true",
    "_is_any_true",
    "allclose",
)
READING_CALLS = ("cpu", "tolist", "numpy", "item", "__array__", "__bool__", "__float__", "__int__")


class Counts:
    """Counters of one plan; those of its loop are apart, since only the loop repeats.

    `known`: tensors that were there before, whose memory is not counted.
    """

    def __init__(self, known: Sequence[Tensor] = ()) -> None:
        self.in_loop = False
        self.operators: Counter[str] = Counter()
        self.reads: Counter[str] = Counter()
        self.allocations = 0
        self.launches: int | None = None  # of GPU kernels, counted by others
        self.live_bytes = self.peak_bytes = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in known}

    @contextmanager
    def loop(self, name: str) -> Iterator[None]:
        """Inside, operators, reads and allocations are counted."""
        self.in_loop = True
        try:
            yield
        finally:
            self.in_loop = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        with _Calls(self), _Operators(self):
            yield

    def _read(self, name: str) -> None:
        if self.in_loop:
            self.reads[name] += 1

    def _made(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known or size == 0:
            return
        self._known.add(key)
        self.allocations += self.in_loop
        self.live_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live_bytes -= size


class _Operators(TorchDispatchMode):
    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func._schema.name
        masked = name in ("aten::index", "aten::index_put", "aten::index_put_") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if name.split("::")[1] in READING_OPS or masked:
            self.counts._read(name)
        if self.counts.in_loop:
            self.counts.operators[name] += 1
        result = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.counts._made(tensor)
        return result


class _Calls(TorchFunctionMode):
    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self.counts = counts

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in READING_CALLS:
            self.counts._read(name)
        return func(*args, **(kwargs or {}))
