"""A world model in double precision: eigenvalues that span many powers of ten need the digits."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from grasp_kernels import MLPDynamics
from grasp_planner.world_model import module_of

Model = Callable[..., Tensor]


def in_double(world_model: Model, state: Tensor, action: Tensor) -> tuple[Model, str]:
    """A copy of the world model that computes in float64, or why there is none.

    A module (also one behind a bound method or a partial) is deep-copied, put in evaluation mode
    and converted; an `MLPDynamics` is built again of float64 tensors; a plain function is taken as
    it is. The copy is then asked, with float64 inputs, for an answer in float64.

    Args:
        state, action: `(rows, D)` and `(rows, A)`, with which it is tried.

    Returns:
        The copy and "", or a copy in the model's own dtype and the reason, in words.

    Raises:
        TypeError: the world model cannot be copied.
    """
    own = _copied(world_model)
    module = module_of(own)
    if isinstance(own, MLPDynamics):
        return _doubled(own), ""
    converted = _copied(own)
    converted_module = module_of(converted)
    if converted_module is not None:
        converted_module.double()
    try:
        with torch.no_grad():
            answer = converted(state.double(), action.double())
        found = answer.dtype if isinstance(answer, Tensor) else torch.float64  # checked elsewhere
    except RuntimeError as error:
        reason = str(error).split("\n", 1)[0]
        return own, f"the world model failed on float64 inputs: {reason}"
    if found != torch.float64:
        kind = "function" if module is None else "module"
        return own, f"the world model, a {kind}, answers float64 inputs in {found}"
    return converted, ""


def _copied(world_model: Model) -> Model:
    """A deep copy whose module, if there is one, is in evaluation mode and has frozen weights."""
    try:
        copied = copy.deepcopy(world_model)
    except Exception as error:  # whatever a model's own parts may raise
        raise TypeError(
            f"world_model must be copyable by copy.deepcopy, {type(world_model).__name__} is not: "
            f"{error}"
        ) from error
    module = module_of(copied)
    if module is not None:
        module.eval().requires_grad_(False)
    return copied


def _doubled(value: Any) -> Any:
    """The same, its floating tensors in float64, through tuples and dataclasses."""
    if isinstance(value, Tensor):
        return value.detach().double() if value.is_floating_point() else value
    if isinstance(value, tuple):
        return tuple(_doubled(part) for part in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: _doubled(getattr(value, f.name)) for f in fields(value)})
    return value
