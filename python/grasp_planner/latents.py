"""World models whose latents are dicts, that look back, that are stochastic, or that return more.

    model = LatentModel(
        world_model,                                     # (dict, action) -> dict, or (dict, extras)
        latents={"visual": (196, 384), "proprio": (10,)},
        history=3,
    )
    planner = GraspPlanner(model, GraspConfig(horizon=20, goal_feature_weight={"visual": 1.0, ...}))
    # start: dict of (B, 3, 196, 384) and (B, 3, 10); goal: one state; past: (B, 2, A)
    plan = planner.plan(start, goal, past_actions=past)
    model.unpack(plan.states)["proprio"]                 # (B, 21, 10), a view

The planner has one buffer of D numbers per state; the world model gets views of it by name. Entries
are packed where a plan begins, and where the world model returns its answer.

Symbols: B problems, D numbers in all entries of a latent, A action features, H states the model
looks at, Z numbers of noise per step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from grasp_planner.options import check_whole
from grasp_planner.world_model import Wrapper, module_of


class LatentModel(Wrapper):
    """A world model, and what a planner must know to call it.

    It is called as `world_model(state, action)`; with `history` H > 1 both are windows of the last
    H steps, the newest last; with `noise_features` there is `noise (rows, Z)` as third argument.
    Where it returns a tuple, the first is the next state and the rest is not used.

    Args:
        world_model: rows of `state` are tensors `(rows, D)` (`(rows, H, D)` with history), or, with
            `latents`, dicts of `(rows, *shape)` (`(rows, H, *shape)`); it returns next states of
            the same kind, without H.
        latents: the entries' names and shapes; None is a tensor.
        history: H, states and actions that the model looks at. >= 1; 1. The planner holds one
            trajectory; windows are views of it, of which only the rows of one call are gathered.
        noise_features: Z, of a stochastic model: it gets the same standard normal numbers for the
            same plan id and step in all iterations and for all candidates, so that plans are
            compared under one fate. >= 0; 0.
        action_features: A; None is the world model's own attribute of that name, if it has one.

    Raises:
        TypeError, ValueError: an argument is wrong; it is named.
    """

    def __init__(
        self,
        world_model: Callable[..., Any],
        *,
        latents: Mapping[str, Sequence[int]] | None = None,
        history: int = 1,
        noise_features: int = 0,
        action_features: int | None = None,
    ) -> None:
        if not callable(world_model):
            raise TypeError(f"world_model must be callable, got {type(world_model).__name__}")
        self.world_model = world_model
        self.history = check_whole("history", history, 1)
        self.noise_features = check_whole("noise_features", noise_features, 0)
        owners = (world_model, module_of(world_model))
        told = [getattr(owner, "action_features", None) for owner in owners]
        own = next((n for n in told if isinstance(n, int)), None)
        if action_features is not None:
            own = check_whole("action_features", action_features, 1)
        if own is not None:
            self.action_features = own
        self.latents: dict[str, tuple[int, ...]] | None = None
        if latents is not None:
            if not isinstance(latents, Mapping) or not latents:
                raise TypeError(f"latents must be names and shapes, got {latents!r}")
            self.latents = {
                str(name): tuple(check_whole(f"latents[{name!r}]", n, 1) for n in shape)
                for name, shape in latents.items()
            }

    @property
    def sizes(self) -> dict[str, int]:
        """How many of the D numbers each entry has."""
        assert self.latents is not None
        return {name: math.prod(shape) for name, shape in self.latents.items()}

    def pack(self, entries: Mapping[str, Tensor], name: str = "entries") -> Tensor:
        """Entries `(..., *shape)` as one tensor `(..., D)`.

        Raises:
            TypeError, ValueError: an entry is missing, unknown, or of the wrong shape or type.
        """
        known = self.latents or {}
        if set(entries) != set(known):
            raise ValueError(f"{name} must have the entries {list(known)}, got {list(entries)}")
        parts, leading = [], None
        for key, shape in known.items():
            value = entries[key]
            if not isinstance(value, Tensor):
                raise TypeError(f"{name}[{key!r}] must be a tensor, got {type(value).__name__}")
            ahead = value.dim() - len(shape)
            if ahead < 0 or tuple(value.shape[ahead:]) != shape:
                wanted = f"(..., {', '.join(map(str, shape))})"
                raise ValueError(f"{name}[{key!r}] must be {wanted}, got {tuple(value.shape)}")
            leading = value.shape[:ahead] if leading is None else leading
            if value.shape[:ahead] != leading:
                raise ValueError(
                    f"{name}[{key!r}] must be of {tuple(leading)} like the entries before it, "
                    f"got {tuple(value.shape[:ahead])}"
                )
            parts.append(value.reshape(*leading, math.prod(shape)))
        return torch.cat(parts, -1)

    def unpack(self, states: Tensor) -> dict[str, Tensor]:
        """`(..., D)` as views `(..., *shape)` by name."""
        assert self.latents is not None
        parts = states.split(list(self.sizes.values()), -1)
        shapes = self.latents.items()
        return {
            name: part.unflatten(-1, shape) if shape else part[..., 0]
            for part, (name, shape) in zip(parts, shapes, strict=True)
        }

    def weights(self, by_name: Mapping[str, float], name: str = "weights") -> tuple[float, ...]:
        """One number for each of D, from one for each entry.

        Raises:
            ValueError: an entry has none, or there is no such entry.
        """
        if self.latents is None or set(by_name) != set(self.latents):
            known = None if self.latents is None else list(self.latents)
            raise ValueError(
                f"{name} must have a number for each entry of {known}, got {dict(by_name)}"
            )
        return tuple(float(by_name[n]) for n, size in self.sizes.items() for _ in range(size))

    def __call__(self, state: Tensor, action: Tensor, *noise: Tensor) -> Tensor:
        """The next state `(rows, D)` of packed states."""
        given: Any = state if self.latents is None else self.unpack(state)
        found: Any = self.world_model(given, action, *noise)
        if isinstance(found, tuple):
            found = found[0]
        if self.latents is None or not isinstance(found, Mapping):
            return found  # a tensor is checked by the planner
        return self.pack(found, "the world model's next state")
