"""What a world model must offer, and the care that is taken of one while planning through it."""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class WorldModel(Protocol):
    """A map from states `(rows, D)` and actions `(rows, A)` to next states `(rows, D)`.

    It may return a tuple, whose first is the next state. Dict latents, windows of history and
    noise: see `LatentModel`.

    Rows are independent. The next state must depend on the action through autograd. An `nn.Module`
    is planned through in evaluation mode and left exactly as it was found; a plain function is
    called as it is. An attribute `action_features: int`, where there is one, gives A.
    """

    def __call__(self, state: Tensor, action: Tensor, /) -> Tensor: ...


class Wrapper:
    """Something around a world model that is called in its place."""

    world_model: Callable[..., Any]


def module_of(world_model: Callable[..., Any]) -> nn.Module | None:
    """The module behind a world model: itself, or the owner of a bound method or a partial."""
    while True:
        if isinstance(world_model, Wrapper):
            world_model = world_model.world_model
        elif isinstance(world_model, functools.partial):
            world_model = world_model.func
        else:
            break
    owner = getattr(world_model, "__self__", world_model)
    return owner if isinstance(owner, nn.Module) else None


class _Frozen:
    """A module's modes, flags and buffers as they were found, put back by `restore`."""

    def __init__(self, module: nn.Module, weights: bool) -> None:
        self.users = 0
        # Autograd has no use for inference tensors, and torch refuses to touch their flags.
        usable = (p for p in module.parameters() if weights and not p.is_inference())
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

    def thaw(self) -> None:
        for parameter in self.trainable:
            parameter.requires_grad_(True)
        self.trainable = []

    def restore(self) -> None:
        for part in self.training:
            part.training = True
        self.thaw()
        with torch.no_grad():
            for part, name, buffer, before in self.buffers:
                part._buffers[name] = buffer  # the model may have put another in its place
                if not buffer.is_inference() and not torch.equal(buffer, before):
                    buffer.copy_(before)


_frozen: weakref.WeakKeyDictionary[nn.Module, _Frozen] = weakref.WeakKeyDictionary()
_frozen_lock = threading.Lock()


@contextmanager
def frozen(world_model: Callable[..., Tensor], weights: bool = True) -> Iterator[None]:
    """Evaluation mode and no weight gradients inside; everything as before outside, also on error.

    Buffers that the model changes as it runs (counters, running statistics) are put back too.
    `.grad` is never touched: the planner differentiates for actions only. Where `weights` is False,
    gradients for them are wanted, and their flags are as outside. Threads may plan through one
    module at the same time: the first in freezes it, the last out restores it, and weights are free
    from when somebody wants their gradients.
    """
    module = module_of(world_model)
    if module is None:
        yield
        return
    with _frozen_lock:
        found = _frozen.get(module)
        if found is None:
            found = _frozen[module] = _Frozen(module, weights)
        elif not weights:
            found.thaw()
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


@dataclass(frozen=True)
class Rows:
    """What a plan starts from, as one row of numbers: `[s_0, past states, past actions, noise]`.

    A model of single states without noise starts from its state alone.

    Attributes:
        state, action: D, A. history: H. noise: Z. steps: T.
    """

    state: int
    action: int
    steps: int
    history: int = 1
    noise: int = 0

    def joined(self, states: Tensor, actions: Tensor, noise: Tensor | None) -> Tensor:
        """Rows `(N, S)` of `states (N, H, D)`, the newest last, past `actions (N, H - 1, A)`, and
        `noise (N, T, Z)`.
        """
        parts = [states[:, -1], states[:, :-1].flatten(1), actions.flatten(1)]
        return torch.cat(parts if noise is None else [*parts, noise.flatten(1)], 1)

    def split(self, start: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """State `(N, D)`, past states `(N, H - 1, D)` and actions `(N, H - 1, A)`, noise."""
        past = self.history - 1
        sizes = [self.state, past * self.state, past * self.action, self.steps * self.noise]
        state, states, actions, noise = start.split(sizes, 1)
        return (
            state,
            states.unflatten(1, (past, self.state)) if past else states[:, None, :0],
            actions.unflatten(1, (past, self.action)) if past else actions[:, None, :0],
            noise.unflatten(1, (self.steps, self.noise)) if self.noise else None,
        )


class CheckedModel:
    """A world model in units of `scale`, its answers checked: shape, and a path from the actions.

    `scale` `(D,)` or None: states here are the world model's divided by it. `rows`: what plans
    start from; None is a state. `precision`: what autocast computes the model in; None is as it is.
    `call`: the model compiled or captured, for all but linearisations.
    """

    def __init__(
        self,
        world_model: Callable[..., Any],
        scale: Tensor | None = None,
        path: str = "general path",
        rows: Rows | None = None,
        precision: torch.dtype | None = None,
        call: Callable[..., Any] | None = None,
    ) -> None:
        self.world_model = world_model
        self.call = world_model if call is None else call
        self.scale = scale
        self.path = path
        self.rows = rows
        self.precision = precision

    @property
    def history(self) -> int:
        """H, states that the model looks at."""
        return 1 if self.rows is None else self.rows.history

    @property
    def markov(self) -> bool:
        """Whether the next state is a function of one state and one action alone."""
        return self.rows is None or (self.rows.history == 1 and self.rows.noise == 0)

    def __call__(
        self, state: Tensor, action: Tensor, noise: Tensor | None = None, compiled: bool = True
    ) -> Tensor:
        """Next states `(rows, D)` of `(rows, D)`, `(rows, A)`; of windows, `(rows, H, ...)`."""
        given = state if self.scale is None else state * self.scale
        versions = given._version, action._version
        prediction: Any = self._called(given, action, noise, compiled)
        if (given._version, action._version) != versions:
            raise ValueError("world_model changes its state or action input in place")
        if isinstance(prediction, tuple) and prediction:  # (next state, extras)
            prediction = prediction[0]
        if not isinstance(prediction, Tensor):
            raise TypeError(
                "world_model must return a tensor of next states (rows, D), "
                f"got {type(prediction).__name__}"
            )
        wanted = (state.shape[0], state.shape[-1])
        if prediction.shape != wanted:
            raise ValueError(
                f"world_model must return next states of shape {wanted}, the shape of "
                f"its state input, got {tuple(prediction.shape)}"
            )
        if action.requires_grad and not prediction.requires_grad:
            raise ValueError(
                "world_model returned a prediction that is detached from the action: no gradient "
                "can reach it (is there a detach(), a no_grad() or numpy in the model?)"
            )
        prediction = prediction.to(state.dtype)
        return prediction if self.scale is None else prediction / self.scale

    def _autocast(self, device: str) -> AbstractContextManager[Any]:
        if self.precision is None:
            return nullcontext()
        return torch.autocast(device, dtype=self.precision)

    def unchecked(self, state: Tensor, action: Tensor) -> Tensor:
        """`__call__` and nothing else, for `torch.compile` to trace."""
        with self._autocast(state.device.type):
            given = state if self.scale is None else state * self.scale
            found: Any = self.world_model(given, action)
        found = found[0] if isinstance(found, tuple) else found
        return found.to(state.dtype) if self.scale is None else found.to(state.dtype) / self.scale

    def _called(
        self, given: Tensor, action: Tensor, noise: Tensor | None = None, compiled: bool = True
    ) -> Any:
        """The world model's answer, or its error with what it was given."""
        call = self.call if compiled else self.world_model
        fate = () if noise is None else (noise,)
        try:
            with self._autocast(given.device.type):
                return call(given, action, *fate)
        except Exception as error:
            raise self._named(error, given, action)  # noqa: B904 (it has its cause)

    def _named(self, error: Exception, given: Tensor, action: Tensor) -> Exception:
        """The world model's error, with what it was given."""
        if type(error).__module__ == checkpoint.__module__:
            return error  # no failure: recomputation has all that it needs
        named = WorldModelError(
            f"world_model failed on state {tuple(given.shape)} {given.dtype} and action "
            f"{tuple(action.shape)} {action.dtype}, {self.parameters()}: {error}",
            out_of_memory=is_out_of_memory(error),
        )
        named.__cause__ = error
        return named

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

    # --------------------------------------------------------------- one step from virtual states

    def lifted(self, start: Tensor, states: Tensor, actions: Tensor, first: int) -> Tensor:
        """Next states `(N, t, D)` of `t` steps from step `first` on, all in one batch.

        `states`, `actions` `(N, lead + t, ...)` begin `lead = min(H - 1, first)` steps before;
        `start (N, S)` has what was before step 0.
        """
        noise = None
        if self.rows is not None:
            _, past_states, past_actions, noise = self.rows.split(start)
            missing = max(self.history - 1 - first, 0)
            if missing:
                states = torch.cat((past_states[:, -missing:], states), 1)
                actions = torch.cat((past_actions[:, -missing:], actions), 1)
        if self.history > 1:
            states = states.unfold(1, self.history, 1).movedim(-1, 2)
            actions = actions.unfold(1, self.history, 1).movedim(-1, 2)
        if noise is not None:
            noise = noise[:, first : first + states.shape[1]].flatten(0, 1)
        rows = states.flatten(0, 1), actions.flatten(0, 1)
        return self(*rows, noise).unflatten(0, states.shape[:2])

    def predict(
        self, start: Tensor, states: Tensor, actions: Tensor, max_rows: int | None = None
    ) -> Tensor:
        """Next states `(N, T, D)` of `states (N, T, D)`, `actions (N, T, A)`; of `max_rows` at a
        time.
        """
        plans, steps = actions.shape[:2]
        rows = max_rows or max(plans * steps, 1)
        few, some = max(1, rows // max(steps, 1)), min(rows, steps)
        parts = []
        for n in range(0, max(plans, 1), few):
            row = []
            for first in range(0, steps, some):
                lead = min(self.history - 1, first)
                window = slice(first - lead, first + some)
                given = states[n : n + few, window], actions[n : n + few, window]
                row.append(self.lifted(start[n : n + few], *given, first))
            parts.append(torch.cat(row, 1) if len(row) > 1 else row[0])
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    # ----------------------------------------------------------------------------- true rollouts

    def rollout(self, start: Tensor, actions: Tensor, max_rows: int | None = None) -> Tensor:
        """States `(N, T + 1, D)` from `start (N, S)` under `actions (N, T, A)`, differentiable.

        With `max_rows`, the graph of at most that many rows is alive at a time: stretches of time
        are evaluated again on the way back (`torch.utils.checkpoint`), so memory does not grow with
        T.
        """
        plans, steps = actions.shape[:2]
        window, noise, lead = [start], None, self.history - 1
        if self.rows is not None:
            state, past_states, past_actions, noise = self.rows.split(start)
            window = [*past_states.unbind(1)[-lead:], state] if lead else [state]
            actions = torch.cat((past_actions, actions), 1) if lead else actions
        first_state = window[-1]
        stretch = steps if max_rows is None else max(1, max_rows // max(plans, 1))
        differentiable = torch.is_grad_enabled() and actions.requires_grad
        if lead and not differentiable:
            return self._in_one_buffer(window, actions, noise)
        if stretch >= steps or not differentiable:
            return torch.stack([first_state, *self._steps(window, actions, noise)], dim=1)
        states = [first_state]
        for first in range(0, steps, stretch):
            part = actions[:, first : first + stretch + lead]
            fate = None if noise is None else noise[:, first : first + stretch]
            rows = checkpoint(
                lambda a, fate, *w: torch.stack(self._steps(list(w), a, fate)),
                part,
                fate,
                *window,
                use_reentrant=False,
            )
            states.extend(rows.unbind(0))
            window = [*window, *rows.unbind(0)][-self.history :]
        return torch.stack(states, dim=1)

    def _steps(self, window: list[Tensor], actions: Tensor, noise: Tensor | None) -> list[Tensor]:
        """The states after each step, from the last H states under `actions (N, H - 1 + t, A)`.

        Actions are unbound at once: the gradient of a slice is as large as all of them.
        """
        if self.history > 1:
            actions = actions.unfold(1, self.history, 1).movedim(-1, 2)
        every = actions.unbind(1)
        fates = [None] * len(every) if noise is None else noise.unbind(1)
        states = []
        for action, fate in zip(every, fates, strict=True):
            seen = window[0] if self.history == 1 else torch.stack(window, 1)
            state = self(seen, action, fate)
            states.append(state)
            window = [*window[1:], state]
        return states

    def _in_one_buffer(self, window: list[Tensor], actions: Tensor, noise: Tensor | None) -> Tensor:
        """The rollout `(N, T + 1, D)`: every window is a view of it."""
        history, steps = self.history, actions.shape[1] - self.history + 1
        buffer = window[0].new_empty(len(actions), history + steps, window[0].shape[1])
        buffer[:, :history] = torch.stack(window, 1)
        for t in range(steps):
            given = buffer[:, t : t + history], actions[:, t : t + history]
            buffer[:, t + history] = self(*given, None if noise is None else noise[:, t])
        return buffer[:, history - 1 :]

    # ----------------------------------------------------------------------------- linearisations

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
            prediction = self(*given, compiled=False)
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
        try:
            return self.unchecked(state, action)
        except Exception as error:
            raise self._named(error, state, action)  # noqa: B904
