"""What every op of the benchmark offers, and how its operands are copied and widened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from grasp_kernels import MLPDynamics
from grasp_kernels.costs import Cost

from .cases import Case

Operands = dict[str, Any]
Results = dict[str, Tensor]
Compile = Callable[[Callable[..., Any]], Callable[..., Any]]


@dataclass(frozen=True)
class Workload:
    """One op.

    Attributes:
        operands: makes them on a device; the same numbers every time.
        fused: the public call, which updates operands in place where the op does; what it gave. On
            float64 operands it is the reference.
        plain: the same in torch operations, ready to call.
        cost: of one launch.
        tolerance: of float32, per element, relative to it or to the root mean square.
        deviation: where plain torch draws its own noise: the results that hold it, and the standard
            deviation of each row (None is 1).
    """

    operands: Callable[[Case, torch.device], Operands]
    fused: Callable[[Case, Operands], Results]
    plain: Callable[[Case, Compile], Callable[[Operands], Results]]
    cost: Callable[[Case], Cost]
    tolerance: float
    deviation: Callable[[Case, Results], tuple[Tensor, Tensor | None]] | None = None


def fresh(operands: Operands) -> Operands:
    """A copy that shares nothing that a call may change; optimiser memory starts empty."""

    def one(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.detach().clone().requires_grad_(value.requires_grad)
        return {} if isinstance(value, dict) else value

    return {name: one(value) for name, value in operands.items()}


def widened(operands: Operands) -> Operands:
    """The same numbers in float64, as the reference takes them."""

    def one(value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point():
            return value.detach().double().requires_grad_(value.requires_grad)
        if isinstance(value, MLPDynamics):
            return value.to(torch.float64)
        return torch.float64 if isinstance(value, torch.dtype) else value

    return {name: one(value) for name, value in fresh(operands).items()}
