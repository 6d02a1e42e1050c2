"""Learning through the plan: gradients of plans for what they were asked with.

A plan is a minimum of its cost J, so among its actions `a` that no bound holds, `g = dJ/da = 0`.
For small changes of anything x that J depends on (start, goal, context, weights of the world model
or of a cost) that goes on to hold, which is how a moves (the implicit function theorem):

    H da = -(dg/dx) dx,    H = d²J/da²        so for a loss L(a)    dL/dx = -(dg/dx)^T H^-1 dL/da

One solve with H gives all of it, and how the plan was found does not matter: memory is one
rollout's, whatever the iterations of the search. docs/learning.md has the whole story.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from grasp_planner.action_box import ActionBox
from grasp_planner.base import Planner
from grasp_planner.blocks import first_of_blocks
from grasp_planner.costs import Objective
from grasp_planner.goals import Goal
from grasp_planner.inputs import Context, Problem, check_problem
from grasp_planner.lifted_newton import LiftedNewtonConfig, LiftedNewtonPlanner
from grasp_planner.options import check_whole
from grasp_planner.plan import Plan, in_short, level_of_caller
from grasp_planner.stationary import (
    Derivatives,
    PlanCost,
    depends_on,
    descended,
    least_solution,
    polish,
)
from grasp_planner.world_model import CheckedModel, WorldModel, frozen

METHODS = ("implicit", "unroll")
TOLERANCE = {torch.float64: 1e-8}  # of the gradient's norm; of any other dtype:
LOOSE = 1e-4


class DerivativeWarning(RuntimeWarning):
    """The derivatives of some plans are not what they should be; the message says which and why."""


@dataclass(frozen=True, eq=False)
class DifferentiablePlan:
    """Plans as functions of what they were asked with. B problems, T steps.

    Attributes:
        actions: `(B, T, A)`, inside the bounds, differentiable.
        states: `(B, T + 1, D)`, their rollout, differentiable, by way of the actions and directly;
            NaN after the start, as cost is inf, where no plan is finite: gradients know nothing of
            such a problem.
        cost: `(B,)`, the whole cost, differentiable. Weights by `Schedule` are those at its end.
        gradient_norm: `(B,)`, of the cost by the actions that no bound holds, in units of half the
            box: how far from stationary the plans are; inf where none is finite.
        converged: `(B,)` bool, whether that is at most the tolerance.
        at_bound: `(B, T, A)` bool, actions that a bound holds: they do not move with anything.
        searched: what the planner's search had found; None without one.
    """

    actions: Tensor
    states: Tensor
    cost: Tensor
    gradient_norm: Tensor
    converged: Tensor
    at_bound: Tensor
    searched: Plan | None


def differentiable_plan(
    world_model: WorldModel,
    start: Tensor | Mapping[str, Tensor],
    goal: Tensor | Mapping[str, Tensor] | Goal,
    *,
    config: LiftedNewtonConfig | None = None,
    planner: Planner | None = None,
    actions: Tensor | None = None,
    search: bool = True,
    plan_ids: Tensor | None = None,
    context: Context | None = None,
    past_actions: Tensor | None = None,
    method: str = "implicit",
    unroll: int = 20,
    tolerance: float | None = None,
    polish_steps: int = 100,
    cg_iterations: int = 200,
    damping: float = 0.0,
) -> DifferentiablePlan:
    """Plans, and their gradients for start, goal, context, and the weights of models and costs.

        plan = differentiable_plan(world_model, start, goal, config=LiftedNewtonConfig(...))
        loss = (plan.actions - demonstration).square().mean()
        loss.backward()                     # reaches every weight that the plan depends on

    A search finds the plans; Newton's steps on the true cost make them stationary; then their
    gradients are those of the local minimum that they are. Whatever requires grad when this is
    called, and the cost of a plan depends on, gets its gradient (an `MLPDynamics` is detached from
    its weights, a module that offers one is not). Derivatives are the full-precision
    world model's, in evaluation mode; it is left as it was found. A cost is called in its own mode.

    Args:
        world_model, start, goal, plan_ids, context, past_actions: as of `Planner.plan`.
        config: of a `LiftedNewtonPlanner`, which searches.
        planner: another one, over `world_model`, in the place of `config`.
        actions: `(B, T, A)` warm start.
        search: whether to search at all; without, plans are the minima that `actions` lead to,
            which is quick, and the same minima again in a loop of learning.
        method: "implicit", as above, or "unroll": the derivative of the last `unroll` steps, of
            projected gradient descent from the plan, which is a constant there.
        unroll: how many; memory grows with it. >= 1; 20.
        tolerance: of `gradient_norm`, above which a plan is not stationary, and warned about. >= 0;
            None is 1e-8 in float64, 1e-4 else.
        polish_steps: of Newton's, at most. >= 0; 100.
        cg_iterations: of each solve, at most; as many as there are free actions are exact but for
            rounding. >= 1; 200.
        damping: mu, added to H on the way back, in units of half the box: the gradient is then that
            of the plan which also minimises `mu/2 |a - a*|²` around what was found, a*. >= 0; 0.
            Where H is singular the plan is one of many, and without damping its gradient is the one
            in which actions move least.

    Raises:
        TypeError, ValueError: an argument is wrong, or the config has constraints; it is named.
        WorldModelError: the world model raised an error; or it, or the cost, cannot be
            differentiated twice (which may be found on the way back only).
        RuntimeError: on the way back with `create_graph=True`, of an implicit plan.

    Warns:
        DerivativeWarning: plans are not stationary, or (on the way back) a solve did not end.
    """
    planner = _planner(world_model, config, planner)
    if method not in METHODS:
        raise ValueError(f"method must be 'implicit' or 'unroll', got {method!r}")
    unroll = check_whole("unroll", unroll, 1)
    polish_steps = check_whole("polish_steps", polish_steps, 0)
    cg_iterations = check_whole("cg_iterations", cg_iterations, 1)
    damping = _not_negative("damping", damping)
    if tolerance is not None:
        tolerance = _not_negative("tolerance", tolerance)
    if not search and actions is None:
        raise ValueError("actions must be given where search is False, got None")
    asked: dict[str, Any] = {"plan_ids": plan_ids, "context": context, "past_actions": past_actions}
    searched = planner.plan(start, goal, actions=actions, **asked) if search else None
    wanted = torch.is_grad_enabled()  # which leaving inference mode switches on
    with torch.inference_mode(False), torch.set_grad_enabled(wanted), _evaluated(world_model):
        problem = check_problem(world_model, planner.config, start, goal, actions, **asked)
        cost = _plan_cost(planner, problem)
        if tolerance is None:
            tolerance = TOLERANCE.get(problem.start.dtype, LOOSE)
        given = problem.actions if searched is None else searched.actions
        begun = cost.box.to_units(first_of_blocks(given, planner.config.hold))
        rows = torch.arange(problem.count, device=begun.device)
        rows = rows if searched is None else rows[searched.finite]
        with torch.no_grad():
            blocks, norm = polish(
                cost.take(rows), begun[rows], polish_steps, tolerance, cg_iterations
            )
        finite = torch.isfinite(norm)
        rows, blocks, norm = rows[finite], blocks[finite], norm[finite]
        ids = problem.problem_ids[rows]
        sound = cost.take(rows)
        here = Derivatives(sound, blocks)
        here.check_twice()
        _warn_of(
            ids[norm > tolerance], f"have a gradient above {tolerance:g} still, {UNSTATIONARY}"
        )
        held = ~here.free
        if wanted and method == "unroll":
            blocks = descended(sound, here, unroll)
        elif wanted:
            tensors = sound.tensors()
            tensors += depends_on(here.cost, [*tensors, here.at])
            solve = _Solve(sound, world_model, ids, cg_iterations, damping)
            blocks = _AtThePlan.apply(solve, blocks, *tensors)
        del here  # and its graph
        return _result(problem, cost, begun, rows, blocks, held, norm, tolerance, searched)


@dataclass(frozen=True, eq=False)
class _Solve:
    """What the way back takes, beside tensors."""

    cost: PlanCost
    world_model: WorldModel
    problem_ids: Tensor
    cg_iterations: int
    damping: float


class _AtThePlan(torch.autograd.Function):
    """The blocks `(b, K, A)` of plans, as a function of every tensor that their cost depends on."""

    @staticmethod
    def forward(ctx: Any, solve: _Solve, blocks: Tensor, *tensors: Tensor) -> Tensor:
        ctx.solve = solve
        ctx.save_for_backward(blocks, *tensors)  # torch says so where one was changed since
        return blocks.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True, of which autograd would drop this part
            raise RuntimeError(
                "a plan's implicit gradient has no derivative itself (create_graph=True): "
                "method='unroll' has one"
            )
        solve: _Solve = ctx.solve
        blocks, *tensors = ctx.saved_tensors
        with _evaluated(solve.world_model):
            here = Derivatives(solve.cost, blocks)
            damping = torch.full_like(here.norm, solve.damping)
            moved, solved = least_solution(
                here.damped(damping), upstream * here.free, solve.cg_iterations
            )
            _warn_of(solve.problem_ids[~solved], UNSOLVED)
            return (None, None, *here.pulled(-moved, tensors))


UNSTATIONARY = "so their derivatives are not those of a minimum: raise polish_steps or tolerance"
UNSOLVED = (
    "have a gradient that conjugate gradients did not find: raise cg_iterations, or, where the "
    "plan is no minimum, damping; what was found until then is used"
)


def _warn_of(ids: Tensor, what: str) -> None:
    if len(ids):
        names = in_short([str(i) for i in ids.tolist()])
        message = f"{len(ids)} plans {what} (plan_id {names})"
        warnings.warn(message, DerivativeWarning, stacklevel=level_of_caller())


@contextmanager
def _evaluated(world_model: WorldModel) -> Iterator[None]:
    """Evaluation mode, and attention by formulas that can be differentiated twice."""
    with frozen(world_model, weights=False), sdpa_kernel(SDPBackend.MATH):
        yield


def _planner(world_model: WorldModel, config: Any, planner: Any) -> Planner:
    """The planner that searches, if there is nothing that keeps its plans from being learned by."""
    if planner is None:
        planner = LiftedNewtonPlanner(world_model, config)
    elif config is not None:
        raise ValueError("config and planner must not both be given: a planner has its own")
    if not isinstance(planner, Planner):
        raise TypeError(f"planner must be a Planner, got {type(planner).__name__}")
    if planner.world_model != world_model:  # a bound method is another object every time
        raise ValueError("planner must be over world_model, got one over another")
    if planner.config.constraints:
        raise ValueError(
            "config.constraints must be empty, since multipliers have no derivative here, got "
            f"{len(planner.config.constraints)}: a penalty in config.cost has one"
        )
    return planner


def _plan_cost(planner: Planner, problem: Problem) -> PlanCost:
    """The cost that plans are compared by, of the full-precision model."""
    objective = Objective.of(planner.config, problem, planner._iterations())
    model = CheckedModel(planner.world_model, problem.state_scale, rows=problem.rows)
    return PlanCost(model, replace(objective, through_goal=True), problem.start, ActionBox(problem))


def _result(
    problem: Problem,
    cost: PlanCost,
    begun: Tensor,
    rows: Tensor,
    blocks: Tensor,
    held: Tensor,
    norm: Tensor,
    tolerance: float,
    searched: Plan | None,
) -> DifferentiablePlan:
    """The plans of the problems `rows` at `blocks`, and of all others what they began with."""
    sound = cost.take(rows)
    exact = sound.actions(blocks)
    actions = exact + (cost.box.clip(exact) - exact).detach()  # by a rounding error at most
    states, value = sound.rolled(actions)
    start = problem.start_given
    states = torch.cat((start[rows, None], states[:, 1:] * problem.units), 1)
    nowhere = torch.full_like(start[:, None], torch.nan).expand(-1, states.shape[1] - 1, -1)
    lost = value.new_full((problem.count,), torch.inf)
    known = lost.index_copy(0, rows, norm)
    still = cost.box.clip(cost.actions(begun))
    return DifferentiablePlan(
        actions=still.index_copy(0, rows, actions),
        states=torch.cat((start[:, None], nowhere), 1).index_copy(0, rows, states),
        cost=lost.index_copy(0, rows, value),
        gradient_norm=known,
        converged=known <= tolerance,
        at_bound=torch.zeros_like(still, dtype=torch.bool).index_copy(0, rows, cost.held(held)),
        searched=searched,
    )


def _not_negative(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not 0 <= float(value) < math.inf:
        raise ValueError(f"{name} must be at least 0 and finite, got {value}")
    return float(value)
