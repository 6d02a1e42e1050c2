"""One projected gradient step on a tile of actions inside an MLP kernel, plain or Adam."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def is_finite(x):
    return tl.abs(x) < float("inf")


@triton.jit
def complement(x):
    """`1 - x` of a float64 number, rounded once: in float32, 1 - 0.999 is off by 1e-5."""
    return (tl.full([], 1.0, tl.float64) - x).to(tl.float32)


@triton.jit
def narrow(x):
    return tl.full([], x, tl.float64).to(tl.float32)


@triton.jit
def step_actions(
    actions, first_moment, second_moment, offset, column, mask, move, lr, low, high,
    beta1, beta2, power1, power2, epsilon,
):  # fmt: skip
    """`reference.action_step.action_update_` on the actions at `offset`, features `column`.

    The betas, and their powers by the number of the step, are float64.
    """
    action = tl.load(actions + offset, mask=mask, other=0.0)
    if first_moment is not None:
        m = tl.load(first_moment + offset, mask=mask, other=0.0)
        v = tl.load(second_moment + offset, mask=mask, other=0.0)
        m = tl.fma(m, narrow(beta1), complement(beta1) * move)
        v = tl.fma(v, narrow(beta2), complement(beta2) * (move * move))
        tl.store(first_moment + offset, m, mask=mask)
        tl.store(second_moment + offset, v, mask=mask)
        spread = tl.sqrt(v * (1.0 / complement(power2))) + epsilon
        move = m * (1.0 / complement(power1)) / spread
    action = tl.fma(-lr, move, action)
    # A NaN passes, as in torch.clamp: it has to be seen, not turned into a bound.
    if low is not None:
        bound = tl.load(low + column, mask=mask, other=0.0)
        action = tl.maximum(action, bound, propagate_nan=tl.PropagateNan.ALL)
    if high is not None:
        bound = tl.load(high + column, mask=mask, other=0.0)
        action = tl.minimum(action, bound, propagate_nan=tl.PropagateNan.ALL)
    tl.store(actions + offset, action, mask=mask)
