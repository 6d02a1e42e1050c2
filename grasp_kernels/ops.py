"""Every op of this library: its schema, its fake kernel, and which backend runs it.

This is the one list of what exists. An op lives in the `grasp_kernels` namespace of
`torch.library`, so `torch.compile`, `torch.export` and `opcheck` see one opaque node with a known
shape. Below it stand three backends with the same names and arguments:

    reference   plain torch, any float dtype, any device       grasp_kernels/reference
    native      C++ on CPU, float32 and bfloat16               grasp_kernels/native.py, csrc
    triton      CUDA and ROCm, float32 and bfloat16            grasp_kernels/triton

Losses leave an op per time step, `(N, T)`: a sum over time would depend on how the caller cut the
plan into chunks, a row does not. `grasp_kernels.functional` sums them. Numbers that may differ
between plans (step sizes, noise scale, goal weight) come in tensors, so that a schedule or a
stopping rule can live on the device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from grasp_kernels import mlp_ops, native, newton_ops, reference
from grasp_kernels.backends import choose
from grasp_kernels.in_place import wrote

NAMESPACE = "grasp_kernels"

SCHEMAS = {
    "lifted_loss": "(Tensor prediction, Tensor trajectory, Tensor goal, Tensor? feature_weight, "
    "Tensor? time_weight) -> (Tensor dynamics, Tensor goal_error)",
    "lifted_loss_backward": "(Tensor dynamics_cotangent, Tensor goal_cotangent, Tensor prediction, "
    "Tensor trajectory, Tensor goal, Tensor? feature_weight, Tensor? time_weight) "
    "-> (Tensor prediction_gradient, Tensor trajectory_gradient)",
    "lifted_step_": "(Tensor(a!) trajectory, Tensor prediction, Tensor goal, Tensor coefficients, "
    "Tensor plan_ids, Tensor? feature_weight, Tensor? time_weight, Tensor? state_gradient, "
    "float state_gradient_scale, SymInt seed, SymInt iteration, str noise, SymInt modes, "
    "SymInt first_step, SymInt horizon, bool free_terminal) "
    "-> (Tensor dynamics, Tensor goal_error, Tensor cotangent)",
    "action_step_": "(Tensor(a!) actions, Tensor gradient, Tensor(b!)? first_moment, "
    "Tensor(c!)? second_moment, Tensor lr, Tensor? low, Tensor? high, float beta1, float beta2, "
    "float epsilon, SymInt step) -> ()",
    "gaussian_noise": "(Tensor plan_ids, SymInt steps, SymInt features, SymInt seed, "
    "SymInt iteration, str noise, SymInt modes, SymInt first_step, SymInt horizon, "
    "ScalarType dtype) -> Tensor",
    "philox_words": "(Tensor plan_ids, SymInt steps, SymInt features, SymInt seed, "
    "SymInt iteration, SymInt first_step) -> Tensor",
    **mlp_ops.SCHEMAS,
    **newton_ops.SCHEMAS,
}

library = torch.library.Library(NAMESPACE, "DEF")
for _name, _schema in SCHEMAS.items():
    library.define(_name + _schema, tags=(torch.Tag.pt2_compliant_tag,))


def op(name: str) -> torch._ops.OpOverload:
    """The op of that name, as `torch.compile` and a profiler see it."""
    found: torch._ops.OpOverload = getattr(torch.ops.grasp_kernels, name).default
    return found


# ------------------------------------------------------------------ the reference behind the schema


def _reference_lifted_loss(
    prediction: Tensor,
    trajectory: Tensor,
    goal: Tensor,
    feature_weight: Tensor | None,
    time_weight: Tensor | None,
) -> tuple[Tensor, Tensor]:
    loss = reference.lifted_loss(
        prediction,
        trajectory,
        goal,
        goal_weight=0.0,
        feature_weight=feature_weight,
        time_weight=time_weight,
        per_step=True,
    )
    return loss.dynamics, loss.goal


def _reference_lifted_loss_backward(
    dynamics_cotangent: Tensor,
    goal_cotangent: Tensor,
    prediction: Tensor,
    trajectory: Tensor,
    goal: Tensor,
    feature_weight: Tensor | None,
    time_weight: Tensor | None,
) -> tuple[Tensor, Tensor]:
    return reference.lifted_loss_backward(
        dynamics_cotangent,
        goal_cotangent,
        prediction,
        trajectory,
        goal,
        feature_weight=feature_weight,
        time_weight=time_weight,
    )


def _reference_lifted_step_(
    trajectory: Tensor,
    prediction: Tensor,
    goal: Tensor,
    coefficients: Tensor,
    plan_ids: Tensor,
    feature_weight: Tensor | None,
    time_weight: Tensor | None,
    state_gradient: Tensor | None,
    state_gradient_scale: float,
    seed: int,
    iteration: int,
    noise: str,
    modes: int,
    first_step: int,
    horizon: int,
    free_terminal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    state_lr, goal_weight, noise_scale = coefficients.unbind(-1)
    loss, cotangent = reference.lifted_step_(
        trajectory,
        prediction,
        goal,
        state_lr=state_lr,
        goal_weight=goal_weight,
        noise_scale=noise_scale,
        seed=seed,
        iteration=iteration,
        plan_ids=plan_ids,
        noise=noise,
        modes=modes,
        feature_weight=feature_weight,
        time_weight=time_weight,
        state_gradient=state_gradient,
        state_gradient_scale=state_gradient_scale,
        terminal="free" if free_terminal else "fixed",
        first_step=first_step,
        horizon=horizon,
        per_step=True,
    )
    return loss.dynamics, loss.goal, cotangent


def _reference_action_step_(
    actions: Tensor,
    gradient: Tensor,
    first_moment: Tensor | None,
    second_moment: Tensor | None,
    lr: Tensor,
    low: Tensor | None,
    high: Tensor | None,
    beta1: float,
    beta2: float,
    epsilon: float,
    correction1: float,
    correction2: float,
) -> None:
    reference.action_update_(
        actions,
        gradient,
        first_moment,
        second_moment,
        lr,
        low,
        high,
        (beta1, beta2),
        epsilon,
        (correction1, correction2),
    )


def _reference_gaussian_noise(
    plan_ids: Tensor,
    steps: int,
    features: int,
    seed: int,
    iteration: int,
    noise: str,
    modes: int,
    first_step: int,
    horizon: int,
    dtype: torch.dtype,
) -> Tensor:
    return reference.gaussian_noise(
        len(plan_ids),
        steps,
        features,
        seed=seed,
        iteration=iteration,
        plan_ids=plan_ids,
        noise=noise,
        modes=modes,
        first_step=first_step,
        horizon=horizon,
        dtype=dtype,
    )


def _reference_philox_words(
    plan_ids: Tensor, steps: int, features: int, seed: int, iteration: int, first_step: int
) -> Tensor:
    return reference.philox_words(
        plan_ids, steps, features, seed=seed, iteration=iteration, first_step=first_step
    )


REFERENCE: dict[str, Callable[..., Any]] = {
    "lifted_loss": _reference_lifted_loss,
    "lifted_loss_backward": _reference_lifted_loss_backward,
    "lifted_step_": _reference_lifted_step_,
    "action_step_": _reference_action_step_,
    "gaussian_noise": _reference_gaussian_noise,
    "philox_words": _reference_philox_words,
}

# ------------------------------------------------------------------------------------ dispatch


def _backend(
    name: str, device: torch.device, dtype: torch.dtype, empty: bool = False
) -> Callable[..., Any]:
    """The function that runs op `name`. What is empty has nothing to be fast about."""
    backend = "reference" if empty else choose(device, dtype)
    if backend == "native":
        return getattr(native, name)
    if backend == "triton":
        from grasp_kernels import triton  # imports the compiler, so only when a GPU asks

        return getattr(triton, name)
    return REFERENCE[name]


def _span(tensor: Tensor) -> tuple[int, int]:
    """The addresses [first, last) between which all elements lie."""
    first, size = tensor.data_ptr(), tensor.element_size()
    if tensor.is_contiguous():
        return first, first + tensor.numel() * size
    reach = sum(s * (n - 1) for s, n in zip(tensor.stride(), tensor.shape, strict=True))
    return first, first + (reach + 1) * size


class _ApartFrom:
    """Makes operands dense, and copies one that overlaps the memory that is about to be written."""

    def __init__(self, written: Tensor) -> None:
        self.begin, self.end = _span(written)

    def __call__(self, tensor: Tensor | None) -> Any:
        if tensor is None:
            return None
        first, last = _span(tensor)
        if first < self.end and self.begin < last:
            return tensor.clone(memory_format=torch.contiguous_format)
        return tensor.contiguous()


def _dense_features(tensor: Tensor) -> Tensor:
    """`tensor` with its features side by side in memory; other strides are left as they are."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] <= 1 else tensor.contiguous()


def _lifted_loss(
    prediction: Tensor,
    trajectory: Tensor,
    goal: Tensor,
    feature_weight: Tensor | None,
    time_weight: Tensor | None,
) -> tuple[Tensor, Tensor]:
    empty = prediction.numel() == 0
    run = _backend("lifted_loss", prediction.device, prediction.dtype, empty)
    return run(
        prediction.contiguous(),
        _dense_features(trajectory),
        goal.contiguous(),
        feature_weight,
        time_weight,
    )


def _lifted_loss_backward(
    dynamics_cotangent: Tensor,
    goal_cotangent: Tensor,
    prediction: Tensor,
    trajectory: Tensor,
    goal: Tensor,
    feature_weight: Tensor | None,
    time_weight: Tensor | None,
) -> tuple[Tensor, Tensor]:
    empty = prediction.numel() == 0
    run = _backend("lifted_loss_backward", prediction.device, prediction.dtype, empty)
    return run(
        dynamics_cotangent.contiguous(),
        goal_cotangent.contiguous(),
        prediction.contiguous(),
        _dense_features(trajectory),
        goal.contiguous(),
        feature_weight,
        time_weight,
    )


def _lifted_step_(
    trajectory: Tensor,
    prediction: Tensor,
    goal: Tensor,
    coefficients: Tensor,
    plan_ids: Tensor,
    feature_weight: Tensor | None,
    time_weight: Tensor | None,
    state_gradient: Tensor | None,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    empty = prediction.numel() == 0
    run = _backend("lifted_step_", trajectory.device, trajectory.dtype, empty)
    states, apart = _dense_features(trajectory), _ApartFrom(trajectory)
    result = run(
        states,
        apart(prediction),  # a model may return a view of its own input
        apart(goal),
        apart(coefficients),
        plan_ids.contiguous(),
        apart(feature_weight),
        apart(time_weight),
        apart(state_gradient),
        *rest,
    )
    wrote(trajectory, states)
    return result


def _action_step_(
    actions: Tensor,
    gradient: Tensor,
    first_moment: Tensor | None,
    second_moment: Tensor | None,
    lr: Tensor,
    low: Tensor | None,
    high: Tensor | None,
    beta1: float,
    beta2: float,
    epsilon: float,
    step: int,
) -> None:
    run = _backend("action_step_", actions.device, actions.dtype, actions.numel() == 0)
    written = [t for t in (actions, first_moment, second_moment) if t is not None]
    dense = [t.contiguous() for t in written]
    moments = dense[1:] if len(dense) == 3 else [None, None]
    apart = _ApartFrom(actions)
    run(
        dense[0],
        apart(gradient),
        *moments,
        apart(lr),
        apart(low),
        apart(high),
        beta1,
        beta2,
        epsilon,
        # Worked out here, below the schema: a compiled graph then has the step as a variable.
        1 - beta1**step,
        1 - beta2**step,
    )
    for tensor, through in zip(written, dense, strict=True):
        wrote(tensor, through)


def _gaussian_noise(plan_ids: Tensor, *rest: Any) -> Tensor:
    empty = len(plan_ids) * rest[0] * rest[1] == 0
    run = _backend("gaussian_noise", plan_ids.device, rest[-1], empty)
    return run(plan_ids.contiguous(), *rest)


def _philox_words(plan_ids: Tensor, *rest: Any) -> Tensor:
    empty = len(plan_ids) * rest[0] * rest[1] == 0
    run = _backend("philox_words", plan_ids.device, torch.float32, empty)
    return run(plan_ids.contiguous(), *rest)


for _name, _run in {
    "lifted_loss": _lifted_loss,
    "lifted_loss_backward": _lifted_loss_backward,
    "lifted_step_": _lifted_step_,
    "action_step_": _action_step_,
    "gaussian_noise": _gaussian_noise,
    "philox_words": _philox_words,
    **mlp_ops.IMPLEMENTATIONS,
    **newton_ops.IMPLEMENTATIONS,
}.items():
    library.impl(_name, _run, "CompositeExplicitAutograd")


# -------------------------------------------------------------------------------- fake kernels


def _loss_rows(prediction: Tensor) -> Tensor:
    dtype = reference.compute_dtype(prediction.dtype)
    return prediction.new_empty(prediction.shape[:2], dtype=dtype)


@torch.library.register_fake(f"{NAMESPACE}::lifted_loss", lib=library)
def _(prediction, trajectory, goal, feature_weight, time_weight):  # type: ignore[no-untyped-def]
    return _loss_rows(prediction), _loss_rows(prediction)


@torch.library.register_fake(f"{NAMESPACE}::lifted_loss_backward", lib=library)
def _(dynamics_cotangent, goal_cotangent, prediction, trajectory, *rest):  # type: ignore[no-untyped-def]
    return prediction.new_empty(prediction.shape), trajectory.new_empty(trajectory.shape)


@torch.library.register_fake(f"{NAMESPACE}::lifted_step_", lib=library)
def _(trajectory, prediction, *rest):  # type: ignore[no-untyped-def]
    cotangent = prediction.new_empty(prediction.shape)
    return _loss_rows(prediction), _loss_rows(prediction), cotangent


@torch.library.register_fake(f"{NAMESPACE}::action_step_", lib=library)
def _(actions, gradient, *rest):  # type: ignore[no-untyped-def]
    return None


@torch.library.register_fake(f"{NAMESPACE}::gaussian_noise", lib=library)
def _(plan_ids, steps, features, *rest):  # type: ignore[no-untyped-def]
    return plan_ids.new_empty((plan_ids.shape[0], steps, features), dtype=rest[-1])


@torch.library.register_fake(f"{NAMESPACE}::philox_words", lib=library)
def _(plan_ids, steps, features, *rest):  # type: ignore[no-untyped-def]
    return plan_ids.new_empty(
        (plan_ids.shape[0], steps, 4 * ((features + 3) // 4)), dtype=torch.int32
    )


for _name, _fake in {**mlp_ops.FAKES, **newton_ops.FAKES}.items():
    torch.library.register_fake(f"{NAMESPACE}::{_name}", _fake, lib=library)
