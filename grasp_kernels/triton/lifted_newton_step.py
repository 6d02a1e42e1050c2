"""One lifted Gauss-Newton step of whole plans, a plan a program.

The equations are those of `reference.lifted_newton_step_`. Time is walked through twice, step by
step, with products of D by D numbers in registers: back, for the goal error and its sensitivity S
to every block of actions, and forth, to move the states. S waits in scratch, one D by A matrix per
block; an action that leaves the problem is a column of it that is set to zero.

The scans are float32. `S S^T` squares the condition of S, so the small system is summed and solved
in float64: with little damping nothing would be left of float32.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from grasp_kernels.reference.lifted_newton_step import JITTER
from grasp_kernels.triton import configs

MAX_SIZE = 64
DEPTH = tl.constexpr(16)
WARPS = {16: 2, 32: 8, 64: 8}
"""By the longest side of a matrix: as many as it takes for all to stay in registers."""
RUNTIME_INTEGERS = ["steps", "hold", "solves"]


def newton_fits(state_features: int, action_features: int) -> bool:
    """Whether the kernel takes plans of these sizes: a matrix of each is held in registers."""
    return max(state_features, action_features) <= MAX_SIZE


def padded(size: int) -> int:
    """The side of a matrix of `size` rows or columns: what a product takes, at least 16."""
    return max(16, triton.next_power_of_2(size))


def newton_options(rows: int, columns: int) -> dict[str, Any]:
    """How it is compiled, for padded sizes."""
    options = {"num_warps": WARPS[max(rows, columns)], **configs.OPTIONS}
    if torch.version.hip is None:
        options["maxnreg"] = 255  # said outright: see mlp_structure.py
    return options


@triton.jit(do_not_specialize=RUNTIME_INTEGERS)
def lifted_newton_step_kernel(
    trajectory, actions, prediction, state_jacobian, action_jacobian, goal, damping,
    goal_weight, low, high, goal_error, defect, largest_step, sensitivity, kept,
    max_action_step, max_state_step, steps, hold, solves,
    FEATURES: tl.constexpr, ACTIONS: tl.constexpr, D: tl.constexpr, A: tl.constexpr,
    JITTER: tl.constexpr,
):  # fmt: skip
    plan = tl.program_id(0).to(tl.int64)
    trajectory += plan * (steps + 1) * FEATURES
    actions += plan * steps * ACTIONS
    prediction += plan * steps * FEATURES
    state_jacobian += plan * steps * FEATURES * FEATURES
    action_jacobian += plan * steps * FEATURES * ACTIONS
    blocks = tl.cdiv(steps, hold)
    sensitivity += plan * blocks * (D * A)
    kept += plan * (D * D)

    error, size, defects, weighed = scan_back(
        trajectory, prediction, state_jacobian, action_jacobian, goal + plan * FEATURES,
        goal_weight, sensitivity, kept, steps, hold, FEATURES, ACTIONS, D, A,
    )  # fmt: skip
    tl.store(goal_error + plan, tl.sum(error * error))
    tl.store(defect + plan, defects)
    damped = tl.load(damping + plan).to(tl.float64) + JITTER
    mu = damped * size / tl.maximum(weighed, 1).to(tl.float64)
    forces = tl.zeros([D, 1], tl.float64)  # of which nothing is dropped yet
    for _ in tl.range(0, solves):
        tl.debug_barrier()
        gram = drop(actions, low, high, sensitivity, forces, blocks, hold, ACTIONS, D, A)
        forces = solve(gram, mu, error, FEATURES, D)
    tl.debug_barrier()
    largest = scan_forth(
        trajectory, actions, prediction, state_jacobian, action_jacobian, low, high, sensitivity,
        forces, max_action_step, max_state_step, steps, hold, FEATURES, ACTIONS, D, A,
    )  # fmt: skip
    tl.store(largest_step + plan, largest)


@triton.jit
def load_vector(base, size, PADDED: tl.constexpr):
    """`size` numbers, then zeros."""
    index = tl.arange(0, PADDED)
    return tl.load(base + index, mask=index < size, other=0.0)


@triton.jit
def load_matrix(base, rows, COLUMNS: tl.constexpr, D: tl.constexpr, PADDED: tl.constexpr):
    """`rows` by COLUMNS numbers, zeros around them."""
    row, column = tl.arange(0, D)[:, None], tl.arange(0, PADDED)[None, :]
    mask = (row < rows) & (column < COLUMNS)
    return tl.load(base + row * COLUMNS + column, mask=mask, other=0.0)


@triton.jit
def places(PITCH: tl.constexpr, D: tl.constexpr, COUNT: tl.constexpr):
    """Of D rows of COUNT numbers in scratch, PITCH apart."""
    return tl.arange(0, D)[:, None] * PITCH + tl.arange(0, COUNT)[None, :]


@triton.jit
def multiply(
    x, kept, base, total,
    SIZE: tl.constexpr, COLUMNS: tl.constexpr, D: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """`total + x @ matrix`, of SIZE by COLUMNS numbers at `base`; `kept` points to x in memory.

    A product without tensor cores holds whole rows and columns of its factors in registers, so
    where they are long it is done DEPTH columns of x at a time, which only memory can be asked for.
    """
    if D == DEPTH:
        lines = load_matrix(base, SIZE, COLUMNS, D, PADDED)
        total = tl.dot(x, lines, total, input_precision="ieee")
    else:
        for first in tl.range(0, SIZE, DEPTH):
            part = tl.load(kept + first + places(D, D, DEPTH))
            lines = load_matrix(base + first * COLUMNS, SIZE - first, COLUMNS, DEPTH, PADDED)
            total = tl.dot(part, lines, total, input_precision="ieee")
    return total


@triton.jit
def scan_back(
    trajectory, prediction, state_jacobian, action_jacobian, goal, goal_weight, sensitivity,
    kept, steps, hold,
    FEATURES: tl.constexpr, ACTIONS: tl.constexpr, D: tl.constexpr, A: tl.constexpr,
):  # fmt: skip
    """Stores S of every block. Returns the error [D] where the linearised rollout ends, `|S|^2`,
    the squared defects, and how many features have a weight.
    """
    row, column = tl.arange(0, D), tl.arange(0, D)
    root = tl.where(row < FEATURES, 1.0, 0.0)
    if goal_weight is not None:
        root = tl.sqrt_rn(load_vector(goal_weight, FEATURES, D))
    last = steps.to(tl.int64)
    end = load_vector(trajectory + last * FEATURES, FEATURES, D)
    # A feature without weight has no error, whatever its goal.
    error = tl.where(root == 0.0, 0.0, root * (end - load_vector(goal, FEATURES, D)))
    through = tl.where(row[:, None] == column[None, :], root[:, None], 0.0)
    size = tl.full([], 0.0, tl.float64)
    s = tl.zeros([D, A], tl.float32)
    defects = 0.0
    for back in tl.range(0, steps):
        step = steps - 1 - back
        t = step.to(tl.int64)
        d = load_vector(prediction + t * FEATURES, FEATURES, D)
        d -= load_vector(trajectory + (t + 1) * FEATURES, FEATURES, D)
        defects += tl.sum(d * d)
        error += tl.sum(through * d[None, :], axis=1)
        if D > DEPTH:
            tl.debug_barrier()
            tl.store(kept + places(D, D, D), through)
            tl.debug_barrier()
        b = action_jacobian + t * (FEATURES * ACTIONS)
        s = multiply(through, kept, b, s, FEATURES, ACTIONS, D, A)
        a = state_jacobian + t * (FEATURES * FEATURES)
        nothing = tl.zeros([D, D], tl.float32)
        through = multiply(through, kept, a, nothing, FEATURES, FEATURES, D, D)
        if step % hold == 0:
            tl.store(sensitivity + (step // hold).to(tl.int64) * (D * A) + places(A, D, A), s)
            wide = s.to(tl.float64)
            size += tl.sum(wide * wide)
            s = tl.zeros([D, A], tl.float32)
    return error, size, defects, tl.sum((root > 0.0).to(tl.int32))


@triton.jit
def solve(gram, mu, error, FEATURES: tl.constexpr, D: tl.constexpr):
    """`(gram + mu I)^-1 error` [D, 1], by elimination; as all pivots are positive, none is sought.

    Where mu is 0 so is S, and whatever is returned moves nothing.
    """
    row, column = tl.arange(0, D)[:, None], tl.arange(0, D)[None, :]
    rest = gram + tl.where(row == column, tl.where(mu == 0.0, 1.0, mu), 0.0)
    right = error.to(tl.float64)[:, None]
    for j in tl.range(0, FEATURES):
        line = tl.sum(tl.where(row == j, rest, 0.0), axis=0, keep_dims=True)
        below = tl.sum(tl.where(column == j, rest, 0.0), axis=1, keep_dims=True)
        pivot = tl.sum(tl.where(column == j, line, 0.0))
        factor = tl.where(row > j, below / pivot, 0.0)
        right -= factor * tl.sum(tl.where(row == j, right, 0.0))
        rest -= factor * line
    for i in tl.range(0, FEATURES):
        j = FEATURES - 1 - i
        above = tl.sum(tl.where(column == j, rest, 0.0), axis=1, keep_dims=True)
        pivot = tl.sum(tl.where(row == j, above, 0.0))
        found = tl.sum(tl.where(row == j, right, 0.0)) / pivot
        right = tl.where(row < j, right - above * found, tl.where(row == j, found, right))
    return right


@triton.jit
def least_squares(s, forces):
    """The step [A] of a block's actions: `-s^T forces`."""
    return -tl.sum(s.to(tl.float64) * forces, axis=0).to(tl.float32)


@triton.jit
def drop(
    actions, low, high, sensitivity, forces, blocks, hold,
    ACTIONS: tl.constexpr, D: tl.constexpr, A: tl.constexpr,
):  # fmt: skip
    """Sets to zero the columns of S of actions that are at a bound and would leave the box; returns
    `S S^T` without them. Products of float32 numbers are exact in float64."""
    gram = tl.zeros([D, D], tl.float64)
    for _ in tl.range(0, blocks):
        for first in tl.range(0, ACTIONS, DEPTH):
            place = sensitivity + first + places(A, D, DEPTH)
            s = tl.load(place)
            delta = least_squares(s, forces)
            held = load_vector(actions + first, ACTIONS - first, DEPTH)
            outward = tl.zeros([DEPTH], tl.int1)
            if low is not None:
                bound = load_vector(low + first, ACTIONS - first, DEPTH)
                outward |= (held <= bound) & (delta < 0.0)
            if high is not None:
                bound = load_vector(high + first, ACTIONS - first, DEPTH)
                outward |= (held >= bound) & (delta > 0.0)
            s = tl.where(outward[None, :], 0.0, s)
            tl.debug_barrier()
            tl.store(place, s)
            wide = s.to(tl.float64)
            gram = tl.dot(wide, tl.trans(wide), gram, out_dtype=tl.float64)
        sensitivity += D * A
        actions += hold.to(tl.int64) * ACTIONS
    return gram


@triton.jit
def at_least(x, bound):
    """Lets a NaN through, as torch does: it has to be seen, not turned into a bound."""
    return tl.maximum(x, bound, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def at_most(x, bound):
    return tl.minimum(x, bound, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def scan_forth(
    trajectory, actions, prediction, state_jacobian, action_jacobian, low, high, sensitivity,
    forces, max_action_step, max_state_step, steps, hold,
    FEATURES: tl.constexpr, ACTIONS: tl.constexpr, D: tl.constexpr, A: tl.constexpr,
):  # fmt: skip
    """Moves actions and states; returns the largest change of an action."""
    action = tl.arange(0, A)
    feature = tl.arange(0, D)
    moved = tl.zeros([A], tl.float32)
    largest = tl.zeros([A], tl.float32)
    change = tl.zeros([D], tl.float32)
    for step in tl.range(0, steps):
        held = load_vector(actions, ACTIONS, A)
        if step % hold == 0:
            delta = least_squares(tl.load(sensitivity + places(A, D, A)), forces)
            moved = held + at_most(at_least(delta, -max_action_step), max_action_step)
            if low is not None:
                moved = at_least(moved, load_vector(low, ACTIONS, A))
            if high is not None:
                moved = at_most(moved, load_vector(high, ACTIONS, A))
            sensitivity += D * A
        largest = at_least(largest, tl.abs(moved - held))
        trajectory += FEATURES
        state = load_vector(trajectory, FEATURES, D)
        d = load_vector(prediction, FEATURES, D) - state
        a = load_matrix(state_jacobian, FEATURES, FEATURES, D, D)
        b = load_matrix(action_jacobian, FEATURES, ACTIONS, D, A)
        change = tl.sum(a * change[None, :], axis=1) + d
        change += tl.sum(b * (moved - held)[None, :], axis=1)
        change = at_most(at_least(change, -max_state_step), max_state_step)
        tl.debug_barrier()  # a short row is read by more threads than the one that writes it
        tl.store(actions + action, moved, mask=action < ACTIONS)
        tl.store(trajectory + feature, state + change, mask=feature < FEATURES)
        actions += ACTIONS
        prediction += FEATURES
        state_jacobian += FEATURES * FEATURES
        action_jacobian += FEATURES * ACTIONS
    return tl.reduce(largest, 0, at_least)


def lifted_newton_step_(
    trajectory: Tensor,
    actions: Tensor,
    prediction: Tensor,
    state_jacobian: Tensor,
    action_jacobian: Tensor,
    goal: Tensor,
    damping: Tensor,
    goal_weight: Tensor | None,
    low: Tensor | None,
    high: Tensor | None,
    hold: int,
    max_action_step: float,
    max_state_step: float,
    solves: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Moves `trajectory` (N, T+1, D) and `actions` (N, T, A); what was met, three of (N,)."""
    plans, steps, width = actions.shape
    features = trajectory.shape[2]
    goal_error, defect, largest_step = (trajectory.new_empty(plans) for _ in range(3))
    if plans == 0:
        return goal_error, defect, largest_step
    hold = min(hold, steps)
    rows, columns = padded(features), padded(width)
    with configs.on_device(trajectory):
        lifted_newton_step_kernel[(plans,)](
            trajectory,
            actions,
            prediction,
            state_jacobian,
            action_jacobian,
            goal,
            damping,
            goal_weight,
            low,
            high,
            goal_error,
            defect,
            largest_step,
            trajectory.new_empty(plans, triton.cdiv(steps, hold), rows, columns),
            trajectory.new_empty(plans, rows, rows),
            max_action_step,
            max_state_step,
            steps,
            hold,
            solves,
            FEATURES=features,
            ACTIONS=width,
            D=rows,
            A=columns,
            JITTER=JITTER,
            **newton_options(rows, columns),
        )
    return goal_error, defect, largest_step
