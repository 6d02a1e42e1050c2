"""The checks behind the public calls: every error names the argument, what came and what is
accepted.

No check reads a value off a GPU, so none of them makes the host wait.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from grasp_kernels.reference import compute_dtype

NOISES = ("white", "bridge", "none")
OPTIMIZERS = ("adam", "sgd")
TERMINALS = ("fixed", "free")
DTYPES = (torch.float32, torch.bfloat16, torch.float64, torch.float16)
MAX_MODES = 64

Scalar = float | Tensor
"""A number for all plans, or a floating tensor `(N,)` with one per plan."""


def shape_of(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def check_tensor(name: str, value: Any, shape: tuple[int | None, ...], meaning: str) -> None:
    """`value` is a strided tensor of this shape; None stands for any size."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor {meaning}, got {type(value).__name__}")
    fits = value.dim() == len(shape) and all(
        want is None or size == want for size, want in zip(value.shape, shape, strict=True)
    )
    if not fits:
        wanted = tuple("any" if want is None else want for want in shape)
        raise ValueError(f"{name} must have shape {meaning} = {wanted}, got {shape_of(value)}")
    if value.layout != torch.strided:
        raise ValueError(f"{name} must be a dense tensor, got layout {value.layout}")


def check_like(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    if value.dtype != other.dtype:
        raise TypeError(
            f"{name} must have the dtype of {other_name}, {other.dtype}, got {value.dtype}"
        )
    if value.device != other.device:
        raise ValueError(
            f"{name} must be on the device of {other_name}, {other.device}, got {value.device}"
        )


def check_writable(name: str, value: Tensor) -> None:
    """No two elements of `value` share memory, so that an in-place step is well defined."""
    if not value.is_contiguous() and value.numel() > 0:
        reach = 1
        for stride, size in sorted(
            (s, n) for s, n in zip(value.stride(), value.shape, strict=True) if n > 1
        ):
            if stride < reach:
                raise ValueError(
                    f"{name} is written in place, but its elements overlap in memory "
                    f"(shape {shape_of(value)}, strides {value.stride()}); pass {name}.clone()"
                )
            reach += stride * (size - 1)
    if value.requires_grad and not value.is_leaf:
        raise ValueError(
            f"{name} is written in place but is part of an autograd graph; detach it first"
        )


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_int(name: str, value: int, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if not low <= value <= high:
        raise ValueError(f"{name} must be from {low} to {high}, got {value}")


def signed_seed(seed: int) -> int:
    """The bits of a uint64 seed as the int64 that a schema can carry."""
    check_int("seed", seed, 0, 2**64 - 1)
    return seed - 2**64 if seed >= 2**63 else seed


def check_states(trajectory: Tensor, prediction: Tensor, goal: Tensor) -> None:
    check_tensor("prediction", prediction, (None, None, None), "(N, T, D)")
    plans, steps, features = prediction.shape
    check_tensor("trajectory", trajectory, (plans, steps + 1, features), "(N, T + 1, D)")
    check_tensor("goal", goal, (plans, features), "(N, D)")
    if prediction.dtype not in DTYPES:
        raise TypeError(f"prediction must be one of {DTYPES}, got {prediction.dtype}")
    check_like("trajectory", trajectory, "prediction", prediction)
    check_like("goal", goal, "prediction", prediction)


def weight_vector(
    name: str, value: Tensor | None, size: int, meaning: str, like: Tensor
) -> Tensor | None:
    """An optional weight vector, in the compute dtype and dense."""
    if value is None:
        return None
    check_tensor(name, value, (size,), meaning)
    if not value.is_floating_point():
        raise TypeError(f"{name} must be floating, got {value.dtype}")
    if value.device != like.device:
        raise ValueError(f"{name} must be on {like.device}, got {value.device}")
    if value.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"{name} is not differentiated; pass {name}.detach()")
    return value.to(compute_dtype(like.dtype)).contiguous()


def check_per_plan(name: str, value: Scalar, plans: int, device: torch.device) -> None:
    if isinstance(value, Tensor):
        if value.device != device:
            raise ValueError(f"{name} must be on {device}, got {value.device}")
        if value.shape not in ((), (plans,)) or not value.is_floating_point():
            raise ValueError(
                f"{name} must be a number or a floating tensor (N,) = ({plans},), "
                f"got {value.dtype} {shape_of(value)}"
            )
    elif isinstance(value, (bool, str)) or not isinstance(
        value, (int, float, torch.SymFloat, torch.SymInt)
    ):
        raise TypeError(f"{name} must be a number or a tensor (N,), got {type(value).__name__}")


def per_plan_columns(values: dict[str, Scalar], like: Tensor) -> Tensor:
    """Per-plan numbers side by side, `(N, len(values))`, in the compute dtype."""
    plans, dtype = like.shape[0], compute_dtype(like.dtype)
    for name, value in values.items():
        check_per_plan(name, value, plans, like.device)
    compiling = torch.compiler.is_compiling()
    numbers = not any(isinstance(v, Tensor) for v in values.values())
    if like.device.type == "cpu" and numbers and not compiling:
        row = torch.tensor([float(v) for v in values.values()], dtype=dtype, device="cpu")
        return row.expand(plans, len(values))
    # A fill is launched; torch.tensor(..., device="cuda") would wait for the device. And a product
    # keeps the number a variable of a compiled graph, where a fill would recompile for each value.
    one = torch.ones((), dtype=dtype, device=like.device)
    columns = [v.to(dtype) if isinstance(v, Tensor) else one * v for v in values.values()]
    return torch.stack([column.expand(plans) for column in columns], dim=-1)


def plan_id_tensor(plan_ids: Tensor | None, plans: int, device: torch.device) -> Tensor:
    if plan_ids is None:
        return torch.arange(plans, device=device)
    check_tensor("plan_ids", plan_ids, (plans,), "(N,)")
    if plan_ids.dtype != torch.int64:
        raise TypeError(f"plan_ids must be int64, got {plan_ids.dtype}")
    if plan_ids.device != device:
        raise ValueError(f"plan_ids must be on {device}, got {plan_ids.device}")
    return plan_ids


def check_noise(
    noise: str, modes: int, iteration: int, first_step: int, steps: int, features: int
) -> None:
    check_choice("noise", noise, NOISES)
    check_int("modes", modes, 1, MAX_MODES)
    check_int("iteration", iteration, 0, 2**32 - 1)
    check_int("first_step", first_step, 0, 2**32 - 1)
    if (first_step + steps + 1) * -(-features // 4) > 2**32:
        raise ValueError(
            "steps x features is beyond the 2**32 noise groups of one plan and iteration: "
            f"got {first_step + steps} x {features}"
        )


def horizon_or_end(horizon: int | None, first_step: int, steps: int) -> int:
    if horizon is None:
        return first_step + steps
    check_int("horizon", horizon, 0, 2**32 - 1)
    if horizon < first_step + steps:
        raise ValueError(
            f"horizon must be at least first_step + T = {first_step + steps}, got {horizon}"
        )
    return horizon


def check_adam(betas: tuple[float, float], epsilon: float) -> None:
    """Adam's numbers are in the ranges of its paper."""
    pair = isinstance(betas, (tuple, list)) and len(betas) == 2
    if not pair or not all(isinstance(b, (int, float)) and 0.0 <= b < 1.0 for b in betas):
        raise ValueError(f"betas must be two numbers in [0, 1), got {betas}")
    if not isinstance(epsilon, (int, float)) or not 0.0 < epsilon < torch.inf:
        raise ValueError(f"epsilon must be above 0 and finite, got {epsilon}")


def check_moments(state: dict[str, Any], actions: Tensor) -> None:
    """Adam's memory belongs to these actions."""
    if not isinstance(state.get("step"), (int, torch.SymInt)):
        raise ValueError(f"state['step'] must be an int, got {state.get('step')!r}")
    dtype = compute_dtype(actions.dtype)
    for name in ("first_moment", "second_moment"):
        moment = state.get(name)
        fits = (
            isinstance(moment, Tensor)
            and moment.shape == actions.shape
            and moment.dtype == dtype
            and moment.device == actions.device
        )
        if not fits:
            raise ValueError(
                f"state[{name!r}] must be {dtype} {shape_of(actions)} on {actions.device}, to "
                "fit the actions; start a new plan with an empty dict"
            )


def box_bounds(
    low: Scalar | None, high: Scalar | None, actions: Tensor, compare: bool = True
) -> tuple[Tensor | None, Tensor | None]:
    """Bounds as `(A,)` tensors in the dtype of `actions`, rounded to the inside of the box.

    `compare` refuses bounds that cross. It reads values, so bounds on a GPU, where the host would
    have to wait, are never compared; there `high` wins, as in `torch.clamp`.
    """
    lower, upper = _exact("low", low, actions), _exact("high", high, actions)
    compare = compare and lower is not None and upper is not None
    compare = compare and actions.device.type == "cpu" and not torch.compiler.is_compiling()
    if compare and bool((lower > upper).any()):  # type: ignore[operator]
        raise ValueError(f"low must not be above high, got low = {low}, high = {high}")
    return (
        None if lower is None else _inside(lower, actions, torch.inf),
        None if upper is None else _inside(upper, actions, -torch.inf),
    )


def _exact(name: str, bound: Any, actions: Tensor) -> Tensor | None:
    """One bound as a tensor `(A,)`: a number in float64, a tensor in its own dtype."""
    if bound is None:
        return None
    if isinstance(bound, Tensor):
        if bound.shape not in ((), actions.shape[-1:]) or not bound.is_floating_point():
            raise ValueError(
                f"{name} must be a number or a floating tensor (A,) = {shape_of(actions)[-1:]}, "
                f"got {bound.dtype} {shape_of(bound)}"
            )
        if bound.device != actions.device:
            raise ValueError(f"{name} must be on {actions.device}, got {bound.device}")
        return bound.expand(actions.shape[-1])
    if isinstance(bound, bool) or not isinstance(bound, (int, float)):
        raise TypeError(f"{name} must be a number or a tensor (A,), got {type(bound).__name__}")
    return torch.full(actions.shape[-1:], bound, dtype=torch.float64, device=actions.device)


def _inside(exact: Tensor, actions: Tensor, inward: float) -> Tensor:
    """`exact` in the dtype of `actions`; where that is outside the box, the next number inside."""
    if exact.dtype == actions.dtype:
        return exact.contiguous()
    stored = exact.to(actions.dtype)
    back = stored.to(exact.dtype)
    outside = back < exact if inward > 0 else back > exact
    inside = torch.nextafter(stored, torch.full_like(stored, inward))
    return torch.where(outside, inside, stored)
