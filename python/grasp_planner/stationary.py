"""Plans as stationary points: their cost as a function of actions, its derivatives, the way there.

    gradient g = dJ/da, Hessian H = d²J/da² of J(a), the cost of the true rollout of actions a

Nothing here makes a matrix. A product `H v` is the gradient of `g . v` (Pearlmutter, *Fast exact
multiplication by the Hessian*, 1994); systems are solved by conjugate residuals. Every problem is
by itself: its steps, its damping, when it is done.

Symbols: b problems, T steps, K blocks of held actions, A action features, S numbers of a start.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from grasp_planner.action_box import ActionBox
from grasp_planner.blocks import hold_actions
from grasp_planner.costs import Objective
from grasp_planner.inputs import tensors_of
from grasp_planner.matrix_free import dot
from grasp_planner.newton import LARGER, SMALLER, along
from grasp_planner.world_model import CheckedModel, WorldModelError, is_out_of_memory, needed

TWICE = (
    "world_model, or config.cost, cannot be differentiated twice, which the derivative of a plan "
    "takes"
)
ROUGHLY = 1e-2  # the part of a gradient that a Newton step may leave: products are what it costs
STEEPEST = 16  # products of a power iteration, for the largest curvature to a few per cent


@dataclass(frozen=True, eq=False)
class PlanCost:
    """J of b problems: of blocks `(b, K, A)` in units of half the box, where the box is a cube."""

    model: CheckedModel
    objective: Objective
    start: Tensor  # (b, S), scaled
    box: ActionBox

    def take(self, rows: Tensor) -> PlanCost:
        """Of the problems `rows`."""
        return replace(self, start=self.start[rows], objective=self.objective.take(rows))

    def actions(self, blocks: Tensor) -> Tensor:
        """`(b, T, A)`; not clipped, since a bound is no reason for a gradient to be 0."""
        return self.held(self.box.centre + self.box.half_width * blocks)

    def held(self, blocks: Tensor) -> Tensor:
        """What there is of each block, of every step: `(b, K, A)` to `(b, T, A)`."""
        config = self.objective.config
        return hold_actions(blocks, config.hold, config.horizon)

    def rolled(self, actions: Tensor) -> tuple[Tensor, Tensor]:
        """States `(b, T + 1, D)`, scaled, and cost `(b,)`."""
        states = self.model.rollout(self.start, actions)
        return states, self.objective.judged(states[:, None], actions[:, None])[0][:, 0]

    def __call__(self, blocks: Tensor) -> Tensor:
        return self.rolled(self.actions(blocks))[1]

    def tensors(self) -> list[Tensor]:
        """What it is asked with, of which derivatives may be wanted: start, goal, context."""
        objective = self.objective
        given = [self.start, *objective.target.tensors(), *tensors_of(objective.context)]
        return [tensor for tensor in given if tensor.requires_grad]


class Derivatives:
    """J at `blocks (b, K, A)`, its gradient, and products with its second derivatives.

    One rollout's graph is all that is kept, however many products are made with it.

    Attributes:
        cost: `(b,)`, with its graph. gradient: `(b, K, A)`.
        free: `(b, K, A)` bool, the actions that no bound keeps where they are: all others are at a
            bound that the gradient presses them to.
        norm: `(b,)`, of the gradient of the free actions.
    """

    def __init__(self, cost: PlanCost, blocks: Tensor) -> None:
        with torch.enable_grad():
            self.at = blocks.detach().requires_grad_()
            self.cost = cost(self.at)
            (graph,) = torch.autograd.grad(
                self.cost.sum(), self.at, create_graph=True, allow_unused=True
            )
        self.graph = needed(graph)
        self.gradient = self.graph.detach()
        self.free = cost.box.free_units(blocks, -self.gradient)
        self.norm = dot(self.gradient * self.free, self.gradient).sqrt()

    def product(self, direction: Tensor) -> Tensor:
        """`H direction` among the free actions, `(b, K, A)`, of which alone `direction` is, too."""
        (found,) = self.pulled(direction, [self.at])
        return torch.zeros_like(direction) if found is None else found * self.free

    def damped(self, damping: Tensor) -> Callable[[Tensor], Tensor]:
        """Products with `H + damping I`, `damping (b,)`."""
        return lambda v: self.product(v) + along_rows(damping, v)

    def pulled(self, cotangent: Tensor, inputs: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
        """The gradient of `g . cotangent` for each input; None where g does not depend on it.

        None, too, for a weight that was frozen in the meantime, as torch has it.
        """
        wanted = [tensor for tensor in inputs if tensor.requires_grad]
        if not wanted or not self.graph.requires_grad:  # without a graph J is linear in the actions
            return (None,) * len(inputs)
        try:
            found = iter(
                torch.autograd.grad(
                    self.graph, wanted, cotangent, retain_graph=True, allow_unused=True
                )
            )
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            raise WorldModelError(f"{TWICE}: {error}") from error
        return tuple(next(found) if tensor.requires_grad else None for tensor in inputs)

    def check_twice(self) -> None:
        """Autograd goes round a function that is differentiable but once, and says nothing."""
        if any(type(node).__name__ == "Error" for node in _nodes(self.graph, ())):
            raise WorldModelError(f"{TWICE}: a function in it is marked @once_differentiable")


def least_solution(
    product: Callable[[Tensor], Tensor],
    right: Tensor,
    iterations: int,
    tolerance: float | None = None,
) -> tuple[Tensor, Tensor]:
    """The least x of `H x = right`, `(b, ...)`, by conjugate residuals; and who has it, `(b,)`.

    `tolerance`: of `|right - H x| / |right|`; None is close to what the dtype can tell.
    Conjugate gradients in the inner product of H (Stiefel, 1955): `|right - H x|` falls in every
    iteration, and for a singular H >= 0 the residual ends as the part of `right` that H cannot
    make. Orthogonal to that, x is the pseudo-inverse's, the solution of least norm. Where H turns
    out to have a direction of negative curvature, x is what was found until then.
    """
    eps = torch.finfo(right.dtype).eps
    tolerance, null = eps**0.75 if tolerance is None else tolerance, 10 * eps
    x, residual = torch.zeros_like(right), right
    image = product(residual)
    direction, ahead = residual, image
    first = size = dot(residual, residual)
    curvature = dot(residual, image)
    most = torch.zeros_like(size)  # the largest curvature that was met
    solved = lost = broken = torch.zeros_like(size, dtype=torch.bool)
    for iteration in range(iterations + 1):
        reach = dot(ahead, ahead)
        most = torch.maximum(most, (reach / dot(direction, direction)).nan_to_num(0.0, 0.0).sqrt())
        floor = null * most * size
        solved = solved | (size <= tolerance**2 * first)
        lost = lost | (~solved & (curvature.abs() <= floor))
        broken = broken | (~solved & ~lost & ~(curvature > 0))  # NaN, too
        going = ~(solved | lost | broken)
        if iteration == iterations or not bool(going.any()):
            break
        rate = torch.where(going, curvature / reach, 0.0)
        x = x + along_rows(rate, direction)
        residual = residual - along_rows(rate, ahead)
        image = product(residual)
        found = dot(residual, image)
        ratio = torch.where(going, found / curvature, 0.0)
        direction = along(going, residual + along_rows(ratio, direction), direction)
        ahead = along(going, image + along_rows(ratio, ahead), ahead)
        curvature = torch.where(going, found, curvature)
        size = torch.where(going, dot(residual, residual), size)
    share = torch.where(lost & (size > 0), dot(x, residual) / size, 0.0)
    return x - along_rows(share, residual), solved | lost


def along_rows(factors: Tensor, values: Tensor) -> Tensor:
    """`values (b, ...)`, row by row times `factors (b,)`; to the bit 0 where a factor is 0."""
    scaled = factors.view(-1, *[1] * (values.dim() - 1)) * values
    return along(factors == 0, torch.zeros_like(scaled), scaled)


def largest_curvature(here: Derivatives) -> Tensor:
    """Of H among the free actions, `(b,)`, by a power iteration."""
    shape = here.gradient.shape[1:]
    mixed = torch.arange(math.prod(shape), device=here.gradient.device).to(here.gradient).cos()
    vector = (1 + mixed.view(shape)) * here.free
    size = dot(vector, vector)
    for _ in range(STEEPEST):
        vector = here.product(along_rows(dot(vector, vector).clamp_min(1e-30).rsqrt(), vector))
        size = dot(vector, vector).sqrt()
    return size


def polish(
    cost: PlanCost, blocks: Tensor, iterations: int, tolerance: float, cg_iterations: int
) -> tuple[Tensor, Tensor]:
    """Projected Newton steps on the true cost, until the free actions' gradient is small.

    Returns where they end, `(b, K, A)`, and that gradient's norm, `(b,)`, inf where no number is
    finite.

    The direction is `-(H + r |g| I)^-1 g` among the free actions (Bertsekas, 1982), damped by the
    gradient's own size, so that steps end up quadratic where H is singular, too (Li, Fukushima, Qi
    and Yamashita, 2004). A step that does not make the cost smaller is tried again, shorter; then,
    and where a curvature was negative, the next one is damped more.
    """
    best = blocks.clone()
    best_cost = torch.full_like(cost.start[:, 0], torch.inf)
    best_norm, ratio = torch.full_like(best_cost, torch.inf), torch.ones_like(best_cost)
    step = torch.zeros_like(best)
    rows = torch.arange(len(blocks), device=blocks.device)
    eps = torch.finfo(blocks.dtype).eps
    for iteration in range(iterations + 1):
        here = Derivatives(cost.take(rows), cost.box.clip_units(best[rows] + step[rows]))
        found = here.cost.detach()
        sound = torch.isfinite(found) & torch.isfinite(here.norm)
        # Close to the minimum costs differ by rounding alone, and gradients tell (Hager and Zhang).
        level = found - best_cost[rows] <= eps ** (2 / 3) * best_cost[rows].abs()
        flatter = here.norm < best_norm[rows] / 2
        better = sound & ((found < best_cost[rows]) | (level & flatter))
        best[rows] = along(better, here.at.detach(), best[rows])
        best_cost[rows] = torch.where(better, found, best_cost[rows])
        best_norm[rows] = torch.where(better, here.norm, best_norm[rows])
        if iteration == iterations:
            break
        ratio[rows] = (ratio[rows] * torch.where(better, SMALLER, LARGER)).clamp(1e-12, 1e12)
        damping = ratio[rows] * best_norm[rows]
        right = along(better, -here.gradient * here.free, torch.zeros_like(here.gradient))
        ahead, solved = least_solution(here.damped(damping), right, cg_iterations, ROUGHLY)
        # Where H + damping I is not positive, the way so far, or as far as the gradient curves.
        ratio[rows] = torch.where(solved, ratio[rows], LARGER**2 * ratio[rows])
        lost = ~solved & ~(dot(ahead, right) > 0)
        if bool(lost.any()):
            bend = here.product(right)
            short = (dot(right, right) / dot(bend, bend)).sqrt()
            ahead = along(lost, along_rows(short, right), ahead)
        step[rows] = along(better, ahead, SMALLER * step[rows])
        moves = (step[rows].abs() > eps * (1 + best[rows].abs())).flatten(1).any(1)
        rows = rows[(best_norm[rows] > tolerance) & torch.isfinite(best_cost[rows]) & moves]
        if not len(rows):
            break
    return best, best_norm


def descended(cost: PlanCost, here: Derivatives, count: int) -> Tensor:
    """`count` steps of projected gradient descent, each a part of the graph, `(b, K, A)`.

    From `here`, of size 1 / the largest curvature there; both are constants.
    """
    curvature = largest_curvature(here)
    size = torch.where(curvature > 0, 1 / curvature, 0.0)
    moving = here.at.detach().requires_grad_()
    for _ in range(count):
        (gradient,) = torch.autograd.grad(cost(moving).sum(), moving, create_graph=True)
        moving = cost.box.clip_units(moving - size[:, None, None] * gradient)
    return moving


def depends_on(output: Tensor, known: Sequence[Tensor]) -> list[Tensor]:
    """The leaves that an output's gradient would reach, but not by way of `known` tensors."""
    nodes = _nodes(output, known)
    leaves = [node.variable for node in nodes if type(node).__name__ == "AccumulateGrad"]
    return [leaf for leaf in leaves if not any(leaf is tensor for tensor in known)]


def _nodes(output: Tensor, known: Sequence[Tensor]) -> Iterator[Any]:
    """The nodes of an output's graph, but not those behind `known` tensors."""
    seen = {None, *(tensor.grad_fn for tensor in known)}
    stack: list[Any] = [output.grad_fn]
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            yield node
            stack.extend(parent for parent, _ in node.next_functions)
