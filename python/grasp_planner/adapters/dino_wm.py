"""dino_wm: planning where its `CEMPlanner` and `GDPlanner` do, with any planner of this package.

    # conf/planner/grasp.yaml, or `sub_planner` of conf/planner/mpc.yaml (there `target`)
    _target_: grasp_planner.adapters.dino_wm.DinoWMPlanner
    horizon: 5
    planner: grasp
    settings: {iterations: 60, candidates: 4}

Written to the signatures of gaoyuezhou/dino_wm (`models/visual_world_model.py`, `planning/*.py`,
`plan.py`) and tested with a stand-in that has them; nothing of it is imported. A frame's latent is
`encode_obs`: `visual (b, t, patches, channels)` and `proprio (b, t, features)`. What its predictor
sees is one tensor of both and the action's embedding: `concat_dim` 0 adds two tokens, 1 tiles both
beside every patch. A rollout of the latter carries what the predictor makes of every tile, of which
its objective sees the first: here the others are a third entry, "tiles", of no weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grasp_planner.adapters.frames import FramePlanner, Frames
from grasp_planner.options import check_whole
from grasp_planner.running import Moment
from grasp_planner.world_model import frozen


class DinoWMPlanner:
    """A dino_wm planner: `plan(obs_0, obs_g, actions=None) -> (actions, action_len)`.

    Start and goal are encoded once per call; all iterations and candidates plan from the latents.

    Args:
        horizon: T, steps of the world model, each of `frameskip` environment steps. >= 1. It may be
            set later, as dino_wm's `plan.py` does.
        wm: a `VWorldModel`; it is left as it was found.
        action_dim: A, of one step of the world model (`frameskip` actions at once).
        objective_fn: of dino_wm's `create_objective_fn`, or any
            `(frames, goal frames) -> (b,)` of dicts `(b, t, ...)`. A weighted squared distance of
            the last frame is recognised, and any other is minimised as a cost.
        preprocessor: its `transform_obs` is called with numpy observations.
        evaluator, log_filename: kept for those who ask for them; not used here.
        wandb_run: its `log` gets the mean cost of the best plans after each iteration; or None.
        planner: "grasp", "lifted-newton", "cem", "icem", "mppi", "gradient", "latco" or
            "grasp-paper". "grasp".
        settings: of that planner's config, by name; actions are normalised, so are their bounds.
        unused: what other planners of dino_wm are given, so that one config serves all.

    Raises:
        TypeError, ValueError: an argument is wrong; it is named.
    """

    def __init__(
        self,
        horizon: int,
        wm: Any,
        action_dim: int,
        objective_fn: Any,
        preprocessor: Any,
        evaluator: Any = None,
        wandb_run: Any = None,
        logging_prefix: str = "plan_0",
        log_filename: str | None = "logs.json",
        *,
        planner: str = "grasp",
        settings: Mapping[str, Any] | None = None,
        **unused: Any,
    ) -> None:
        if not isinstance(wm, torch.nn.Module):
            raise TypeError(f"wm must be a torch.nn.Module, got {type(wm).__name__}")
        if not callable(objective_fn):
            raise TypeError(f"objective_fn must be callable, got {type(objective_fn).__name__}")
        self.horizon = check_whole("horizon", horizon, 1)
        self.wm: Any = wm
        self.action_dim = check_whole("action_dim", action_dim, 1)
        self.objective_fn = objective_fn
        self.preprocessor = preprocessor
        self.evaluator = evaluator
        self.wandb_run = wandb_run
        self.logging_prefix = logging_prefix
        self.log_filename = log_filename
        self.device = next(wm.parameters()).device
        self._planner = FramePlanner(
            wm,
            self._step,
            history=check_whole("wm.num_hist", wm.num_hist, 1),
            action_features=self.action_dim,
            planner=planner,
            settings=settings,
        )

    def plan(
        self,
        obs_0: Mapping[str, Any],
        obs_g: Mapping[str, Any],
        actions: Tensor | None = None,
    ) -> tuple[Tensor, np.ndarray]:
        """Actions `(b, T, A)`, normalised, and their lengths `(b,)`: infinite, all are valid.

        Args:
            obs_0, obs_g: numpy `visual (b, 1, h, w, 3)` and `proprio (b, 1, ...)`.
            actions: `(b, t, A)`, t <= T, normalised: a warm start, after which there is no action.

        Raises:
            TypeError, ValueError: an argument is wrong; it is named.
        """
        with torch.no_grad(), frozen(self.wm):
            start, goal = self._encoded("obs_0", obs_0), self._encoded("obs_g", obs_g)
        plan = self._planner.plan(
            start,
            goal,
            self._objective,
            horizon=check_whole("horizon", self.horizon, 1),
            actions=None if actions is None else self._warm(actions, start["visual"]),
            callback=None if self.wandb_run is None else self._log,
        )
        return plan.actions, np.full(len(plan.actions), np.inf)

    def _objective(self, frames: Frames, actions: Tensor, goals: Frames) -> Tensor:
        cost: Tensor = self.objective_fn(frames, goals)
        return cost

    def _encoded(self, name: str, obs: Mapping[str, Any]) -> Frames:
        """The latents `(b, *shape)` of one frame each."""
        given = self.preprocessor.transform_obs(obs)
        found = self.wm.encode_obs({key: value.to(self.device) for key, value in given.items()})
        if not isinstance(found, Mapping) or not {"visual", "proprio"} <= set(found):
            names = sorted(found) if isinstance(found, Mapping) else type(found).__name__
            raise TypeError(f"wm.encode_obs must return 'visual' and 'proprio', got {names}")
        frames = {key: found[key] for key in ("visual", "proprio")}
        for value in frames.values():
            if len(value) == 0 or value.shape[1] != 1:
                found = tuple(value.shape[:2])
                raise ValueError(f"{name} must have one frame (b, 1, ...), b >= 1, got {found}")
        if self.wm.concat_dim == 1:
            count = frames["visual"].shape[2] * self.wm.num_proprio_repeat
            frames["tiles"] = frames["proprio"].repeat(1, 1, count - 1)
        return {key: value[:, 0] for key, value in frames.items()}

    def _step(self, frames: Frames, actions: Tensor) -> Frames:
        """The next frame, as `VWorldModel.rollout` takes it from `predict`."""
        wm = self.wm
        visual, proprio, embedding = frames["visual"], frames["proprio"], wm.encode_act(actions)
        if wm.concat_dim == 0:
            z = torch.cat([visual, proprio[:, :, None], embedding[:, :, None]], 2)
        else:
            patches = visual.shape[2]
            beside = torch.cat([proprio, frames["tiles"]], -1).unflatten(-1, (patches, -1))
            acted = embedding.repeat(1, 1, wm.num_action_repeat)
            acted = acted[:, :, None].expand(-1, -1, patches, -1)
            z = torch.cat([visual, beside, acted], 3)
        z = wm.predict(z)[:, -1:]
        latest = {name: value[:, 0] for name, value in wm.separate_emb(z)[0].items()}
        if wm.concat_dim == 1:
            beside = z[:, 0, :, -(wm.proprio_dim + wm.action_dim) : -wm.action_dim].flatten(1)
            latest["tiles"] = beside[:, proprio.shape[-1] :]
        return latest

    def _warm(self, actions: Tensor, like: Tensor) -> Tensor:
        wanted = (len(like), self.action_dim)
        if not isinstance(actions, Tensor):
            raise TypeError(f"actions must be a tensor (b, t, A), got {type(actions).__name__}")
        given = tuple(actions.shape)
        if len(given) != 3 or given[::2] != wanted or given[1] > self.horizon:
            raise ValueError(
                f"actions must be (b, t, A) = ({wanted[0]}, up to {self.horizon}, {wanted[1]}), "
                f"got {given}"
            )
        warm = like.new_zeros(wanted[0], self.horizon, wanted[1])
        warm[:, : actions.shape[1]] = actions.detach().to(like)
        return warm

    def _log(self, moment: Moment) -> None:
        loss = float(moment.cost.mean())
        self.wandb_run.log({f"{self.logging_prefix}/loss": loss, "step": moment.iteration})
