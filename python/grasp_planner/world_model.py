"""What a world model must offer, and the care that is taken of one while planning through it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class WorldModel(Protocol):
    """A map from states `(rows, D)` and actions `(rows, A)` to next states `(rows, D)`.

    Rows are independent. The next state must depend on the action through autograd. An `nn.Module`
    is planned through in evaluation mode and left exactly as it was found; a plain function is
    called as it is. An attribute `action_features: int`, where there is one, gives A.
    """

    def __call__(self, state: Tensor, action: Tensor, /) -> Tensor: ...


def module_of(world_model: Callable[..., Tensor]) -> nn.Module | None:
    """The module behind a world model: itself, or the owner of a bound method."""
    owner = getattr(world_model, "__self__", world_model)
    return owner if isinstance(owner, nn.Module) else None


@contextmanager
def frozen(world_model: Callable[..., Tensor]) -> Iterator[None]:
    """Evaluation mode and no weight gradients inside; everything as before outside, also on error.

    Buffers that the model changes as it runs (counters, running statistics) are put back too.
    `.grad` is
    never touched: the planner differentiates for actions only.
    """
    module = module_of(world_model)
    if module is None:
        yield
        return
    modes = [(part, part.training) for part in module.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    buffers = [
        (part, name, buffer, buffer._version, buffer.clone())
        for part in module.modules()
        for name, buffer in part._buffers.items()
        if buffer is not None
    ]
    try:
        module.eval()
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        for part, mode in modes:
            part.training = mode
        with torch.no_grad():
            for part, name, buffer, version, before in buffers:
                part._buffers[name] = buffer  # the model may have put another in its place
                if buffer._version != version:
                    buffer.copy_(before)


class CheckedModel:
    """A world model in units of `scale`, its answers checked: shape, and a gradient path from the
    actions.

    `scale` `(D,)` or None: states here are the world model's divided by it.
    """

    def __init__(self, world_model: Callable[..., Tensor], scale: Tensor | None = None) -> None:
        self.world_model = world_model
        self.scale = scale

    def __call__(self, state: Tensor, action: Tensor) -> Tensor:
        prediction = self.world_model(state if self.scale is None else state * self.scale, action)
        if not isinstance(prediction, Tensor):
            raise TypeError(
                "world_model must return a tensor of next states (rows, D), "
                f"got {type(prediction).__name__}"
            )
        if prediction.shape != state.shape:
            raise ValueError(
                f"world_model must return next states of shape {tuple(state.shape)}, the shape of "
                f"its state input, got {tuple(prediction.shape)}"
            )
        if action.requires_grad and not prediction.requires_grad:
            raise ValueError(
                "world_model returned a prediction that is detached from the action: no gradient "
                "can reach it (is there a detach(), a no_grad() or numpy in the model?)"
            )
        prediction = prediction.to(state.dtype)
        return prediction if self.scale is None else prediction / self.scale

    def action_gradient(self, prediction: Tensor, action: Tensor, cotangent: Tensor) -> Tensor:
        """`(dF/da)^T cotangent`: one VJP, for the actions alone."""
        (gradient,) = torch.autograd.grad(prediction, action, cotangent, allow_unused=True)
        return self.needed(gradient)

    def needed(self, gradient: Tensor | None) -> Tensor:
        """A gradient for the actions, which autograd gives None for if they were not used."""
        if gradient is None:
            raise ValueError(
                "world_model does not use the action that it is given, or is detached from it: no "
                "gradient can reach it"
            )
        return gradient

    def rollout(self, start: Tensor, actions: Tensor, max_rows: int | None = None) -> Tensor:
        """States `(N, T + 1, D)` from `start (N, D)` under `actions (N, T, A)`, differentiable.

        With `max_rows`, the graph of at most that many rows is alive at a time: stretches of time
        are evaluated again on the way back (`torch.utils.checkpoint`), so memory does not grow with
        T.
        """
        plans, steps = actions.shape[:2]
        stretch = steps if max_rows is None else max(1, max_rows // max(plans, 1))
        if stretch >= steps or not (torch.is_grad_enabled() and actions.requires_grad):
            return torch.stack([start, *self._steps(start, actions)], dim=1)
        states, state = [start], start
        for first in range(0, steps, stretch):
            part = actions[:, first : first + stretch]
            rows = checkpoint(
                lambda s, a: torch.stack(self._steps(s, a)),
                state,
                part,
                use_reentrant=False,
                preserve_rng_state=False,
            )
            states.extend(rows.unbind(0))
            state = rows[-1]
        return torch.stack(states, dim=1)

    def _steps(self, state: Tensor, actions: Tensor) -> list[Tensor]:
        states = []
        for action in actions.unbind(1):
            state = self(state, action)
            states.append(state)
        return states
