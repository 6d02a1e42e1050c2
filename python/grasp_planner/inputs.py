"""What a planner is asked, checked once before the loop; every error names the argument."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from grasp_kernels import gaussian_noise
from grasp_kernels.checks import box_bounds
from grasp_planner.blocks import average_blocks
from grasp_planner.goals import Goal, Point, Subset, Target
from grasp_planner.latents import LatentModel
from grasp_planner.options import PlannerConfig
from grasp_planner.world_model import Rows, WorldModel, module_of

#: What belongs to each problem and is handed to the user's functions: `(B, ...)` each.
Context = Tensor | Mapping[str, Tensor]

FATE = 2**32 - 2  # the iteration whose noise is a stochastic model's
DTYPES = (torch.float32, torch.bfloat16, torch.float64, torch.float16)


@dataclass(frozen=True)
class Problem:
    """B problems in scaled states, all tensors on one device.

    `start_given` `(B, D)` unscaled; `start` `(B, D)`; `goal` `(B, D)`, a state of the `target`;
    `actions` `(B, T, A)`; `problem_ids` `(B,)`; weights `(D,)` in the compute dtype; bounds `(A,)`;
    `state_scale` `(D,)` or None; `units` the scale as a factor; `context` as it was given.
    """

    start_given: Tensor
    start: Tensor
    goal: Tensor
    target: Target
    context: Context | None
    actions: Tensor
    warm: bool
    problem_ids: Tensor
    state_scale: Tensor | None
    units: Tensor
    feature_weight: Tensor | None
    goal_feature_weight: Tensor | None
    action_low: Tensor | None
    action_high: Tensor | None
    rows: Rows | None

    @property
    def count(self) -> int:
        """B."""
        return self.start.shape[0]

    def take(self, rows: list[int]) -> Problem:
        """The problems `rows`, as if they had been asked for alone."""
        names = ("start_given", "start", "goal", "actions", "problem_ids")
        which = torch.tensor(rows, dtype=torch.int64, device=self.start.device)
        context = None if self.context is None else rows_of(self.context, which)
        parts = {name: getattr(self, name)[which] for name in names}
        return replace(self, **parts, target=self.target.take(which), context=context)

    def tensors(self) -> list[Tensor]:
        """All that the plans depend on and settings do not tell."""
        given = [self.start_given, self.actions, self.problem_ids]
        return [*given, self.start, *self.target.tensors(), *tensors_of(self.context)]

    @property
    def state_features(self) -> int:
        return self.goal.shape[1]

    @property
    def action_features(self) -> int:
        return self.actions.shape[2]


def check_problem(
    world_model: WorldModel,
    config: PlannerConfig,
    start: Any,
    goal: Any,
    actions: Any,
    plan_ids: Any,
    samples: int = 1,
    context: Any = None,
    past_actions: Any = None,
) -> Problem:
    """The problem in the planner's own units, or an error that names what is wrong.

    Its start, goal and context have the graphs of what was given, unless gradients are off.
    `samples` is the most that each problem will be sampled by: ids leave room for so many.
    """
    start, past_states = _start(world_model, start)
    if not isinstance(goal, Goal):
        goal = _goal(world_model, goal, start)
    if isinstance(goal, Tensor) and goal.shape != start.shape:
        raise ValueError(
            f"goal must have the shape of start, {tuple(start.shape)}, got {tuple(goal.shape)}"
        )
    for name, tensor in (("goal", goal), ("actions", actions), ("plan_ids", plan_ids)):
        if isinstance(tensor, Tensor) and tensor.device != start.device:
            raise ValueError(
                f"{name} must be on the device of start, {start.device}, got {tensor.device}"
            )
    if isinstance(goal, Tensor) and goal.dtype != start.dtype:
        raise TypeError(f"goal must have the dtype of start, {start.dtype}, got {goal.dtype}")
    _check_parameters(world_model, start)
    problems, features = start.shape
    steps = config.horizon

    width = _action_features(world_model, config, actions)
    if actions is None:
        warm = start.new_zeros(problems, steps, width)
    else:
        warm = average_blocks(_warm_start(actions, (problems, steps, width), start), config.hold)
    low, high = _bounds(config, width, start)

    ids = _problem_ids(plan_ids, problems, samples, start.device)
    vectors = partial(_vector, world_model, size=features, like=start)
    scale = vectors("state_scale", config.state_scale, dtype=start.dtype)
    units = start.new_ones(features) if scale is None else scale
    compute = torch.float64 if start.dtype == torch.float64 else torch.float32
    given = getattr(config, "feature_weight", None)  # of the lifted loss, where there is one
    weight = vectors("feature_weight", given, dtype=compute)
    goal_weight = vectors("goal_feature_weight", config.goal_feature_weight, dtype=compute)
    target = Point(goal / units) if isinstance(goal, Tensor) else goal.target(start, units)
    goal_weight = weight if goal_weight is None else goal_weight
    if isinstance(target, Point) and target.mask is not None:
        ones = start.new_ones(features, dtype=compute)
        goal_weight = target.mask.to(compute) * (ones if goal_weight is None else goal_weight)
    measure = start.new_ones(features) if goal_weight is None else goal_weight.to(start.dtype)
    rows, row = None, start / units
    if isinstance(world_model, LatentModel):
        rows = Rows(features, width, steps, world_model.history, world_model.noise_features)
        past = _past_actions(past_actions, (problems, rows.history - 1, width), start)
        noise = None if rows.noise == 0 else _fate(config, ids, rows, start.dtype)
        row = rows.joined(torch.cat((past_states / units, row[:, None]), 1), past, noise)
    elif past_actions is not None:
        raise ValueError("past_actions is for a LatentModel with a history, which this is not")
    return Problem(
        start_given=start,
        start=row,
        goal=target.first(start / units, 1, measure)[:, 0].contiguous(),
        target=target,
        context=_context(context, start),
        actions=warm,
        warm=actions is not None,
        problem_ids=ids,
        state_scale=scale,
        units=units,
        feature_weight=weight,
        goal_feature_weight=goal_weight,
        action_low=low,
        action_high=high,
        rows=rows,
    )


def rows_of(context: Context, rows: Tensor) -> Context:
    """What belongs to the problems `rows`."""
    if isinstance(context, Tensor):
        return context[rows]
    return {name: value[rows] for name, value in context.items()}


def tensors_of(context: Context | None) -> list[Tensor]:
    """All that belongs to problems."""
    if context is None:
        return []
    return [context] if isinstance(context, Tensor) else list(context.values())


def _context(context: Any, start: Tensor) -> Context | None:
    if context is None:
        return None
    if not isinstance(context, (Tensor, Mapping)):
        raise TypeError(
            f"context must be a tensor (B, ...) or a dict of them, got {type(context).__name__}"
        )
    for value in tensors_of(context):
        if not isinstance(value, Tensor):
            raise TypeError(f"context must hold tensors (B, ...), got {type(value).__name__}")
        if value.dim() == 0 or len(value) != len(start):
            raise ValueError(
                f"context must have a row for each of {len(start)} problems, "
                f"got {tuple(value.shape)}"
            )
        if value.device != start.device:
            raise ValueError(
                f"context must be on the device of start, {start.device}, got {value.device}"
            )
    return context


def check_snapshots(snapshots: Any, iterations: int) -> frozenset[int]:
    """The iterations whose virtual states are to be kept, each from 0 to `iterations`."""
    try:
        wanted = frozenset(operator.index(k) for k in snapshots)
    except TypeError as error:
        raise TypeError(f"snapshots must be a collection of ints, got {snapshots!r}") from error
    for k in wanted:
        if not 0 <= k <= iterations:
            raise ValueError(f"snapshots must be from 0 to {iterations}, got {k}")
    return wanted


def _start(world_model: Any, value: Any) -> tuple[Tensor, Tensor]:
    """s_0 `(B, D)` and the states before it, `(B, H - 1, D)`."""
    history = world_model.history if isinstance(world_model, LatentModel) else 1
    if isinstance(value, Mapping):
        value = _packed(world_model, "start", value)
    if history == 1:
        start = _state("start", value)
        return start, start.new_empty(len(start), 0, start.shape[1])
    if not isinstance(value, Tensor):
        raise TypeError(f"start must be a tensor (B, H, D), got {type(value).__name__}")
    value = value[None] if value.dim() == 2 else value
    if value.dim() != 3 or value.shape[1] != history:
        raise ValueError(
            f"start must be the last {history} states, (B, {history}, D), got {tuple(value.shape)}"
        )
    states = _state("start", value.flatten(0, 1)).unflatten(0, value.shape[:2])
    return states[:, -1].clone(), states[:, :-1]


def _goal(world_model: Any, value: Any, start: Tensor) -> Tensor | Goal:
    """A goal state `(B, D)`; of a dict that names some entries alone, the subset of theirs."""
    if not isinstance(value, Mapping):
        return _state("goal", value)
    if not isinstance(world_model, LatentModel) or world_model.latents is None:
        return _packed(world_model, "goal", value)  # which says why not
    some = {name: value[name] for name in world_model.latents if name in value}
    if len(some) < len(value) or not some:
        return _packed(world_model, "goal", value)
    blank = world_model.unpack(start)
    state = _state("goal", world_model.pack({**blank, **some}, "goal"))
    if len(some) == len(world_model.latents):
        return state
    columns = world_model.unpack(torch.arange(start.shape[1]))
    return Subset(state, [c for name in some for c in columns[name].flatten().tolist()])


def _packed(world_model: Any, name: str, value: Mapping[str, Tensor]) -> Tensor:
    if not isinstance(world_model, LatentModel) or world_model.latents is None:
        raise TypeError(f"{name} is a dict, so the world model must be a LatentModel with latents")
    return world_model.pack(value, name)


def _past_actions(actions: Any, shape: tuple[int, int, int], start: Tensor) -> Tensor:
    if actions is None:
        return start.new_zeros(shape)
    if not isinstance(actions, Tensor):
        raise TypeError(f"past_actions must be a tensor, got {type(actions).__name__}")
    if tuple(actions.shape) != shape:
        raise ValueError(
            f"past_actions must be (B, H - 1, A) = {shape}, got {tuple(actions.shape)}"
        )
    if actions.dtype != start.dtype or actions.device != start.device:
        raise TypeError(
            f"past_actions must be {start.dtype} on {start.device} as start, "
            f"got {actions.dtype} on {actions.device}"
        )
    _check_finite("past_actions", actions)
    return actions


def _fate(config: PlannerConfig, ids: Tensor, rows: Rows, dtype: torch.dtype) -> Tensor:
    """The noise `(B, T, Z)` of a stochastic model, a function of seed and plan id."""
    return gaussian_noise(
        len(ids),
        rows.steps,
        rows.noise,
        seed=config.seed,
        iteration=FATE,
        plan_ids=ids,
        dtype=dtype,
    )


def _state(name: str, value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor (B, D), got {type(value).__name__}")
    if value.dim() == 1:
        value = value[None]
    if value.dim() != 2 or value.shape[1] == 0:
        raise ValueError(f"{name} must have shape (B, D) or (D,), D >= 1, got {tuple(value.shape)}")
    if value.dtype not in DTYPES:
        raise TypeError(f"{name} must be floating ({DTYPES}), got {value.dtype}")
    _check_finite(name, value)
    return value.clone()


def _check_finite(name: str, value: Tensor) -> None:
    bad = (~torch.isfinite(value)).flatten(1).any(1).nonzero().flatten().tolist()
    if bad:
        raise ValueError(
            f"{name} must be finite, got NaN or infinity in row {bad[0]} ({len(bad)} rows)"
        )


def _check_parameters(world_model: WorldModel, start: Tensor) -> None:
    """A module on another device would fail deep inside itself; say it here."""
    module = module_of(world_model)
    parameter = None if module is None else next(module.parameters(), None)
    if parameter is not None and parameter.device != start.device:
        raise ValueError(
            f"start must be on the device of the world model, {parameter.device}, "
            f"got {start.device}"
        )


def _action_features(world_model: WorldModel, config: PlannerConfig, actions: Any) -> int:
    """A, from whatever tells it; all that tell must agree."""
    told: dict[str, int] = {}
    if isinstance(actions, Tensor) and actions.dim() == 3:
        told["actions"] = actions.shape[2]
    if config.action_features is not None:
        told["config.action_features"] = config.action_features
    for owner in (world_model, module_of(world_model)):
        attribute = getattr(owner, "action_features", None)
        if isinstance(attribute, int):
            told["world_model.action_features"] = attribute
    for name in ("action_low", "action_high"):
        bound = getattr(config, name)
        if isinstance(bound, tuple):
            told[f"config.{name}"] = len(bound)
    if not told:
        raise ValueError(
            "action_features is not known: set config.action_features, give the world model an "
            "attribute of that name, or pass warm-start actions (B, T, A)"
        )
    if len(set(told.values())) > 1:
        raise ValueError(f"action_features must agree, got {told}")
    return next(iter(told.values()))


def _warm_start(actions: Any, shape: tuple[int, int, int], start: Tensor) -> Tensor:
    if not isinstance(actions, Tensor):
        raise TypeError(f"actions must be a tensor (B, T, A), got {type(actions).__name__}")
    if tuple(actions.shape) != shape:
        raise ValueError(f"actions must have shape (B, T, A) = {shape}, got {tuple(actions.shape)}")
    if actions.dtype != start.dtype:
        raise TypeError(f"actions must have the dtype of start, {start.dtype}, got {actions.dtype}")
    _check_finite("actions", actions)
    return actions.detach().clone()


def _bounds(config: PlannerConfig, width: int, like: Tensor) -> tuple[Tensor | None, Tensor | None]:
    def exact(bound: Any) -> Tensor | None:
        if bound is None:
            return None
        values = torch.tensor(bound, dtype=torch.float64, device="cpu")
        return values.expand(width) if values.numel() == 1 else values

    rows = torch.empty(1, 1, width, dtype=like.dtype, device="cpu")
    low, high = box_bounds(exact(config.action_low), exact(config.action_high), rows)
    if low is not None and high is not None and bool((low > high).any()):
        raise ValueError(
            f"action_low and action_high leave no number that {like.dtype} can hold between them: "
            f"{config.action_low} to {config.action_high}"
        )
    low = None if low is None else low.to(like.device)
    return low, None if high is None else high.to(like.device)


def _problem_ids(plan_ids: Any, problems: int, repeats: int, device: torch.device) -> Tensor:
    if plan_ids is None:
        return torch.arange(problems, device=device)
    if not isinstance(plan_ids, Tensor) or plan_ids.dtype != torch.int64:
        raise TypeError(
            f"plan_ids must be an int64 tensor (B,), got {getattr(plan_ids, 'dtype', plan_ids)}"
        )
    if tuple(plan_ids.shape) != (problems,):
        raise ValueError(
            f"plan_ids must have shape (B,) = ({problems},), got {tuple(plan_ids.shape)}"
        )
    most = 2**63 // repeats
    if problems and (int(plan_ids.min()) < 0 or int(plan_ids.max()) >= most):
        raise ValueError(f"plan_ids must be from 0 to {most - 1} with {repeats} samples")
    return plan_ids


def _vector(
    world_model: Any, name: str, values: Any, size: int, like: Tensor, dtype: torch.dtype
) -> Tensor | None:
    if values is None:
        return None
    if values and isinstance(values[0], tuple):  # by name
        if not isinstance(world_model, LatentModel):
            raise TypeError(f"config.{name} is by name, so the world model must be a LatentModel")
        values = world_model.weights(dict(values), f"config.{name}")
    if len(values) != size:
        raise ValueError(f"config.{name} must have D = {size} numbers, got {len(values)}")
    return torch.tensor(values, dtype=dtype, device=like.device)
