"""How an op that writes in place ends."""

from __future__ import annotations

import torch
from torch import Tensor


def wrote(tensor: Tensor, through: Tensor) -> None:
    """Finish an in-place op: a dense stand-in goes home, and autograd learns of the change.

    Kernels write through pointers, which torch does not see. Without the version count, a graph
    that saved the old values would be differentiated with the new ones, silently.
    """
    if through is not tensor:
        tensor.copy_(through)
    elif not tensor.is_inference():
        torch.autograd.graph.increment_version(tensor)
