"""Wall-Pixels: Wall-Single, seen by a camera and planned in the latents of its frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from grasp_planner.interruptible import Report, ShouldStop, never, no_report
from grasp_planner.tasks import training
from grasp_planner.tasks.task import Problems
from grasp_planner.tasks.training import Recipe
from grasp_planner.tasks.wall_pixels.model import Encoder, PixelModel
from grasp_planner.tasks.wall_pixels.vision import PixelRecipe, train_encoder
from grasp_planner.tasks.wall_single import WallSingleTask

_LATENT = 32


class WallPixelsTask(WallSingleTask):
    """State: a latent (32,) of a 64 x 64 frame; the environment's is (x, y), as in Wall-Single.

    Starts and goals are frames, and a plan costs what its last latent differs from the goal's, all
    features in one unit: far places have far latents, except across the wall. Where a latent is,
    `world_model.probe` says: it judges plans and is not seen by planners. It errs by 0.004, by 0.02
    in one frame of a hundred, so that the success radius can be Wall-Single's 0.05, and success
    mean the same.
    """

    name = "wall-pixels"
    folder = Path(__file__).parent
    recipe: ClassVar[Recipe] = PixelRecipe(
        input_gain=1.0,
        learning_rate=5e-3,
        stages=((1, 8_000), (4, 5_000), (12, 6_000)),
        latent_features=_LATENT,
    )
    architecture = PixelModel
    state_names = tuple(f"z{index}" for index in range(_LATENT))
    feature_groups: ClassVar = {}

    def __init__(self, weights: str | Path | None = None) -> None:
        super().__init__(weights)
        self.goal_weight_features = torch.ones(self.state_features)

    @property
    def encoder(self) -> Encoder:
        """Frames (..., 64, 64) uint8 -> latents (..., 32)."""
        encoder: Encoder = self.world_model.encoder
        return encoder

    def observe(self, environment_states: Tensor) -> Tensor:
        """(..., 2) -> (..., 32): a frame is taken, and encoded."""
        return self.encoder.see(environment_states)

    @classmethod
    def train(
        cls,
        recipe: Recipe,
        folder: Path,
        *,
        report: Report = no_report,
        should_stop: ShouldStop = never,
    ) -> nn.Module:
        """The encoder, then the dynamics on its latents, then the probe."""
        assert isinstance(recipe, PixelRecipe)
        first, total = recipe.encoder_steps, recipe.encoder_steps + recipe.steps
        encoder, positions, latents = Encoder(recipe.latent_features), None, None

        def report_encoder(phase: str, done: int, _: int, loss: float | None) -> None:
            report(phase, done, total, loss)

        def report_dynamics(phase: str, done: int, of: int, loss: float | None) -> None:
            if phase == "train":
                done, of = first + done, total
            report(phase, done, of, loss)

        def see(states: Tensor) -> Tensor:
            nonlocal encoder, positions, latents
            _, actions = training.gather_data(cls, recipe, folder / "data")
            encoder = train_encoder(
                recipe,
                states,
                actions,
                folder / "encoder.pt",
                report=report_encoder,
                should_stop=should_stop,
            )
            positions, latents = states, encoder.see(states)
            return latents

        model: Any = training.train(
            cls, recipe, folder, observe=see, report=report_dynamics, should_stop=should_stop
        )
        assert positions is not None
        assert latents is not None
        model.encoder.load_state_dict(encoder.state_dict())
        model.fit_probe(latents.flatten(0, 1), positions.flatten(0, 1))
        return model

    @classmethod
    def describe_training(cls, recipe: dict[str, Any]) -> str:
        return (
            "Frames of 64 x 64 grey pixels are all that the encoder sees of the environment. It is "
            f"trained jointly with a predictor of its latents in {recipe['encoder_steps']} steps "
            f"of {recipe['encoder_batch']} stretches of {recipe['encoder_unroll']} steps: "
            f"prediction, weight {recipe['prediction']:g}; variance {recipe['variance']:g}; "
            f"covariance {recipe['covariance']:g}; odometry {recipe['odometry']:g} (see "
            "`vision.py`). Then it is frozen, and the dynamics are trained on the latents of all "
            f"frames: {super().describe_training(recipe)} Positions are read off latents by a "
            "linear probe, fitted last and not seen by planners."
        )

    def quantities(self, states: Tensor) -> dict[str, Tensor]:
        return {"position": self.positions(states)}

    def environment_quantities(self, environment_states: Tensor) -> dict[str, Tensor]:
        return {"position": environment_states}

    def positions(self, states: Tensor) -> Tensor:
        """(..., 32) -> (..., 2), by the probe."""
        found: Tensor = self.world_model.probe(states)
        return found

    def environment_positions(self, environment_states: Tensor) -> Tensor:
        return environment_states

    def environment_distance(self, environment_states: Tensor, problems: Problems) -> Tensor:
        """(B, T+1, 2) or (B, 2) -> (B,): of the true positions."""
        last = self._last(environment_states, problems.environment_goal, "environment_states", "E")
        return (last - problems.environment_goal.to(last)).norm(dim=-1)
