"""MPC: plan, execute a few actions, look, plan again from there; a batch of environments at once.

Symbols: B environments, T planned steps, D state features, A action features.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from grasp_planner.base import Planner
from grasp_planner.goals import Goal, rows_differ
from grasp_planner.inputs import rows_of
from grasp_planner.latents import LatentModel
from grasp_planner.options import check_whole
from grasp_planner.plan import Plan
from grasp_planner.population import take
from grasp_planner.running import Budget
from grasp_planner.world_model import frozen

Policy = Callable[[Tensor], Tensor]
State = Tensor | Mapping[str, Tensor]

TAILS = ("hold", "zero")
STRIDE = 2**20  # names in one call; plan ids of one's plans are so far apart: noise is always new


@dataclass(frozen=True, eq=False)
class Control:
    """What `MPC.act` decided in one control step.

    Attributes:
        actions: `(B, A)`, to execute now.
        replanned: `(B,)` bool, the environments whose plan is new.
        cost: `(B,)`, what the current plan of each costs by its own rollout; inf where the planner
            found no finite one, and the environment goes on by its warm start.
        out_of_time: `(B,)` bool, whether the time budget cut the current plan's search short.
        milliseconds: of planning, in this step.
    """

    actions: Tensor
    replanned: Tensor
    cost: Tensor
    out_of_time: Tensor
    milliseconds: float


class MPC:
    """Receding horizon control with any planner.

        controller = MPC(LiftedNewtonPlanner(world_model, config), execute=5)
        while True:
            control = controller.act(state, goal)    # (B, D), (B, D)
            state, done = step(control.actions)      # (B, A)
            controller.forget(done)                  # (B,) bool: new episodes have no warm start

    Every environment has its own clock: those that have executed their share of actions, begin an
    episode, or get another goal replan now, all in one batch, the others go on by their plans. A
    new plan starts warm, from what is left of the old one. As planners give the same plan for the
    same plan id alone or in a batch, an environment is controlled the same whatever is beside it.

    A plan is for T steps from now, always. Where its cost is that of its end alone, which way it
    takes there is free, and with `execute` much below T the goal may stay ahead for ever: give the
    config a `running_goal_weight`, so that it pays to be there early, or `execute` near T.

    Args:
        planner: whose config's `horizon` is T and whose `action_low`, `action_high` hold.
        execute: planned actions that are executed before the next plan. 1 to T; 1.
        repeat: control steps that each planned action is executed for: action blocks, frame skip.
            One step of the world model then stands for `repeat` steps of the environment. >= 1; 1.
        tail: what fills the end of a warm start, which is shifted by what was executed: "hold"
            repeats the last action, "zero" is no action; or a policy `(b, D) -> (b, A)`, which is
            followed through the world model from where the old plan ends. "hold".
        time_budget_ms: milliseconds per `act`, after which the best plans so far are taken; see
            `plan` of the planner. > 0; None is no limit.
        environment_ids: `(B,)` int, the names of the environments, which their noise depends on.
            0 to 2**20 - 1, all different; None is 0 ... B - 1.

    Raises:
        TypeError, ValueError: an argument is wrong; it is named.
    """

    def __init__(
        self,
        planner: Planner,
        *,
        execute: int = 1,
        repeat: int = 1,
        tail: str | Policy = "hold",
        time_budget_ms: float | None = None,
        environment_ids: Sequence[int] | Tensor | None = None,
    ) -> None:
        if not isinstance(planner, Planner):
            raise TypeError(f"planner must be a Planner, got {type(planner).__name__}")
        if not callable(tail) and tail not in TAILS:
            raise ValueError(f"tail must be 'hold', 'zero' or a policy, got {tail!r}")
        self.planner = planner
        self.horizon: int = planner.config.horizon
        self.execute = check_whole("execute", execute, 1, self.horizon, "the horizon")
        self.repeat = check_whole("repeat", repeat, 1)
        self.tail = tail
        Budget(time_budget_ms, torch.device("cpu"))  # refuses what is no time
        self.time_budget_ms = time_budget_ms
        self._ids = None if environment_ids is None else _ids(environment_ids)
        self._under_way: _Batch | None = None

    def act(
        self, state: State, goal: State | Goal, *, active: Tensor | None = None, **given: Any
    ) -> Control:
        """The actions of one control step.

        Args:
            state, goal: `(B, D)` (or `(D,)` for one environment), or whatever else the planner's
                `plan` takes as start and goal: dicts, windows `(B, H, D)`, a `Goal`. B stays the
                same until `reset`.
            active: `(B,)` bool, the environments that take a step. The others, between or after
                their episodes, neither replan nor move on: what stands in their rows of `actions`
                is not to be executed, and their `state` is not looked at. None is all.
            given: `past_actions` and `context`, where `plan` needs them, a row per environment.

        Raises:
            TypeError, ValueError: an argument is wrong; it is named. No environment has moved on,
                and the same step can be asked for again.
        """
        unknown = set(given) - {"past_actions", "context"}
        if unknown:
            raise TypeError(f"act takes past_actions and context beside, got {sorted(unknown)}")
        state = _rows("state", state)
        goal = goal if isinstance(goal, Goal) else _rows("goal", goal)
        shapes = [tuple(v.shape) for v in (state, goal) if isinstance(v, Tensor)]
        if len(shapes) == 2 and len(shapes[0]) == 2 and shapes[0] != shapes[1]:
            raise ValueError(f"goal must have the shape of state, {shapes[0]}, got {shapes[1]}")
        begun = time.perf_counter()
        batch = self._batch(state)
        if active is None:
            active = torch.ones_like(batch.fresh)
        active = _flags("active", active, batch.fresh)
        due = batch.fresh | batch.due | goal_differs(goal, batch.goal, batch.fresh)
        due |= batch.steps >= self.execute * self.repeat
        later = due & ~active
        due &= active
        # A planner may begin differently where it has a warm start; both kinds in one call would
        # make one environment's plan depend on its neighbours.
        no_width = batch.actions.dim() == 1  # how wide an action is: ask, even without environments
        for rows, warm in ((due & batch.fresh, False), (due & ~batch.fresh, True)):
            if bool(rows.any()) or (no_width and not warm):
                asked = {"start": state, "goal": goal, **given}
                self._replan(batch, rows.nonzero()[:, 0], asked, warm, begun)
        self._under_way = batch
        batch.goal, batch.due = _copied(goal), later
        step = (batch.steps // self.repeat).clamp_max(self.horizon - 1)
        actions = take(batch.actions, step[:, None])[:, 0]
        batch.steps += active
        spent = 1e3 * (time.perf_counter() - begun)
        return Control(actions, due, batch.cost.clone(), batch.out_of_time.clone(), spent)

    def forget(
        self, begins: Tensor, *, environment_ids: Sequence[int] | Tensor | None = None
    ) -> None:
        """The environments where `begins (B,)` bool is True start a new episode: they replan at the
        next `act`, without a warm start.

        With `environment_ids (B,)` they have new names, and the noise of a controller that has just
        begun under these; names of the others are not looked at.
        """
        batch = self._under_way
        if batch is None:  # all begin anyway
            _flags("begins", begins, begins)
            if environment_ids is not None:
                raise ValueError("nothing is under way: give environment_ids to reset()")
            return
        begins = _flags("begins", begins, batch.fresh)
        if environment_ids is not None:
            named = torch.as_tensor(environment_ids, device=begins.device)
            if named.shape != begins.shape:
                wanted = tuple(begins.shape)
                raise ValueError(f"environment_ids must be {wanted}, got {tuple(named.shape)}")
            ids = _ids(torch.where(begins, named, batch.ids))
            batch.ids, batch.plans = ids, torch.where(begins, 0, batch.plans)
        batch.fresh |= begins

    def reset(self, *, environment_ids: Sequence[int] | Tensor | None = None) -> None:
        """Forgets everything: the next `act` may be of any batch, and repeats the first one's.

        With `environment_ids` its environments have these names from now on.
        """
        if environment_ids is not None:
            self._ids = _ids(environment_ids)
        self._under_way = None

    # ------------------------------------------------------------------------------------- planning

    def _batch(self, state: State) -> _Batch:
        """The environments under way, or all that begin; an error if `state` is of others."""
        entries: Mapping[str, Tensor] = {"state": state} if isinstance(state, Tensor) else state
        shapes = {name: tuple(value.shape) for name, value in entries.items()}
        first = next(iter(entries.values()))
        if self._ids is not None and len(self._ids) != len(first):
            raise ValueError(
                f"state must have a row for each of {len(self._ids)} environment_ids, "
                f"got {len(first)}"
            )
        if self._under_way is None:
            return _Batch.beginning(first, shapes, self._ids)
        if self._under_way.shapes != shapes:
            raise ValueError(
                f"state must be {_told(self._under_way.shapes)} as before, "
                f"got {_told(shapes)}; call reset() for other environments"
            )
        return self._under_way

    def _replan(
        self, batch: _Batch, rows: Tensor, asked: dict[str, Any], warm: bool, begun: float
    ) -> None:
        """New plans of the environments `rows`, of all that `asked`."""
        ids = batch.ids[rows] + STRIDE * batch.plans[rows]
        budget = self.time_budget_ms
        actions = self._shifted(batch, rows) if warm else None
        if budget is not None:  # what the other kind of environments left of it
            budget = max(budget - 1e3 * (time.perf_counter() - begun), 1e-3)
        theirs = {name: _of(value, rows) for name, value in asked.items()}
        start, goal = theirs.pop("start"), theirs.pop("goal")
        plan = self.planner.plan(
            start, goal, actions=actions, plan_ids=ids, time_budget_ms=budget, **theirs
        )
        batch.keep(rows, plan)

    def _shifted(self, batch: _Batch, rows: Tensor) -> Tensor:
        """Warm starts `(b, T, A)`: the old plans without the actions that were executed."""
        actions = batch.actions[rows]
        used = -(-batch.steps[rows] // self.repeat)
        most = int(used.max())
        if callable(self.tail):
            tail = self._followed(self.tail, batch.ends[rows], most, actions)
        elif self.tail == "hold":
            tail = actions[:, -1:].expand(-1, most, -1)
        else:
            tail = torch.zeros_like(actions[:, :1]).expand(-1, most, -1)
        steps = used[:, None] + torch.arange(self.horizon, device=used.device)
        return take(torch.cat((actions, tail), 1), steps)

    def _followed(self, policy: Policy, state: Tensor, steps: int, like: Tensor) -> Tensor:
        """The policy's actions `(b, steps, A)` through the world model."""
        actions = []
        model: Any = self.planner.world_model
        if isinstance(model, LatentModel) and (model.history > 1 or model.noise_features):
            raise ValueError("a tail policy needs a world model of single states without noise")
        with torch.no_grad(), frozen(self.planner.world_model):
            for _ in range(steps):
                action: Any = policy(state)
                wanted = (len(state), like.shape[2])
                if not isinstance(action, Tensor) or tuple(action.shape) != wanted:
                    found = tuple(action.shape) if isinstance(action, Tensor) else type(action)
                    raise ValueError(f"the tail policy must return (b, A) = {wanted}, got {found}")
                actions.append(action.to(like))
                moved: Any = model(state, actions[-1])
                state = moved[0] if isinstance(moved, tuple) else moved
        return torch.stack(actions, 1)


@dataclass(eq=False)
class _Batch:
    """The environments under way: `(B, ...)` each."""

    goal: Any
    shapes: dict[str, tuple[int, ...]]  # of their states
    ids: Tensor
    fresh: Tensor  # begins an episode
    due: Tensor  # had to replan while it took no step
    steps: Tensor  # control steps since the current plan was made
    plans: Tensor  # how many were made
    actions: Tensor  # of the current plan, (B, T, A)
    ends: Tensor  # its last state, (B, D), as the planner has it
    cost: Tensor
    out_of_time: Tensor

    @classmethod
    def beginning(
        cls, state: Tensor, shapes: dict[str, tuple[int, ...]], ids: Tensor | None
    ) -> _Batch:
        rows = torch.arange(len(state), device=state.device)
        none = torch.zeros_like(rows)
        return cls(
            goal=None,
            shapes=shapes,
            ids=rows if ids is None else ids.to(rows.device),
            fresh=none == 0,
            due=none > 0,
            steps=none.clone(),
            plans=none.clone(),
            actions=state.new_empty(0),
            ends=state.new_empty(0),
            cost=torch.full_like(rows, torch.inf, dtype=torch.float64),
            out_of_time=none > 0,
        )

    def keep(self, rows: Tensor, plan: Plan) -> None:
        if self.actions.dim() == 1:  # the first plan tells how wide an action is
            self.actions = plan.actions.new_zeros(len(self.ids), *plan.actions.shape[1:])
            self.ends = plan.states.new_zeros(len(self.ids), plan.states.shape[2])
        self.actions[rows], self.ends[rows] = plan.actions, plan.states[:, -1]
        self.cost[rows] = plan.cost.to(self.cost.dtype)
        self.out_of_time[rows] = plan.out_of_time
        self.steps[rows] = 0
        self.plans[rows] += 1
        self.fresh[rows] = False


def _rows(name: str, value: Any) -> Any:
    """A row per environment: a tensor, or a dict of them."""
    if isinstance(value, Mapping) and value and all(isinstance(v, Tensor) for v in value.values()):
        return dict(value)
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a Tensor, got {type(value).__name__}")
    if value.dim() not in (1, 2, 3):
        raise ValueError(f"{name} must be (B, D) or (D,), got {tuple(value.shape)}")
    return value[None] if value.dim() == 1 else value


def _of(value: Any, rows: Tensor) -> Any:
    """What belongs to the environments `rows`."""
    return value.take(rows) if isinstance(value, Goal) else rows_of(value, rows)


def _copied(goal: Any) -> Any:
    """The same, whatever is done to the original."""
    if isinstance(goal, Goal):
        return goal.copy()
    if isinstance(goal, Mapping):
        return {name: value.clone() for name, value in goal.items()}
    return goal.clone()


def goal_differs(goal: Any, before: Any, like: Tensor) -> Tensor:
    """`(B,)` bool like `like`: whose goal is another than before."""
    if isinstance(goal, Goal):
        return goal.differs(before, len(like)).to(like.device)
    every = torch.ones_like(like)
    if type(goal) is not type(before):
        return every
    if isinstance(goal, Tensor):
        goal, before = {"goal": goal}, {"goal": before}
    if {n: v.shape for n, v in goal.items()} != {n: v.shape for n, v in before.items()}:
        return every
    differs = [rows_differ(value, before[name]) for name, value in goal.items()]
    return torch.stack(differs).any(0)


def _told(shapes: dict[str, tuple[int, ...]]) -> str:
    return str(shapes["state"]) if list(shapes) == ["state"] else str(shapes)


def _flags(name: str, value: Any, like: Tensor) -> Tensor:
    """`(B,)` bool like `like`."""
    if not isinstance(value, Tensor) or value.dtype != torch.bool:
        raise TypeError(f"{name} must be a bool Tensor")
    if value.shape != like.shape:
        raise ValueError(f"{name} must be {tuple(like.shape)}, got {tuple(value.shape)}")
    return value.to(like.device)


def _ids(values: Sequence[int] | Tensor) -> Tensor:
    try:
        ids = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"environment_ids must be (B,) int, got {values!r}") from error
    if ids.dim() != 1 or ids.dtype.is_floating_point or ids.dtype == torch.bool:
        raise TypeError(f"environment_ids must be (B,) int, got {tuple(ids.shape)} {ids.dtype}")
    if len(ids) and (int(ids.min()) < 0 or int(ids.max()) >= STRIDE):
        raise ValueError(f"environment_ids must be from 0 to {STRIDE - 1}")
    if len(ids.unique()) != len(ids):
        raise ValueError("environment_ids must be all different")
    return ids.to(torch.int64)
