"""How an op that writes in place begins and ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def dense(tensors: Sequence[Tensor | None]) -> list[Any]:
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def apart(tensors: Sequence[Tensor], written: Sequence[Tensor | None]) -> list[Tensor]:
    """Dense, and no views of what is written: the goal of a single plan may be its last state."""
    memory = {t.untyped_storage().data_ptr() for t in written if t is not None}
    return [
        t.clone(memory_format=torch.contiguous_format)
        if t.untyped_storage().data_ptr() in memory
        else t.contiguous()
        for t in tensors
    ]


def home(written: Sequence[Tensor | None], through: Sequence[Tensor | None]) -> None:
    """`wrote`, for all that was written through its `dense` stand-in."""
    for tensor, stand_in in zip(written, through, strict=True):
        if tensor is not None and stand_in is not None:
            wrote(tensor, stand_in)


def wrote(tensor: Tensor, through: Tensor) -> None:
    """Finish an in-place op: a dense stand-in goes home, and autograd learns of the change.

    Kernels write through pointers, which torch does not see. Without the version count, a graph
    that saved the old values would be differentiated with the new ones, silently.
    """
    if through is not tensor:
        tensor.copy_(through)
    elif not tensor.is_inference():
        torch.autograd.graph.increment_version(tensor)
