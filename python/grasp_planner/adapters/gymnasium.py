"""Whole episodes of any Gymnasium environment under any planner: `grasp_planner.evaluate`.

    environments = gymnasium.make_vec("PointMaze_UMaze-v3", num_envs=8)
    result = grasp_planner.evaluate(environments, planner, episodes=24, goal=to_goal)
    print(result)    # 24 episodes: success 96 % (80-99), return ..., length ..., ms per replanning

Vector environments reset themselves in one of three ways (`AutoresetMode`): with the step after an
episode's last, with the last step itself, or not at all. What is counted, judged, encoded and
planned for here is the same in all three: transitions within episodes, and nothing else.

Symbols: N environments, E episodes, D state features, A action features, H states that the world
model looks at.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from grasp_planner.adapters.gymnasium_vector import Environments
from grasp_planner.adapters.gymnasium_view import View
from grasp_planner.base import Planner
from grasp_planner.evaluation.statistics import quantile, wilson
from grasp_planner.goals import Goal
from grasp_planner.mpc import MPC, STRIDE, State
from grasp_planner.options import check_whole
from grasp_planner.running import Progress, Watch

if TYPE_CHECKING:
    import gymnasium
    from gymnasium.vector import VectorEnv

Infos = list[dict[str, Any]]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What came of each of E episodes, in their order; of an interrupted run, of those that ended.

    Attributes:
        episodes: `(E,)` int, their numbers.
        returns: `(E,)` float64, the sum of rewards.
        lengths: `(E,)` int, environment steps.
        success: `(E,)` bool, whether there was success at any step; None where it was not asked.
        terminated: `(E,)` bool, whether the environment ended the episode; else it was cut off.
        plans: `(E,)` int, how often it was planned for.
        milliseconds: `(E,)` float64, the mean over these of the time that planning took, for this
            environment and for all that replanned in the same step.
        out_of_time: `(E,)` int, how many of its plans the time budget cut short.
        interrupted: whether the run was stopped by Ctrl-C.
    """

    episodes: Tensor
    returns: Tensor
    lengths: Tensor
    success: Tensor | None
    terminated: Tensor
    plans: Tensor
    milliseconds: Tensor
    out_of_time: Tensor
    interrupted: bool = False

    def __str__(self) -> str:
        count = len(self.episodes)
        told = f"{count} episodes" + (", then interrupted" if self.interrupted else "")
        if count == 0:
            return told
        parts = []
        if self.success is not None:
            good = int(self.success.sum())
            low, high = wilson(good, count)
            share = f"success {100 * good / count:.0f} %"
            parts.append(f"{share} ({100 * low:.0f}-{100 * high:.0f})")
        error = float(self.returns.std()) / count**0.5 if count > 1 else float("nan")
        parts.append(f"return {float(self.returns.mean()):.4g} ± {error:.2g} (standard error)")
        parts.append(f"length {float(self.lengths.double().mean()):.4g}")
        median = quantile(self.milliseconds.tolist(), 0.5)
        parts.append(f"{median:.3g} ms per replanning (median episode)")
        late = int(self.out_of_time.sum())
        if late:
            parts.append(f"{late} of {int(self.plans.sum())} plans out of time")
        return f"{told}: " + ", ".join(parts)


def evaluate(
    env: VectorEnv | gymnasium.Env,
    planner: Planner | MPC,
    *,
    episodes: int | None = None,
    seed: int = 0,
    observe: Callable[[Any], Any] | None = None,
    goal: str | Goal | State | Callable[[Any, Infos], Any] | None = None,
    encode: Callable[[Any], Any] | None = None,
    action: Callable[[Tensor], Any] | None = None,
    success: str | Callable[[Any, Infos], Any] | None = None,
    max_steps: int | None = None,
    execute: int | None = None,
    repeat: int | None = None,
    time_budget_ms: float | None = None,
    progress: Progress | bool | None = None,
) -> Evaluation:
    """Runs episodes in closed loop, replanning on the way, and says how they went.

    Episode k begins with `reset(seed=seed + k)` and has noise of its own, in environment k mod N:
    what comes of it depends on neither N nor the other episodes, where the environment is
    deterministic given its seed, and rows of encoder and world model do not depend on the rows
    beside them (matrix products do, in the last bit). A vector environment that neither is
    Gymnasium's `SyncVectorEnv` or `AsyncVectorEnv` nor has autoreset disabled can only be seeded
    once: there, episodes after the first N are as its own resets make them.

    Functions below get `observation`, as the environment returned it, N rows, and `infos`, a dict
    for each environment of what it last said under each name in this episode.

    Args:
        env: a vector environment, or a single one, which is run as a vector of one. It is not
            closed. Actions are a Box of floating numbers, unless there is `action`.
        planner: a planner; or an `MPC`, whose own `execute`, `repeat`, `tail` and `time_budget_ms`
            hold. It is left as it is.
        episodes: E. 1 to 2**20; None is N.
        seed: of the first episode. >= 0; 0.
        observe: `observation` -> what is to be planned from, `(N, ...)`. None is the entry
            "observation" of a dict that has one, else the observation itself.
        goal: the goal of each environment. The name of an entry of `observation` or `infos`; or a
            function `(observation, infos) -> goals`, asked in every step; or one for all, a `Goal`,
            `(D,)`, `(N, D)`. Arrays are observations: they are encoded as such, once per goal.
            Tensors and `Goal`s are the world model's own, and are not. None is the entry
            "desired_goal"; without one, no goal: the config's `cost` alone counts.
        encode: observations as a tensor `(rows, ...)` -> states `(rows, D)`, or a dict of latents;
            called once per observation that is acted on. A module is run in evaluation mode. None
            flattens numbers to `(rows, D)`.
        action: planned actions `(N, A)` -> what `env.step` takes. None is as they are, which must
            be inside the action space.
        success: the name of a flag in `infos`, or a function `(observation, infos) -> (N,)` bool;
            asked after every step, of that step's observation, also of an episode's last. None: not
            measured.
        max_steps: environment steps after which an episode is cut off. >= 1; None: the environment
            itself ends it.
        execute, repeat, time_budget_ms: of the `MPC` that is made for a planner; None are its
            defaults.
        progress: called with k after k episodes have ended; True shows a progress bar.

    Returns:
        An `Evaluation`. Ctrl-C ends the run, and the episodes that have ended are returned.

    Raises:
        MissingExtraError: Gymnasium is not installed.
        TypeError, ValueError: an argument, or what a function returned, is wrong; it is named.
    """
    check_whole("seed", seed, 0)
    if max_steps is not None:
        check_whole("max_steps", max_steps, 1)
    for name, given in (("observe", observe), ("encode", encode), ("action", action)):
        if given is not None and not callable(given):
            raise TypeError(f"{name} must be callable, got {type(given).__name__}")
    if success is not None and not isinstance(success, str) and not callable(success):
        raise TypeError(f"success must be a name or a function, got {type(success).__name__}")
    watch = Watch(progress)
    controller = _controller(planner, execute, repeat, time_budget_ms)
    environments = Environments(env, seed, action)
    count = environments.count
    if episodes is None:
        episodes = count
    check_whole("episodes", episodes, 1, STRIDE, "the most")
    if max_steps is not None and not environments.seeded:
        raise ValueError(
            "max_steps needs environments that can be reset one by one: Gymnasium's SyncVectorEnv "
            "or AsyncVectorEnv, or one with autoreset disabled; or wrap its own in a TimeLimit"
        )
    controller.reset(environment_ids=range(count))
    run = _Run(environments, controller, episodes, max_steps, success)
    view = View(controller, environments.count, observe, goal, encode)
    interrupted = False
    with watch.open(episodes), torch.inference_mode(False), torch.no_grad():
        try:
            while run.under_way:
                run.step(view)
                watch.advanced(len(run.ended))
        except KeyboardInterrupt:
            interrupted = True
    return run.result(interrupted)


def _controller(planner: Any, *given: Any) -> MPC:
    """A controller of its own for this run."""
    names = ("execute", "repeat", "time_budget_ms")
    settings = {n: v for n, v in zip(names, given, strict=True) if v is not None}
    if isinstance(planner, MPC):
        if settings:
            raise TypeError(f"an MPC has its own {', '.join(settings)}: give them to it")
        return copy.copy(planner)  # its clocks are the only thing that changes
    if not isinstance(planner, Planner):
        raise TypeError(f"planner must be a Planner or an MPC, got {type(planner).__name__}")
    return MPC(planner, **settings)


class _Run:
    """Which environment is in which episode, and what has come of each."""

    def __init__(
        self,
        environments: Environments,
        controller: MPC,
        episodes: int,
        max_steps: int | None,
        success: str | Callable[[Any, Infos], Any] | None,
    ) -> None:
        self.environments, self.controller = environments, controller
        self.episodes, self.max_steps, self.success = episodes, max_steps, success
        count = environments.count
        self.episode = np.arange(count)  # of each environment
        self.busy = self.episode < episodes
        self.begins = self.busy.copy()
        self.tally = _blank(count)
        self.ended: list[tuple[float, ...]] = []

    @property
    def under_way(self) -> bool:
        return bool(self.busy.any())

    def step(self, view: View) -> None:
        """One step of every environment."""
        environments, tally = self.environments, self.tally
        active = self.busy & ~environments.resetting
        if active.any():
            state, goal, given = view.look(environments, active, self.begins & active)
            self.begins &= ~active
            control = self.controller.act(state, goal, active=torch.from_numpy(active), **given)
            replanned = control.replanned.cpu().numpy()
            tally["plans"] += replanned
            tally["milliseconds"] += control.milliseconds * replanned
            tally["out_of_time"] += replanned & control.out_of_time.cpu().numpy()
            view.remember(control.actions)
            actions: Tensor | None = control.actions
        else:
            actions = None
        reward, terminated, truncated = environments.step(actions, active)
        tally["returns"] += np.where(active, reward, 0.0)
        tally["lengths"] += active
        if self.success is not None:
            tally["success"] = np.maximum(tally["success"], active & self._succeeded())
        over = active & (terminated | truncated)
        if self.max_steps is not None:
            over |= active & (tally["lengths"] >= self.max_steps)
        self._end(over, terminated)

    def _end(self, over: np.ndarray, terminated: np.ndarray) -> None:
        """Episodes are over; their environments begin the next of theirs, if there is one."""
        if not over.any():
            return
        for i in over.nonzero()[0]:
            if isinstance(self.success, str) and self.success not in self.environments.infos[i]:
                known = sorted(self.environments.infos[i])
                raise ValueError(f"success is {self.success!r}, which info never had: {known}")
            numbers = (float(value[i]) for value in self.tally.values())
            self.ended.append((self.episode[i], *numbers, terminated[i]))
        for name, blank in _blank(len(over)).items():
            self.tally[name] = np.where(over, blank, self.tally[name])
        self.episode = np.where(over, self.episode + len(over), self.episode)
        self.busy = self.episode < self.episodes
        fresh = over & self.busy
        if fresh.any():
            self.begins |= fresh
            self.environments.begin(fresh, self.episode)
            named = torch.from_numpy(self.episode)
            self.controller.forget(torch.from_numpy(fresh), environment_ids=named)

    def _succeeded(self) -> np.ndarray:
        observation, infos = self.environments.observation, self.environments.infos
        if isinstance(self.success, str):
            return np.array([bool(info.get(self.success, False)) for info in infos])
        assert self.success is not None
        found = np.asarray(self.success(observation, infos))
        wanted = (len(infos),)
        if found.shape != wanted or found.dtype != np.bool_:
            raise ValueError(f"success must return {wanted} bool, got {found.shape} {found.dtype}")
        return found

    def result(self, interrupted: bool) -> Evaluation:
        rows = torch.tensor(sorted(self.ended), dtype=torch.float64).reshape(-1, 8)
        number, returns, lengths, success, plans, time, late, terminated = rows.unbind(1)
        return Evaluation(
            episodes=number.long(),
            returns=returns,
            lengths=lengths.long(),
            success=None if self.success is None else success > 0,
            terminated=terminated > 0,
            plans=plans.long(),
            milliseconds=time / plans,
            out_of_time=late.long(),
            interrupted=interrupted,
        )


def _blank(count: int) -> dict[str, np.ndarray]:
    names = ("returns", "lengths", "success", "plans", "milliseconds", "out_of_time")
    return {name: np.zeros(count) for name in names}
