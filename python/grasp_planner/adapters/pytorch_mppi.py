"""The interface of `pytorch_mppi`, `controller.command(state) -> action`, over any planner.

    from grasp_planner.adapters.pytorch_mppi import Controller

    controller = Controller(dynamics, running_cost, nx=2, noise_sigma=torch.eye(1), u_max=2.0)
    action = controller.command(state)

Its arguments are those of `pytorch_mppi.MPPI` (0.9), which need not be installed; a planner and its
settings come on top. What is minimised is the same sum, `sum_t running_cost(s_{t+1}, u_t) +
terminal_state_cost`, without MPPI's own cost of perturbations. Plans start from the last one, moved
on by a step.

Symbols: K rows, T steps, nx state features, nu action features.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grasp_planner.base import Planner
from grasp_planner.baselines import ICEMPlanner
from grasp_planner.goals import Anywhere
from grasp_planner.options import check_number, check_settings, check_whole
from grasp_planner.plan import Plan
from grasp_planner.world_model import Wrapper


class Controller:
    """Receding horizon control of one system, planned anew with every command.

    Args:
        dynamics: `(state (K, nx), action (K, nu)) -> next state (K, nx)`, for any K.
        running_cost: `(state (K, nx), action (K, nu)) -> (K,)`, for any K, of the state that the
            action has led to. Differentiable where the planner goes by gradients; those that only
            sample need none.
        nx: state features.
        noise_sigma: `(nu, nu)` covariance of the first samples around the nominal plan; its type is
            that of states and actions. Planners that sample take the mean of its deviations in
            units of the box; how actions vary together is not theirs to know.
        num_samples: plans that are sampled at once, of planners that sample. >= 1; 100.
        horizon: T. >= 1; 15.
        device: where states and plans are.
        terminal_state_cost: `(states (1, K, T, nx), actions (1, K, T, nu)) -> (K,)`, of the states
            from the second on.
        lambda_: not used. It scales costs, and planners here rank them, or weigh them in units of
            their own deviation: their temperature is a setting.
        u_min, u_max: the box, a number or `(nu,)`; where one is None it is minus the other.
        u_init: `(nu,)`, what fills the end of a shifted plan; None is 0.
        U_init: `(T, nu)`, the first nominal plan; None: the first search begins without one.
        u_scale: actions are multiplied by it before dynamics and costs see them; 1.
        u_per_command: actions that a command returns; > 1 gives `(u_per_command, nu)`. 1 to T; 1.
        planner: the class of any planner here. `ICEMPlanner`, of 3 iterations.
        seed: of all noise; the same states after `reset` give the same commands. 0.
        time_budget_ms: for each command; None is no limit.
        settings: of the planner's config, beside what the arguments above say: `iterations=3`.

    Attributes:
        plan: the last `Plan`; None before the first.

    Raises:
        TypeError, ValueError: an argument is wrong; it is named.
    """

    def __init__(
        self,
        dynamics: Callable[[Tensor, Tensor], Tensor],
        running_cost: Callable[[Tensor, Tensor], Tensor],
        nx: int,
        noise_sigma: Tensor,
        num_samples: int = 100,
        horizon: int = 15,
        device: torch.device | str = "cpu",
        terminal_state_cost: Callable[[Tensor, Tensor], Tensor] | None = None,
        lambda_: float = 1.0,
        *,
        u_min: float | Tensor | None = None,
        u_max: float | Tensor | None = None,
        u_init: Tensor | None = None,
        U_init: Tensor | None = None,
        u_scale: float = 1.0,
        u_per_command: int = 1,
        planner: type[Planner] = ICEMPlanner,
        seed: int = 0,
        time_budget_ms: float | None = None,
        **settings: Any,
    ) -> None:
        if not (isinstance(planner, type) and issubclass(planner, Planner)):
            raise TypeError(f"planner must be a class of Planner, got {planner!r}")
        functions = {"dynamics": dynamics, "running_cost": running_cost}
        if terminal_state_cost is not None:
            functions["terminal_state_cost"] = terminal_state_cost
        for name, function in functions.items():
            if not callable(function):
                raise TypeError(f"{name} must be callable, got {type(function).__name__}")
        if not isinstance(noise_sigma, Tensor) or not noise_sigma.is_floating_point():
            raise TypeError("noise_sigma must be a floating Tensor (nu, nu)")
        if noise_sigma.numel() == 1:
            noise_sigma = noise_sigma.view(1, 1)
        self.nu = len(noise_sigma)
        square = tuple(noise_sigma.shape) == (self.nu, self.nu) != (0, 0)
        if not square or not bool((noise_sigma.diag() > 0).all()):
            raise ValueError(
                "noise_sigma must be (nu, nu), nu >= 1, with a diagonal above 0, got "
                f"{tuple(noise_sigma.shape)}, {noise_sigma.tolist()}"
            )
        self.nx = check_whole("nx", nx, 1)
        self.dynamics, self.running_cost = dynamics, running_cost
        self.terminal_state_cost = terminal_state_cost
        self.u_scale = check_number("u_scale", u_scale, -math.inf)
        self.time_budget_ms = time_budget_ms
        self._like = torch.empty(0, dtype=noise_sigma.dtype, device=device)
        check_settings(settings, planner.config_type, ("action_features", "cost"))
        low, high = _box(u_min, u_max, self.nu)
        asked: dict[str, Any] = {
            "horizon": horizon,
            "action_features": self.nu,
            "action_low": low,
            "action_high": high,
            "hold": 1,
            "seed": seed,
            "cost": self._cost,
            **({"iterations": 3} if planner is ICEMPlanner else {}),  # more is hardly better
            **_sampling(planner, num_samples, noise_sigma, low, high),
            **settings,
        }
        self.planner = planner(_Scaled(dynamics, u_scale), planner.config_type(**asked))
        self.u_per_command = check_whole("u_per_command", u_per_command, 1, self.T, "the horizon")
        filling = _tensor("u_init", 0.0 if u_init is None else u_init).to(self._like)
        if filling.numel() not in (1, self.nu):
            raise ValueError(f"u_init must be ({self.nu},), got {tuple(filling.shape)}")
        self.u_init = filling.flatten().expand(self.nu)
        self._given = U_init
        self.plan: Plan | None
        self._U: Tensor
        self._commands: int  # since the last reset
        self._warm: bool  # whether a search begins from U
        self.reset()

    @property
    def U(self) -> Tensor:
        """The nominal plan, `(T, nu)`. The next search begins from one that is set."""
        return self._U

    @U.setter
    def U(self, actions: Tensor) -> None:
        self._U, self._warm = self._fitted("U", actions), True

    @property
    def T(self) -> int:
        """The horizon."""
        return int(self.planner.config.horizon)

    def command(self, state: Any, shift_nominal_trajectory: bool = True) -> Tensor:
        """The first action `(nu,)` of a new plan from `state (nx,)`; see `u_per_command`.

        With `shift_nominal_trajectory` the search begins from the last plan without its first
        action: it was executed. Without, from the last plan: it is refined.
        """
        start = _tensor("state", state).to(self._like)
        if start.numel() != self.nx or start.dim() > 2:
            raise ValueError(
                f"state must be (nx,) = ({self.nx},), got {tuple(start.shape)}; for several "
                "systems at once there is grasp_planner.MPC"
            )
        if shift_nominal_trajectory:
            self.shift_nominal_trajectory()
        plan = self.planner.plan(
            start.view(1, self.nx),
            Anywhere(),
            actions=self.U[None] if self._warm else None,
            plan_ids=torch.tensor([self._commands], device=start.device),
            time_budget_ms=self.time_budget_ms,
        )
        self.plan, self.U = plan, plan.actions[0]
        self._commands += 1
        return self.U[0] if self.u_per_command == 1 else self.U[: self.u_per_command]

    def shift_nominal_trajectory(self) -> None:
        """The nominal plan moves on by a step, and ends in `u_init`."""
        self._U = torch.cat((self.U[1:], self.u_init[None]))

    def get_action_sequence(self) -> Tensor:
        """`U`."""
        return self.U

    def reset(self) -> None:
        """Begins a new trial: the nominal plan and the noise are as at first."""
        self._commands, self._warm = 0, self._given is not None
        self.plan = None
        self._U = self._fitted("U_init", self.u_init[None] if self._given is None else self._given)

    def change_horizon(self, horizon: int) -> None:
        """Plans are as long from now on: the nominal one is cut, or goes on with `u_init`."""
        check_whole("horizon", horizon, self.u_per_command)
        config = replace(self.planner.config, horizon=horizon)
        self.planner = type(self.planner)(self.planner.world_model, config)
        self._U = self._fitted("U", self.U)

    def get_rollouts(self, state: Tensor, num_rollouts: int = 1, U: Tensor | None = None) -> Tensor:
        """States `(num_rollouts, T, nx)` after each action of `U (T, nu)`, None the nominal plan.

        `state` is `(nx,)`, or `(num_rollouts, nx)`.
        """
        actions = self.U if U is None else U.to(self._like)
        state = _tensor("state", state).to(self._like).reshape(-1, self.nx)
        if len(state) == 1:
            state = state.expand(num_rollouts, -1)
        states = []
        with torch.no_grad():
            for action in actions:
                state = self.planner.world_model(state, action.expand(len(state), -1))
                states.append(state)
        return torch.stack(states, 1)

    def _fitted(self, name: str, given: Any) -> Tensor:
        """`(T, nu)`: a plan is cut, or goes on with `u_init`."""
        actions = _tensor(name, given)
        if actions.dim() != 2 or actions.shape[1] != self.nu:
            raise ValueError(f"{name} must be (T, nu), nu = {self.nu}, got {tuple(actions.shape)}")
        more = self.u_init.expand(max(self.T - len(actions), 0), self.nu)
        return torch.cat((actions.to(self._like)[: self.T], more))

    def _cost(self, states: Tensor, actions: Tensor) -> Tensor:
        """The sum over `states (N, T + 1, nx)` and `actions (N, T, nu)`, `(N,)`."""
        count, scaled, later = len(states), self.u_scale * actions, states[:, 1:]
        running = self.running_cost(later.flatten(0, 1), scaled.flatten(0, 1))
        total = _numbers("running_cost", running, (count, actions.shape[1])).sum(1)
        if self.terminal_state_cost is None:
            return total
        terminal = self.terminal_state_cost(later[None], scaled[None])
        return total + _numbers("terminal_state_cost", terminal, (count,))


class _Scaled(Wrapper):
    """Dynamics of actions that are multiplied by a number."""

    def __init__(self, dynamics: Callable[[Tensor, Tensor], Tensor], scale: float) -> None:
        self.world_model, self.scale = dynamics, scale

    def __call__(self, state: Tensor, action: Tensor) -> Tensor:
        return self.world_model(state, self.scale * action)


def _tensor(name: str, value: Any) -> Tensor:
    """What is given as a tensor, or as numbers that can be one."""
    if isinstance(value, Tensor):
        return value
    try:
        return torch.from_numpy(np.array(value))
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be numbers, got {value!r}") from error


def _numbers(name: str, value: Any, shape: tuple[int, ...]) -> Tensor:
    """One number for each of so many rows."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must return a Tensor, got {type(value).__name__}")
    rows = torch.Size(shape).numel()
    if value.numel() != rows:
        raise ValueError(f"{name} must return ({rows},), got {tuple(value.shape)}")
    return value.reshape(shape)


def _box(u_min: Any, u_max: Any, width: int) -> tuple[Any, Any]:
    """Bounds as settings take them."""
    if u_min is None and u_max is None:
        return None, None
    given = {"u_min": u_min, "u_max": u_max}
    low, high = (None if u is None else _tensor(n, u).double() for n, u in given.items())
    low = -high if low is None and high is not None else low
    high = -low if high is None and low is not None else high
    assert low is not None
    assert high is not None
    for name, bound in (("u_min", low), ("u_max", high)):
        if bound.numel() not in (1, width):
            raise ValueError(f"{name} must be a number or ({width},), got {tuple(bound.shape)}")
    if bool((low > high).any()):
        raise ValueError(f"u_min must not be above u_max, got {low.tolist()} and {high.tolist()}")
    return tuple(low.flatten().expand(width).tolist()), tuple(high.flatten().expand(width).tolist())


def _sampling(
    planner: type[Planner], samples: int, noise_sigma: Tensor, low: Any, high: Any
) -> dict[str, Any]:
    """What a planner's config has for the number of samples and their deviation."""
    known: dict[str, Any] = {field.name: field.default for field in fields(planner.config_type)}
    settings: dict[str, Any] = {}
    if "samples" in known:
        settings["samples"] = check_whole("num_samples", samples, 1)
    for name in ("least_samples", "elites"):  # which are at most so many
        if name in known:
            settings[name] = min(known[name], max(samples // 4, 1))
    deviation = noise_sigma.diag().double().sqrt()
    if low is not None:
        half = (torch.tensor(high) - torch.tensor(low)).double() / 2
        deviation = deviation / torch.where(torch.isfinite(half) & (half > 0), half, 1.0)
    std = float(deviation.mean())
    for name in ("std", "initial_std"):
        if name in known:
            settings[name] = std
    for name in ("last_std", "min_std"):  # where it falls to, at least
        if name in known:
            settings[name] = min(known[name], std)
    return settings
