"""One projected gradient step on the actions, plain or Adam, then the box: one pass.

A plan's actions are read as one line of T A numbers, so that accesses stay wide for any A (often
2); only the bounds, a handful of numbers in cache, are gathered by `index mod A`.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from grasp_kernels.triton import configs

BLOCK = 1024
WARPS = 4
RUNTIME_INTEGERS = ["lr_stride", "numbers", "width"]


@triton.jit(do_not_specialize=RUNTIME_INTEGERS)
def action_step_kernel(
    actions,
    gradient,
    first_moment,
    second_moment,
    lr,
    low,
    high,
    beta1,
    one_minus_beta1,
    beta2,
    one_minus_beta2,
    epsilon,
    inverse_correction1,
    inverse_correction2,
    lr_stride,
    numbers,
    width,
    BLOCK: tl.constexpr,
    VECTOR: tl.constexpr,
):
    plan = tl.program_id(0).to(tl.int64)
    index = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = tl.max_constancy(index < numbers, [VECTOR])
    offset = plan * numbers + index
    if VECTOR > 1:
        offset = tl.multiple_of(offset, [VECTOR])
    dtype = actions.dtype.element_ty

    action = tl.load(actions + offset, mask=mask, other=0.0).to(tl.float32)
    move = tl.load(gradient + offset, mask=mask, other=0.0).to(tl.float32)
    step = tl.load(lr + plan * lr_stride).to(tl.float32)
    if first_moment is not None:
        m = tl.load(first_moment + offset, mask=mask, other=0.0)
        v = tl.load(second_moment + offset, mask=mask, other=0.0)
        m = tl.fma(beta1, m, one_minus_beta1 * move)
        v = tl.fma(beta2, v, one_minus_beta2 * (move * move))
        tl.store(first_moment + offset, m, mask=mask)
        tl.store(second_moment + offset, v, mask=mask)
        move = m / (tl.sqrt(v * inverse_correction2) + epsilon)
        step *= inverse_correction1
    # The box holds for what is stored, hence after rounding to the storage dtype. A NaN passes, as
    # in torch.clamp: it has to be seen, not turned into a bound.
    action = tl.fma(-step, move, action).to(dtype).to(tl.float32)
    column = index % width
    if low is not None:
        bound = tl.load(low + column, mask=mask, other=0.0).to(tl.float32)
        action = tl.maximum(action, bound, propagate_nan=tl.PropagateNan.ALL)
    if high is not None:
        bound = tl.load(high + column, mask=mask, other=0.0).to(tl.float32)
        action = tl.minimum(action, bound, propagate_nan=tl.PropagateNan.ALL)
    tl.store(actions + offset, action.to(dtype), mask=mask)


def action_step_(
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
    """Moves `actions` (N, T, A) and the moments in place; without moments it is plain descent."""
    plans, steps, width = actions.shape
    numbers = steps * width
    if plans * numbers == 0:
        return
    lines = [
        None if x is None else x.view(plans, numbers)
        for x in (actions, gradient, first_moment, second_moment)
    ]
    with configs.on_device(actions):
        action_step_kernel[(plans, triton.cdiv(numbers, BLOCK))](
            *lines,
            lr,
            low,
            high,
            beta1,
            1 - beta1,  # here, in float64: 1 - float32(0.999) is off by 1e-5
            beta2,
            1 - beta2,
            epsilon,
            1 / correction1,
            1 / correction2,
            lr.stride(0),
            numbers,
            width,
            BLOCK=BLOCK,
            VECTOR=configs.vector(*lines),
            num_warps=WARPS,
            **configs.OPTIONS,
        )
