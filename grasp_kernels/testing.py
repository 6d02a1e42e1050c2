"""`assert_close`: does a result keep the error budget that its op states for its dtype?

An elementwise tolerance alone misses two things that matter to an optimiser: a small error that
always points the same way (a truncation in place of a rounding), and a gradient whose large entries
are right while its direction is not. So a result is judged four times, in float64, and the failure
says by how much:

    elementwise   max |actual - expected| / max(|expected|, rms(expected), magnitude)
    relative_l2   |actual - expected| / |expected|                          as one vector
    cosine        1 - cos(actual, expected)                                 as one vector
    bias          |mean error|, plain and along sign(expected), / rms, beyond what chance explains

    from grasp_kernels.testing import assert_close
    assert_close(trajectory, expected_trajectory, "lifted_step_")
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

UNIT_ROUNDOFF = {
    torch.float64: 2.0**-53,
    torch.float32: 2.0**-24,
    torch.float16: 2.0**-11,
    torch.bfloat16: 2.0**-8,
}
"""Largest relative error of one rounding to the dtype, u."""

COMPUTE_ROUNDINGS = {
    "lifted_loss": 24.0,
    "lifted_loss_backward": 8.0,
    "lifted_step_": 8.0,
    "action_step_": 12.0,
    "gaussian_noise": 16.0,
    "mlp_jacobians": 128.0,
    "lifted_newton_step_": 128.0,
}
"""Roundings of the compute dtype that may pile up in one number, worst case, per op.

Subtraction, weights, products and their sum for the step; square root and division for Adam; 16 u
is the 1e-6 of the normals in float32. A loss is a sum of D squares in fixed blocks: its roundings
mostly cancel, and 24 u holds from D = 1 to D = 10**5 (1.4e-6 in float32). A Jacobian is a chain of
products whose sums are random walks of a few hundred roundings; so are the scans of the Newton
step, where the model neither grows nor shrinks states much over the horizon and damping is 1e-3 or
more: less damping, or a goal that few actions reach, magnifies what the sensitivities are off by.
"""

CHANCE = 5.0
"""Standard deviations of a mean error that chance is allowed, so a true rounding never fails."""


@dataclass(frozen=True)
class Budget:
    """Largest error in each of the four measures (see the module's docstring)."""

    elementwise: float
    relative_l2: float
    cosine: float
    bias: float


def budget(op: str, dtype: torch.dtype) -> Budget:
    """What `op` may be wrong by in results stored as `dtype`, against the same formula in float64.

    Narrow storage is computed in float32 and rounded once: one u of the storage dtype on top of the
    arithmetic. Bias is held to a tenth of the elementwise budget.
    """
    if op not in COMPUTE_ROUNDINGS:
        raise ValueError(f"op must be one of {', '.join(map(repr, COMPUTE_ROUNDINGS))}, got {op!r}")
    if dtype not in UNIT_ROUNDOFF:
        raise TypeError(f"dtype must be one of {tuple(UNIT_ROUNDOFF)}, got {dtype}")
    compute = min(UNIT_ROUNDOFF[torch.float32], UNIT_ROUNDOFF[dtype])
    error = COMPUTE_ROUNDINGS[op] * compute
    if UNIT_ROUNDOFF[dtype] > compute:
        error += UNIT_ROUNDOFF[dtype]
    # An angle a turns the vector by 1 - cos = a^2 / 2; float64 sees nothing below a few 2**-52.
    return Budget(error, error, error**2 / 2 + 2.0**-48, error / 10)


@dataclass(frozen=True)
class Errors:
    """The four measures of one comparison, and the place of the worst element."""

    elementwise: float
    relative_l2: float
    cosine: float
    bias: float
    chance: float
    worst: tuple[int, ...]


def errors(actual: Tensor, expected: Tensor, magnitude: float = 0.0) -> Errors:
    """How far `actual` is from `expected`, over the elements where both are finite.

    `magnitude` is the size of the numbers that were added up to give the result; set it where a
    small result is the difference of large ones.
    """
    a, e = actual.detach().double().flatten(), expected.detach().double().flatten()
    finite = torch.isfinite(a) & torch.isfinite(e)
    count = int(finite.sum())
    if count == 0:
        return Errors(0.0, 0.0, 0.0, 0.0, 0.0, ())
    zero = torch.zeros((), dtype=torch.float64, device=a.device)
    a, e = torch.where(finite, a, zero), torch.where(finite, e, zero)
    error = a - e
    rms = max(float(e.square().sum().div(count).sqrt()), magnitude)
    if rms == 0.0:  # nothing but zeros expected: any error is infinitely large
        wrong = math.inf if bool(error.any()) else 0.0
        return Errors(wrong, wrong, wrong, wrong, 0.0, _place(error.abs(), expected))
    ratio = error.abs() / e.abs().clamp_min(rms)
    norm = float(a.norm() * e.norm())
    cosine = 1.0 - float(a @ e) / norm if norm else (0.0 if not bool(a.any() | e.any()) else 1.0)
    length = math.sqrt(count) * rms
    bias = max(abs(float(error.sum())), abs(float((error * e.sign()).sum()))) / count / rms
    chance = CHANCE * float(error.norm()) / count / rms
    return Errors(
        elementwise=float(ratio.max()),
        relative_l2=float(error.norm()) / length,
        cosine=max(cosine, 0.0) if magnitude == 0.0 else 0.0,
        bias=bias,
        chance=chance,
        worst=_place(ratio, expected),
    )


def _place(ratio: Tensor, like: Tensor) -> tuple[int, ...]:
    index = torch.unravel_index(ratio.argmax(), like.shape)
    return tuple(int(i) for i in index)


def assert_close(
    actual: Tensor,
    expected: Tensor,
    op: str,
    *,
    dtype: torch.dtype | None = None,
    magnitude: float = 0.0,
    scale: float = 1.0,
) -> None:
    """Raise AssertionError unless `actual` keeps the budget of `op`.

    Args:
        actual: the result to judge.
        expected: the same shape, float64 for choice: the formula on the same (rounded) inputs.
        op: whose budget: a key of `COMPUTE_ROUNDINGS`.
        dtype: whose budget; None is the dtype of `actual`.
        magnitude: see `errors`; where it is given, direction is not judged.
        scale: factor on the budget, for several steps in a row.

    NaN must stand where NaN is expected and infinities must be equal.
    """
    if actual.shape != expected.shape:
        raise AssertionError(f"{op}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}")
    if actual.numel() == 0:
        return
    a, e = actual.detach().double(), expected.detach().double()
    # What is finite in float64 may overflow the storage dtype, so it is rounded for this test.
    special = ~torch.isfinite(e.to(actual.dtype))
    same = torch.where(special, (a == e.to(actual.dtype)) | (a.isnan() & e.isnan()), a.isfinite())
    if not bool(same.all()):
        where = tuple(int(i) for i in (~same).nonzero()[0])
        raise AssertionError(
            f"{op}: non-finite numbers differ in {int((~same).sum())} places, first at {where}: "
            f"{float(a[where])}, expected {float(e[where])}"
        )
    allowed = budget(op, actual.dtype if dtype is None else dtype)
    found = errors(actual, expected, magnitude)
    chance = {"bias": found.chance}
    broken = [
        f"{name} {getattr(found, name):.3g} > {limit:.3g}"
        for name in ("elementwise", "relative_l2", "cosine", "bias")
        if not getattr(found, name)
        <= (limit := scale * getattr(allowed, name) + chance.get(name, 0.0))
    ]
    if broken:
        raise AssertionError(
            f"{op} ({actual.dtype}) is beyond its error budget: {'; '.join(broken)}; "
            f"worst element at {found.worst}: "
            f"{float(a[found.worst]):.9g}, expected {float(e[found.worst]):.9g}"
        )
