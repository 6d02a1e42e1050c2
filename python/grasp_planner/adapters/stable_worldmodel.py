"""stable-worldmodel: a solver of its evaluation loop whose plans are made by a planner of this one.

    solver = StableWorldModelSolver(model, LiftedNewtonPlanner)
    policy = swm.policy.WorldModelPolicy(solver=solver, config=swm.PlanConfig(horizon=5, ...))
    world.set_policy(policy)
    world.evaluate(...)

`model` is what that package's own solvers take: a world model of 0.1.1 with `get_cost`, or, of the
newer API, a cost evaluator: dynamics with `encode` and `rollout`, and an objective. It is planned
through in one of two ways:

- *dynamics*: observation and goal are encoded once, and the planner is given the latents' one-step
  map. All planners can do this. The cost of a plan is the one that the model has itself.
- *cost*: `get_cost` is all there is. Nothing happens in the planner's world, and a plan costs what
  the model says of all its actions together. Planners that only roll plans out can do this.

This file imports nothing of stable-worldmodel: whatever has these methods will do.

Symbols: B environments in one call, b of them planned together, S candidates of each, T planned
steps, A action features of a step (those of the environment times `action_block`), H frames.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Collection, Mapping
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grasp_planner.adapters.frames import GrowingWindow, first_window
from grasp_planner.adapters.stable_worldmodel_models import (
    PlanCost,
    Still,
    Terms,
    check_cost,
    done_between,
    dynamics_of,
    encoded,
    history_of,
    known_actions,
    of_rows,
    offers_dynamics,
    rows_in,
    split_objective,
    step_of,
)
from grasp_planner.base import Planner
from grasp_planner.baselines.cem import CEMPlanner
from grasp_planner.baselines.gradient import GradientPlanner
from grasp_planner.baselines.icem import ICEMPlanner
from grasp_planner.baselines.mppi import MPPIPlanner
from grasp_planner.latents import LatentModel
from grasp_planner.mpc import STRIDE
from grasp_planner.options import PlannerConfig, check_whole
from grasp_planner.plan import Plan
from grasp_planner.world_model import frozen

#: Planners that need no dynamics, but the cost of whole plans.
BY_COST_ALONE = (CEMPlanner, ICEMPlanner, MPPIPlanner, GradientPlanner)
WAYS = ("dynamics", "cost")
MAY_BE_NAN = ("action", "reward", "goal_action", "goal_reward")


class StableWorldModelSolver:
    """A `Solver` of stable-worldmodel; see the module.

    Args:
        model: with `get_cost(info, candidates (B, S, T, A)) -> (B, S)`.
        planner: the class of the planner.
        config: its settings; None is the class's own, with `hold` 1. Horizon, action features and,
            where it has none, bounds come with `configure`; the bounds are those of the action
            space, repeated over each action block.
        way: "dynamics" or "cost"; None is dynamics where the model offers them: `encode`, and
            `predict` with `action_encoder` (LeWM, PLDM), or, in a cost evaluator, a `rollout` that
            goes on from an `emb` which it is given.
        batch_size: environments that are planned together. >= 1; None is all by dynamics, and 1 by
            cost, as of that package's CEMSolver: `get_cost` of its LeWM 0.1.1 is right for one
            environment alone.
        action_process: the policy's `process["action"]`, if it has one: planned actions are then
            in its units, and so are the bounds. None.
        may_be_nan: entries of `info` that may hold NaN in an environment that is alive, as actions
            and rewards do where an episode begins. With a NaN in any other entry it is dead.

    Raises:
        TypeError, ValueError: an argument is wrong; it is named.
    """

    def __init__(
        self,
        model: Any,
        planner: type[Planner] = CEMPlanner,
        config: PlannerConfig | None = None,
        *,
        way: str | None = None,
        batch_size: int | None = None,
        action_process: Any = None,
        may_be_nan: Collection[str] = MAY_BE_NAN,
    ) -> None:
        if not callable(getattr(model, "get_cost", None)):
            raise TypeError(f"model must have a method get_cost, got {type(model).__name__}")
        if not (isinstance(planner, type) and issubclass(planner, Planner)):
            raise TypeError(f"planner must be a class of planners, got {planner!r}")
        if config is None:
            config = planner.config_type(hold=1)
        if not isinstance(config, planner.config_type):
            wanted = planner.config_type.__name__
            raise TypeError(f"config must be a {wanted}, got {type(config).__name__}")
        offered = offers_dynamics(model)
        if way not in (None, *WAYS):
            raise ValueError(f"way must be one of 'dynamics', 'cost', got {way!r}")
        if way == "dynamics" and not offered:
            raise ValueError(
                "way must be 'cost': the model offers no dynamics, which are encode, and predict "
                "with action_encoder, or encode and rollout of a cost evaluator's model; "
                f"got {type(model).__name__}"
            )
        self.way = way or ("dynamics" if offered else "cost")
        if self.way == "cost":
            _check_by_cost(planner, config, batch_size)
            batch_size = 1 if batch_size is None else batch_size
        if batch_size is not None:
            batch_size = check_whole("batch_size", batch_size, 1)
        self.model, self.planner, self.config = model, planner, config
        self.batch_size = batch_size
        self.action_process = action_process
        if action_process is not None and not callable(getattr(action_process, "transform", None)):
            found = type(action_process).__name__
            raise TypeError(f"action_process must have a method transform, got {found}")
        if isinstance(may_be_nan, str):
            raise TypeError(f"may_be_nan must be names of entries, got {may_be_nan!r}")
        self.may_be_nan = frozenset(may_be_nan)
        parameter = next(model.parameters(), None) if hasattr(model, "parameters") else None
        self.dtype = torch.float32 if parameter is None else parameter.dtype
        self.device = torch.device("cpu") if parameter is None else parameter.device
        self._settings: PlannerConfig | None = None
        self._envs = 0
        self._planners: dict[tuple[int, ...], Planner] = {}
        self._solved = 0

    # ------------------------------------------------------------------------------- their protocol

    def configure(self, *, action_space: Any, n_envs: int, config: Any) -> None:
        """What is planned for; plans begin anew, noise and all.

        Args:
            action_space: a Box of all environments, `(n_envs, ...)`.
            n_envs: environments.
            config: with `horizon`, T, and `action_block`, environment steps in each of them.
        """
        if not (hasattr(action_space, "low") and hasattr(action_space, "high")):
            raise TypeError(f"action_space must be a Box, got {type(action_space).__name__}")
        n_envs = check_whole("n_envs", n_envs, 1)
        horizon = check_whole("config.horizon", config.horizon, 1)
        block = check_whole("config.action_block", config.action_block, 1)
        shape = tuple(action_space.shape)
        if len(shape) < 2 or shape[0] != n_envs:
            raise ValueError(
                f"action_space must be of all environments, ({n_envs}, ...), got {shape}"
            )
        box = np.stack((action_space.low[0], action_space.high[0])).reshape(2, -1)
        if self.action_process is not None:
            box = np.sort(np.asarray(self.action_process.transform(box)), 0)
        low, high = (tuple(map(float, np.tile(bound, block))) for bound in box)
        ours = self.config
        self._settings = replace(
            ours,
            horizon=horizon,
            action_features=len(low),
            action_low=low if ours.action_low is None else ours.action_low,
            action_high=high if ours.action_high is None else ours.action_high,
        )
        self._envs = n_envs
        self._planners.clear()
        self._solved = 0

    @property
    def n_envs(self) -> int:
        """Environments that were configured; a call may be for some of them."""
        self._configured()
        return self._envs

    @property
    def action_dim(self) -> int:
        """A, with the action block."""
        return int(self._configured().action_features)

    @property
    def horizon(self) -> int:
        """T."""
        return int(self._configured().horizon)

    def __call__(self, info_dict: Mapping[str, Any], init_action: Tensor | None = None) -> Any:
        """`solve`."""
        return self.solve(info_dict, init_action)

    def solve(
        self, info_dict: Mapping[str, Any], init_action: Tensor | None = None
    ) -> dict[str, Any]:
        """Plans for B environments, as many as `info_dict` has rows.

        Args:
            info_dict: entries `(B, H, ...)`, as the policy has them. With H > 1 frames, planning by
                dynamics needs `action_history (B, H - 1, A)`, what was done between them.
            init_action: `(B, t, A)`, t <= T, a warm start; the rest is the model's `get_action`, if
                it has one, else no action.

        Returns:
            "actions" `(B, T, A)` on the CPU; "costs", a list of B; "planned" `(B,)` bool. An
            environment that is dead has its warm start for a plan, of cost NaN; one for which the
            model raised an error has it too, of cost infinity.

        Raises:
            TypeError, ValueError: an argument is wrong; it is named.
            WorldModelError: the model's dynamics raised an error for every environment. What
                `encode` or `get_cost` raise comes as it is.
        """
        horizon = self.horizon
        with torch.inference_mode(False), torch.no_grad(), frozen(self.model):
            count = rows_in(info_dict)
            alive = self._alive(info_dict, count)
            # Who executes them has numpy, which knows no bfloat16.
            dtype = torch.promote_types(self.dtype, torch.float32)
            actions = known_actions(init_action, (count, horizon, self.action_dim)).to(dtype)
            known = 0 if init_action is None else init_action.shape[1]
            costs = torch.full((count,), torch.nan, dtype=torch.float64)
            rows = alive.nonzero()[:, 0]
            by = self._by_dynamics if self.way == "dynamics" else self._by_cost
            for part in rows.split(self.batch_size or max(count, 1)) if len(rows) else ():
                info = self._rows(info_dict, part)
                warm = self._followed(info, actions[part].to(self.device, self.dtype), known)
                plan = by(info, warm, (part + self._solved * STRIDE).to(self.device))
                actions[part] = plan.actions.to("cpu", dtype)
                costs[part] = plan.cost.double().cpu()
                alive[part[list(plan.failures)]] = False
        self._solved += 1
        return {"actions": actions, "costs": costs.tolist(), "planned": alive}

    # ------------------------------------------------------------------------------------- planning

    def _by_dynamics(self, info: dict[str, Any], warm: Tensor, ids: Tensor) -> Plan:
        """The planner through the latents' one-step map."""
        start, goals = encoded(self.model, info)
        shape, history = tuple(start.shape[2:]), history_of(self.model)
        weight, terms = split_objective(getattr(self.model, "objective", None), math.prod(shape))
        planner = self._planners.get(shape)
        if planner is None:
            window = GrowingWindow(dynamics_of(self.model), step_of(self.model), history)
            latents = LatentModel(window, latents={"emb": shape}, history=history)
            planner = self.planner(latents, self._settings_for(weight, terms, shape))
        seen = start.shape[1]
        done = done_between(seen, info.get("action_history"), warm) if history > 1 else None
        first, past = first_window({"emb": start}, history, warm.shape[2], done)
        plan = planner.plan(
            first,
            {"emb": goals[:, -1]},
            actions=warm,
            plan_ids=ids,
            past_actions=past,
            context={"goal_emb": goals} if terms else None,
        )
        if shape not in self._planners and start.shape[1] == 1 and bool(plan.finite[0]):
            check_cost(self.model, info, start, goals, plan, weight, Terms(terms, shape))
        self._planners[shape] = planner
        return plan

    def _settings_for(self, weight: float, terms: list[Any], shape: tuple[int, ...]) -> Any:
        """The planner's settings for a cost of `weight |s_T - g|^2 + sum of terms`."""
        settings = self._configured()
        if weight == 0 and not issubclass(self.planner, BY_COST_ALONE):
            raise ValueError(
                "the model's objective must have a GoalMSE of 'predicted_emb' and 'goal_emb' for "
                f"{self.planner.__name__}, which plans towards a goal, got none"
            )
        if settings.goal_feature_weight is None and weight != 1:
            settings = replace(settings, goal_feature_weight={"emb": weight})
        if terms and settings.cost is not None:
            raise ValueError("config.cost must be None, for the model has an objective, got one")
        return replace(settings, cost=Terms(terms, shape)) if terms else settings

    def _by_cost(self, info: dict[str, Any], warm: Tensor, ids: Tensor) -> Plan:
        """The planner by the model's own cost of whole plans."""
        settings = replace(self._configured(), cost=PlanCost(self.model, info))
        planner = self.planner(Still(self.model), settings)
        nowhere = warm.new_zeros(len(warm), 1)
        which = torch.arange(len(warm), device=warm.device)
        return planner.plan(nowhere, nowhere, actions=warm, plan_ids=ids, context=which)

    # ------------------------------------------------------------------------------- what was asked

    def _configured(self) -> Any:
        """The planner's settings; an error before `configure`. (Python looks up a protocol's
        properties, and an AttributeError is how it is told that there are none.)"""
        if self._settings is None:
            raise AttributeError("the solver must be told what it plans for: call configure first")
        return self._settings

    def _alive(self, info: Mapping[str, Any], count: int) -> Tensor:
        """`(B,)` bool: no NaN where there must be none."""
        alive = torch.ones(count, dtype=torch.bool)
        for name, value in info.items():
            if isinstance(value, np.ndarray) and value.dtype.kind == "f":
                value = torch.from_numpy(value)
            if not isinstance(value, Tensor) or not value.is_floating_point():
                continue
            if len(value) != count:
                raise ValueError(f"info_dict[{name!r}] must have {count} rows, got {len(value)}")
            if name not in self.may_be_nan:
                numbers = value.reshape(count, math.prod(value.shape[1:]))
                alive &= ~numbers.isnan().any(1).cpu()
        return alive

    def _rows(self, info: Mapping[str, Any], rows: Tensor) -> dict[str, Any]:
        """What belongs to the environments `rows`, tensors in the model's dtype, on its device."""
        chosen, which = {}, rows.tolist()
        for name, value in info.items():
            value = of_rows(value, which)
            if isinstance(value, Tensor):
                dtype = self.dtype if value.is_floating_point() else value.dtype
                value = value.to(self.device, dtype)
            chosen[name] = value
        return chosen

    def _followed(self, info: dict[str, Any], warm: Tensor, known: int) -> Tensor:
        """A warm start `(b, T, A)` whose steps from `known` on are those of the model's actor."""
        rest = warm.shape[1] - known
        actor = getattr(self.model, "get_action", None)
        if actor is None or rest == 0:
            return warm
        prefix = warm[:, :known] if known else None
        tail = actor(dict(info), horizon=rest, prefix_actions=prefix)
        wanted = (len(warm), rest, warm.shape[2])
        if not isinstance(tail, Tensor) or tail.numel() != math.prod(wanted):
            found = tuple(tail.shape) if isinstance(tail, Tensor) else type(tail).__name__
            raise ValueError(f"the model's get_action must return {wanted}, got {found}")
        return torch.cat((warm[:, :known], tail.reshape(wanted).to(warm)), 1)


def _check_by_cost(planner: type[Planner], config: PlannerConfig, batch_size: int | None) -> None:
    if not issubclass(planner, BY_COST_ALONE):
        names = ", ".join(kind.__name__ for kind in BY_COST_ALONE)
        raise ValueError(
            f"planner must be one of {names} where a model is planned by its cost alone; "
            f"{planner.__name__} needs its dynamics"
        )
    if config.cost is not None:
        raise ValueError("config.cost must be None, for the model has a cost, got one")
    if config.max_rows is not None and batch_size not in (None, 1):
        raise ValueError(
            f"config.max_rows must be None with a batch_size above 1, got {config.max_rows}"
        )


# -------------------------------------------------------------------------------------- the package

_declared: list[torch.library.Library] = []  # which an operator lives no longer than


def import_stable_worldmodel() -> ModuleType:
    """`import stable_worldmodel`, also beside a torch that torchvision was not built for.

    stable-worldmodel imports torchvision, whose wheels on the package index need torch's CUDA
    libraries. Beside a CPU torch its compiled part is not loaded, and its import fails: "operator
    torchvision::nms does not exist". Here the two operators that it asks for are declared, without
    a kernel, and all of torchvision that is Python works; its transforms are.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
        for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _declared.append(library)
        importlib.import_module("torchvision")
    return importlib.import_module("stable_worldmodel")
