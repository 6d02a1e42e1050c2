"""jepa-wms: a planner for its `GC_Agent`, `plan(z_init, steps_left) -> PlanningResult`.

    agent = GC_Agent(cfg, model, dset, preprocessor)
    agent.planner = JepaPlanner(
        model.unroll, action_dim=model.action_dim, decode_unroll=model.decode_unroll,
        planner="grasp", settings={"iterations": 60}, **cfg.planner,
    )
    agent.set_goal(goal)                                  # calls planner.set_objective
    agent.act(obs, steps_left=steps)

Written to the signatures of facebookresearch/jepa-wms (`evals/simu_env_planning/planning`,
`app/vjepa_wm`) and tested with a stand-in that has them; nothing of it is imported. A latent is a
tensor `(b, 1, V, H, W, D)`, or a `TensorDict` of that as "visual" and `(b, 1, tokens, P)` as
"proprio"; `unroll(z, actions (T, b, A))` returns `(T + 1, b, ...)` of the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from grasp_planner.adapters.frames import FramePlanner, Frames
from grasp_planner.options import check_number, check_whole
from grasp_planner.running import Moment
from grasp_planner.world_model import frozen


class PlanningResult(NamedTuple):
    """The fields of jepa-wms' own, which may be given as `result_type` in its place."""

    actions: Tensor
    losses: Tensor | None = None
    prev_elite_losses_mean: Tensor | None = None
    prev_elite_losses_std: Tensor | None = None
    info: dict[str, Any] | None = None
    plan_metrics: dict[str, Any] | None = None
    pred_frames_over_iterations: list[Any] | None = None
    predicted_best_encs_over_iterations: list[Any] | None = None


class JepaPlanner:
    """A jepa-wms planner over any planner of this package.

    Nothing is encoded here: the agent encodes the observation and the goal once each.

    Args:
        unroll: the method of an `EncPredWM`, whose module is found by it and left as it was found.
        action_dim: A, of one step of the world model.
        horizon: T at most. >= 1; 32.
        num_act_stepped: how many actions are returned. >= 1; None is all.
        max_norms, max_norm_dims: bounds: actions of `max_norm_dims[i]` are within
            +- `max_norms[i]`. None is `settings`' bounds.
        decode_each_iteration, decode_unroll: whether the best plan of each iteration is unrolled
            and decoded, and by what; else only the plan returned is unrolled.
        distribute_planner: must be False.
        planner: "grasp", "lifted-newton", "cem", "icem", "mppi", "gradient", "latco" or
            "grasp-paper". "grasp".
        settings: of that planner's config, by name.
        result_type: what a result is made of, by keywords; `PlanningResult`, or jepa-wms' own.
        unused: settings of jepa-wms' own planners (`iterations`, `num_samples`, `var_scale`, ...),
            so that its config can be passed as it is.

    Raises:
        TypeError, ValueError: an argument is wrong; it is named.
    """

    def __init__(
        self,
        unroll: Callable[..., Any],
        action_dim: int,
        horizon: int = 32,
        num_act_stepped: int | None = None,
        max_norms: Sequence[float] | None = None,
        max_norm_dims: Sequence[Sequence[int]] = ((0, 1, 2), (6,)),
        decode_each_iteration: bool = False,
        decode_unroll: Callable[..., Any] | None = None,
        distribute_planner: bool = False,
        *,
        planner: str = "grasp",
        settings: Mapping[str, Any] | None = None,
        result_type: Callable[..., Any] = PlanningResult,
        **unused: Any,
    ) -> None:
        self.unroll = unroll
        self.model = _model_of(unroll)
        self.action_dim = check_whole("action_dim", action_dim, 1)
        self.horizon = check_whole("horizon", horizon, 1)
        if num_act_stepped is not None:
            num_act_stepped = check_whole("num_act_stepped", num_act_stepped, 1)
        self.num_act_stepped = num_act_stepped
        if distribute_planner:
            raise ValueError("distribute_planner must be False: every process plans alone here")
        self.decode_each_iteration = decode_each_iteration
        self.decode_unroll = decode_unroll
        self.result_type = result_type
        self.objective: Callable[..., Tensor] | None = None
        bounds = {} if max_norms is None else _bounds(self.action_dim, max_norms, max_norm_dims)
        self._planner = FramePlanner(
            self.model,
            self._step,
            history=self.model.ctxt_window,
            action_features=self.action_dim,
            planner=planner,
            settings=settings,
        )
        self._planner.settings |= bounds
        self._joined: Callable[[Frames], Any] = _only_visual  # a latent as `unroll` returns it

    def set_objective(self, objective: Callable[..., Tensor]) -> None:
        """What to minimise: `(encodings (T + 1, b, ...), actions (T, b, A)) -> (b,)`.

        Its `target_enc (1, 1, ...)` is where the plan leads. A weighted squared distance of the
        last frame to it is recognised, and any other objective is minimised as a cost.
        """
        if not callable(objective):
            raise TypeError(f"objective must be callable, got {type(objective).__name__}")
        if getattr(objective, "target_enc", None) is None:
            raise TypeError("objective must have a target_enc, the goal's encoding")
        self.objective = objective

    def plan(self, z_init: Any, steps_left: int | None = None) -> Any:
        """A result of `actions (min(T, steps_left, num_act_stepped), A)`.

        Its `losses` and `prev_elite_losses_mean (iterations, 1)` are the best plan's cost after
        each iteration; `prev_elite_losses_std` is 0.

        Raises:
            TypeError, ValueError: an argument is wrong; it is named.
        """
        if self.objective is None:
            raise ValueError("objective must be set before plan: call set_objective")
        most = self.horizon
        if steps_left is not None:
            most = min(most, check_whole("steps_left", steps_left, 1))
        start = _one_frame("z_init", z_init)
        goal = _one_frame("objective.target_enc", self.objective.target_enc)  # type: ignore
        self._joined = type(z_init) if isinstance(z_init, Mapping) else _only_visual
        losses: list[float] = []
        best: list[Tensor] = []

        def watch(moment: Moment) -> None:
            losses.append(float(moment.cost[0]))
            if self.decode_each_iteration:
                best.append(moment.actions.transpose(0, 1).clone())

        plan = self._planner.plan(start, goal, self._cost, horizon=most, callback=watch)
        # What a search does after its last iteration belongs to it.
        losses[-1:] = [float(plan.cost[0])]
        best[-1:] = [plan.actions.transpose(0, 1)]
        with torch.no_grad(), frozen(self.model):
            unrolled = [self.unroll(z_init, act_suffix=actions) for actions in best]
            decode = self.decode_unroll if self.decode_each_iteration else None
            decoded = None if decode is None else [decode(encodings) for encodings in unrolled]
        cost = torch.tensor(losses)[:, None]
        return self.result_type(
            actions=plan.actions[0, : self.num_act_stepped],
            losses=cost,
            prev_elite_losses_mean=cost,
            prev_elite_losses_std=torch.zeros_like(cost),
            pred_frames_over_iterations=decoded,
            predicted_best_encs_over_iterations=unrolled,
        )

    def _cost(self, frames: Frames, actions: Tensor, goals: Frames) -> Tensor:
        assert self.objective is not None
        encodings = {name: value.transpose(0, 1) for name, value in frames.items()}
        return self.objective(self._joined(encodings), actions.transpose(0, 1))

    def _step(self, frames: Frames, actions: Tensor) -> Frames:
        """The next frame, as `EncPredWM.unroll` takes it from `forward_pred`."""
        inner = self.model.model
        visual, _, proprio = inner.forward_pred(
            frames["visual"], inner.encode_act(actions), frames.get("proprio")
        )
        found = {"visual": visual, "proprio": proprio}
        return {name: found[name][:, -1] for name in frames}


def _model_of(unroll: Any) -> Any:
    """The `EncPredWM` that `unroll` is a method of: its windows are made by hand here."""
    model = getattr(unroll, "__self__", None)
    inner = getattr(model, "model", None)
    if not isinstance(model, torch.nn.Module) or not hasattr(inner, "forward_pred"):
        raise TypeError(
            "unroll must be the method of an EncPredWM, whose model has encode_act and "
            f"forward_pred, got {unroll!r}"
        )
    mode = getattr(model, "proprio_mode", "predict_proprio")
    if mode != "predict_proprio":
        raise ValueError(f"proprio_mode must be 'predict_proprio', got {mode!r}")
    return model


def _one_frame(name: str, latent: Any) -> Frames:
    """The entries `(1, *shape)` of one frame of one problem."""
    entries = dict(latent.items()) if isinstance(latent, Mapping) else {"visual": latent}
    for key, value in entries.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}[{key!r}] must be a tensor, got {type(value).__name__}")
        if tuple(value.shape[:2]) != (1, 1):
            raise ValueError(
                f"{name}[{key!r}] must be one frame of one problem, (1, 1, ...), "
                f"got {tuple(value.shape)}"
            )
    return {key: value[:, 0] for key, value in entries.items()}


def _only_visual(entries: Frames) -> Tensor:
    return entries["visual"]


def _bounds(
    action_dim: int, norms: Sequence[float], dims: Sequence[Sequence[int]]
) -> dict[str, tuple[float, ...]]:
    """Bounds of every action, free in no group; as in jepa-wms, the shorter list counts."""
    if not isinstance(norms, Sequence):
        raise TypeError(f"max_norms must be numbers, got {norms!r}")
    most = [float("inf")] * action_dim
    for norm, group in zip(norms, dims, strict=False):
        for dim in group:
            if not 0 <= dim < action_dim:
                raise ValueError(f"max_norm_dims must be from 0 to {action_dim - 1}, got {dim}")
            most[dim] = check_number("max_norms", norm, 0.0)
    return {"action_low": tuple(-m for m in most), "action_high": tuple(most)}
