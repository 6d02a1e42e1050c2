"""The settings of the lifted planner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from grasp_kernels.checks import MAX_MODES, NOISES, OPTIMIZERS, TERMINALS
from grasp_planner.options import (
    PlannerConfig,
    choice,
    integer,
    number,
    positive,
    schedule,
    vector,
)
from grasp_planner.schedules import Schedule

GAUSS_NEWTON = "gauss-newton"


@dataclass(frozen=True)
class GraspConfig(PlannerConfig):
    """How to plan. Each field: meaning, range, default, and what the paper has.

    The defaults are what worked best on the shipped tasks; "paper" is arXiv 2602.00475, and
    `GraspConfig.paper()` is its algorithm to the letter. The attributes that every planner has are
    those of `PlannerConfig`.

    Attributes:
        iterations: K, lifted iterations. >= 0; 200.
        candidates: R, plans per problem, which differ in their noise; the best is returned.
            >= 1; 8; paper 1.
        state_lr: step on the virtual states; 0.5 jumps to the prediction where `feature_weight` is
            1. > 0; 0.25.
        action_lr: step on the actions, in their units for "adam", per unit of gradient for "sgd".
            > 0; 0.2.
        state_optimizer: "sgd", the fused step (paper), or "adam" (the authors' code), which takes
            three passes over memory. "sgd".
        action_optimizer: "adam" (the authors' code) or "sgd" (paper). "adam".
        goal_weight: weight of every prediction's distance to the goal. A number or a `Schedule`,
            >= 0; 0, since it pulls into walls that must be rounded; paper: fixed.
        noise: "white" (paper), "bridge", smooth in time, which crosses walls, or "none". "bridge".
        noise_scale: factor on one iteration's noise, in units of `state_scale`. A number or a
            `Schedule`, >= 0; linear from 0.2 to 0.
        noise_modes: sine waves in bridge noise. 1 to 64; 8.
        initial_noise_scale: factor on the noise of the initial trajectory, in units of
            `state_scale`. >= 0; 1.5; paper 0.
        initial_actions_scale: factor on the noise that the initial actions of all but the first
            candidate get (white if `noise` is, else bridge), in units of the action. >= 0; 0, as in
            the paper.
        initialization: "linear" from start to goal (paper), or "rollout" of the initial actions;
            a warm start is always rolled out. "linear".
        terminal: "fixed": the last virtual state is the goal (paper); "free": it moves. "fixed".
        feature_weight: w, (D,), on scaled states, of the lifted loss; the rollout's cost has it too
            unless `goal_feature_weight` is given. >= 0; None is 1.
        state_gradient_scale: 0 (GRASP) differentiates the model for actions only; up to 1 lets the
            gradient through its state input back in, or a surrogate's. A number or a `Schedule`, 0
            to 1; 0.
        sync_every: iterations between syncs through the true rollout; 0 never. >= 0; 50.
        sync_steps: gradient steps on the actions in each sync. >= 0; 10.
        sync_lr: their size, as `action_lr`. > 0; 0.05.
        sync_optimizer: "adam" or "sgd" (paper), or "gauss-newton": Levenberg-Marquardt steps
            through the rollout (`grasp_planner.newton`), which have no `sync_lr`. "adam".
        sync_blend: how far the states move to the rollout after a sync. 0 to 1; 1 (paper).
        final_sync_steps: gradient steps after the last iteration. >= 0; 100; paper `sync_steps`.
        kernels: "whole-plan": all iterations to the next sync in one launch, of an MLP world model
            whose planner asks for nothing else; or "step": one at a time, as for all other models,
            which time that is shared out over processes needs. They differ in the last bits.
            "whole-plan".
    """

    iterations: int = integer(200, 0)
    candidates: int = integer(8, 1)
    state_lr: float = positive(0.25)
    action_lr: float = positive(0.2)
    state_optimizer: str = choice("sgd", OPTIMIZERS)
    action_optimizer: str = choice("adam", OPTIMIZERS)
    goal_weight: float | Schedule = schedule(0.0)
    noise: str = choice("bridge", NOISES)
    noise_scale: float | Schedule = schedule(Schedule(0.2, 0.0, "linear"))
    noise_modes: int = integer(8, 1, MAX_MODES)
    initial_noise_scale: float = number(1.5)
    initial_actions_scale: float = number(0.0)
    initialization: str = choice("linear", ("linear", "rollout"))
    terminal: str = choice("fixed", TERMINALS)
    feature_weight: tuple[float, ...] | None = vector()
    state_gradient_scale: float | Schedule = schedule(0.0, most=1.0)
    sync_every: int = integer(50, 0)
    sync_steps: int = integer(10, 0)
    sync_lr: float = positive(0.05)
    sync_optimizer: str = choice("adam", (*OPTIMIZERS, GAUSS_NEWTON))
    sync_blend: float = number(1.0, 0.0, 1.0)
    final_sync_steps: int = integer(100, 0)
    kernels: str = choice("whole-plan", ("whole-plan", "step"))

    @classmethod
    def paper(cls, **changes: Any) -> GraspConfig:
        """The paper's algorithm to the letter; `changes` are made on top.

        White noise, linear interpolation, zero actions, fixed goal weight, plain gradient steps on
        states and actions, plain gradient descent in the sync, states reset to its rollout. Step
        sizes depend on the world model; those here suit states of variance 1.
        """
        settings: dict[str, Any] = {
            "iterations": 400,
            "candidates": 1,
            "state_lr": 0.25,
            "action_lr": 0.05,
            "sync_every": 100,
            "sync_steps": 10,
            "sync_lr": 0.05,
            "noise": "white",
            "initial_noise_scale": 0.0,
            "initialization": "linear",
            "initial_actions_scale": 0.0,
            "goal_weight": Schedule(0.05),
            "noise_scale": Schedule(0.05),
            "state_optimizer": "sgd",
            "action_optimizer": "sgd",
            "sync_optimizer": "sgd",
            "sync_blend": 1.0,
            "final_sync_steps": changes.get("sync_steps", 10),  # the last sync is like any other
            "terminal": "fixed",
            "state_gradient_scale": 0.0,
        }
        return cls(**{**settings, **changes})
