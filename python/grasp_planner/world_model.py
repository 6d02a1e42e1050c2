"""What a world model must offer, and the care that is taken of one while planning through it."""

from __future__ import annotations

import functools
import threading
import weakref
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
    """The module behind a world model: itself, or the owner of a bound method or a partial."""
    while isinstance(world_model, functools.partial):
        world_model = world_model.func
    owner = getattr(world_model, "__self__", world_model)
    return owner if isinstance(owner, nn.Module) else None


class _Frozen:
    """A module's modes, flags and buffers as they were found, put back by `restore`."""

    def __init__(self, module: nn.Module) -> None:
        self.users = 0
        # Autograd has no use for inference tensors, and torch refuses to touch their flags.
        usable = (p for p in module.parameters() if not p.is_inference())
        self.trainable = [p for p in usable if p.requires_grad]
        self.training = [part for part in module.modules() if part.training]
        self.buffers = [
            (part, name, buffer, buffer.clone())
            for part in module.modules()
            for name, buffer in part._buffers.items()
            if buffer is not None
        ]
        for part in self.training:
            part.training = False
        for parameter in self.trainable:
            parameter.requires_grad_(False)

    def restore(self) -> None:
        for part in self.training:
            part.training = True
        for parameter in self.trainable:
            parameter.requires_grad_(True)
        with torch.no_grad():
            for part, name, buffer, before in self.buffers:
                part._buffers[name] = buffer  # the model may have put another in its place
                if not buffer.is_inference() and not torch.equal(buffer, before):
                    buffer.copy_(before)


_frozen: weakref.WeakKeyDictionary[nn.Module, _Frozen] = weakref.WeakKeyDictionary()
_frozen_lock = threading.Lock()


@contextmanager
def frozen(world_model: Callable[..., Tensor]) -> Iterator[None]:
    """Evaluation mode and no weight gradients inside; everything as before outside, also on error.

    Buffers that the model changes as it runs (counters, running statistics) are put back too.
    `.grad` is never touched: the planner differentiates for actions only. Threads may plan through
    one module at the same time: the first in freezes it, the last out restores it.
    """
    module = module_of(world_model)
    if module is None:
        yield
        return
    with _frozen_lock:
        found = _frozen.get(module)
        if found is None:
            found = _frozen[module] = _Frozen(module)
        found.users += 1
    try:
        yield
    finally:
        with _frozen_lock:
            found.users -= 1
            if found.users == 0:
                del _frozen[module]
                found.restore()


def needed(gradient: Tensor | None) -> Tensor:
    """A gradient for the actions, which autograd gives None for if they were not used."""
    if gradient is None:
        raise ValueError(
            "world_model does not use the action that it is given, or is detached from it: no "
            "gradient can reach it"
        )
    return gradient


class WorldModelError(RuntimeError):
    """The world model raised an error, which is this one's cause; or memory ran out."""

    def __init__(self, message: str, *, out_of_memory: bool = False) -> None:
        super().__init__(message)
        self.out_of_memory = out_of_memory


def is_out_of_memory(error: BaseException) -> bool:
    """Torch has a type for a GPU's memory, and a sentence for the CPU's."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


class CheckedModel:
    """A world model in units of `scale`, its answers checked: shape, and a path from the actions.

    `scale` `(D,)` or None: states here are the world model's divided by it.
    """

    def __init__(
        self,
        world_model: Callable[..., Tensor],
        scale: Tensor | None = None,
        path: str = "general path",
    ) -> None:
        self.world_model = world_model
        self.scale = scale
        self.path = path

    def __call__(self, state: Tensor, action: Tensor) -> Tensor:
        given = state if self.scale is None else state * self.scale
        versions = given._version, action._version
        prediction = self._called(given, action)
        if (given._version, action._version) != versions:
            raise ValueError("world_model changes its state or action input in place")
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

    def _called(self, given: Tensor, action: Tensor) -> Tensor:
        """The world model's answer, or its error with what it was given."""
        try:
            return self.world_model(given, action)
        except Exception as error:
            if type(error).__module__ == checkpoint.__module__:
                raise  # no failure: recomputation has all that it needs
            raise WorldModelError(
                f"world_model failed on state {tuple(given.shape)} {given.dtype} and action "
                f"{tuple(action.shape)} {action.dtype}, {self.parameters()}: {error}",
                out_of_memory=is_out_of_memory(error),
            ) from error

    def parameters(self) -> str:
        """What the world model is made of, for a message."""
        module = module_of(self.world_model)
        parameter = None if module is None else next(module.parameters(), None)
        if parameter is None:
            return "no parameters"
        return f"parameters {parameter.dtype} on {parameter.device}"

    def action_gradient(self, prediction: Tensor, action: Tensor, cotangent: Tensor) -> Tensor:
        """`(dF/da)^T cotangent`: one VJP, for the actions alone."""
        (gradient,) = torch.autograd.grad(prediction, action, cotangent, allow_unused=True)
        return needed(gradient)

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
            )
            states.extend(rows.unbind(0))
            state = rows[-1]
        return torch.stack(states, dim=1)

    def jacobians(
        self, states: Tensor, actions: Tensor, max_rows: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Prediction `(..., D)`, dF/ds `(..., D, D)` and dF/da `(..., D, A)`, by autograd.

        One evaluation of all rows, then one VJP with all D unit cotangents of every row; of
        `max_rows` at a time.
        """
        shape, (features, width) = states.shape[:-1], (states.shape[-1], actions.shape[-1])
        rows = states.reshape(-1, features), actions.reshape(-1, width)
        most = max_rows or max(len(rows[0]), 1)
        parts = [
            self._jacobians(*some) for some in zip(*(r.split(most) for r in rows), strict=True)
        ]
        prediction, by_state, by_action = (torch.cat(part) for part in zip(*parts, strict=True))
        return (
            prediction.view(*shape, features),
            by_state.view(*shape, features, features),
            by_action.view(*shape, features, width),
        )

    def _jacobians(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.enable_grad():
            given = state.detach().requires_grad_(), action.detach().requires_grad_()
            prediction = self(*given)
        units = torch.eye(state.shape[1], dtype=state.dtype, device=state.device)
        by_state, by_action = torch.autograd.grad(
            prediction,
            given,
            units[:, None].expand(-1, len(state), -1),  # (D, rows, D)
            is_grads_batched=True,
            allow_unused=True,
        )
        by_action = needed(by_action)
        if by_state is None:  # the next state may forget the last one
            by_state = torch.zeros_like(units)[:, None].expand(-1, len(state), -1)
        return prediction.detach(), by_state.transpose(0, 1), by_action.transpose(0, 1)

    def plain(self, state: Tensor, action: Tensor) -> Tensor:
        """The world model in units of `scale` and nothing else, for `torch.func` to transform."""
        if self.scale is None:
            return self._called(state, action).to(state.dtype)
        return self._called(state * self.scale, action).to(state.dtype) / self.scale

    def _steps(self, state: Tensor, actions: Tensor) -> list[Tensor]:
        states = []
        for action in actions.unbind(1):
            state = self(state, action)
            states.append(state)
        return states
