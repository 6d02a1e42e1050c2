"""The registry: one line per case. `grasp bench` runs them, and the tests run them all, tiny."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

BASELINES = ("eager", "compiled")


@dataclass(frozen=True)
class Shape:
    """N plans, T steps, D state features, A action features; hidden layers of an MLP model."""

    plans: int
    steps: int
    features: int
    actions: int = 2
    hidden: int = 0
    layers: int = 0

    def __str__(self) -> str:
        text = f"N={self.plans} T={self.steps} D={self.features}"
        return f"{text} A={self.actions} H={self.hidden}x{self.layers}" if self.hidden else text


@dataclass(frozen=True)
class Case:
    """One op at one shape.

    Attributes:
        options: what the op is told, such as `noise="white"`, and how much one launch does,
            `iterations` or `sync_steps`: times, bytes and operations are then those of one part.
        baselines: what it is held against: "eager" torch, and the same "compiled".
        quick: whether `--quick` runs it, and `quick_compiled` whether it compiles for it.
    """

    op: str
    shape: Shape
    options: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    baselines: tuple[str, ...] = BASELINES
    quick: bool = True
    quick_compiled: bool = False

    @property
    def name(self) -> str:
        words = (str(v) for v in self.options.values() if isinstance(v, str))
        return " ".join([self.op, *words, str(self.shape), str(self.dtype).removeprefix("torch.")])

    @property
    def parts(self) -> int:
        """Iterations or sync steps of one launch."""
        return int(self.options.get("iterations", self.options.get("sync_steps", 1)))

    @property
    def part(self) -> str:
        """What the numbers are of."""
        if "iterations" in self.options:
            return "iteration"
        return "sync step" if "sync_steps" in self.options else "call"


TINY, BATCH, WIDE = Shape(1, 50, 4), Shape(64, 50, 64), Shape(1, 50, 75264)
ACTIONS, MANY_ACTIONS = Shape(1, 50, 2), Shape(4096, 50, 8)
SMALL_MODEL, SMALL_MODELS = Shape(1, 50, 4, 2, 128, 3), Shape(16, 50, 4, 2, 128, 3)
LATENT_MODEL = Shape(16, 50, 64, 2, 256, 2)
NEWTON, NEWTON_ARM = Shape(16, 80, 4, 2, 128, 3), Shape(8, 80, 22, 20, 256, 3)
NEWTON_STEP, NEWTON_ARM_STEP = Shape(16, 80, 4, 2), Shape(8, 80, 22, 20)
WHITE, BRIDGE, QUIET = {"noise": "white"}, {"noise": "bridge"}, {"noise": "none"}
ADAM, SGD = {"optimizer": "adam"}, {"optimizer": "sgd"}
PLAN, SYNC = {"noise": "white", "iterations": 20}, {"sync_steps": 4}
HOLD = {"hold": 5}
BF16 = torch.bfloat16

CASES = (
    Case("lifted_step_", TINY, WHITE, quick_compiled=True),
    Case("lifted_step_", BATCH, WHITE),
    Case("lifted_step_", BATCH, BRIDGE),
    Case("lifted_step_", BATCH, QUIET),
    Case("lifted_step_", BATCH, WHITE, BF16),
    Case("lifted_step_", WIDE, WHITE, quick=False),
    Case("lifted_step_", WIDE, BRIDGE, quick=False),
    Case("lifted_step_", WIDE, QUIET, quick=False),
    Case("lifted_loss", TINY),
    Case("lifted_loss", BATCH),
    Case("lifted_loss", WIDE, quick=False),
    Case("action_step_", ACTIONS, ADAM),
    Case("action_step_", MANY_ACTIONS, ADAM),
    Case("action_step_", MANY_ACTIONS, SGD),
    Case("gaussian_noise", TINY, WHITE),
    Case("gaussian_noise", BATCH, WHITE),
    Case("gaussian_noise", BATCH, BRIDGE),
    Case("gaussian_noise", WIDE, WHITE, quick=False),
    Case("mlp_rollout", SMALL_MODEL),
    Case("mlp_rollout", LATENT_MODEL),
    Case("mlp_rollout_backward", SMALL_MODEL),
    Case("mlp_rollout_backward", LATENT_MODEL),
    Case("mlp_lifted_plan_", SMALL_MODEL, PLAN),
    Case("mlp_lifted_plan_", SMALL_MODELS, PLAN, quick=False),
    Case("mlp_lifted_plan_", LATENT_MODEL, PLAN, quick=False),
    Case("mlp_sync_", SMALL_MODEL, SYNC),
    Case("mlp_sync_", LATENT_MODEL, SYNC, quick=False),
    Case("mlp_jacobians", NEWTON),
    Case("mlp_jacobians", NEWTON_ARM, quick=False),
    Case("lifted_newton_step_", NEWTON_STEP, HOLD, baselines=("eager",)),
    Case("lifted_newton_step_", NEWTON_ARM_STEP, HOLD, baselines=("eager",), quick=False),
)


def select(text: str = "", *, quick: bool = False, cases: Iterable[Case] = CASES) -> list[Case]:
    """The cases whose name contains `text`; those of `--quick` alone if asked."""
    return [case for case in cases if text in case.name and (case.quick or not quick)]
