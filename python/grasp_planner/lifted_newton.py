"""LiftedNewtonPlanner: a smooth random population finds the way, second-order steps finish it.

Sampling is good at finding a way round a wall and bad at arriving; Gauss-Newton is the opposite. So
each round rolls out a population of held random actions once, refines the best few by a handful of
lifted Gauss-Newton steps, all time steps at once, and compares what comes out by a *robust* cost,
the mean over a few rollouts with noise, which closes much of the gap between model and reality. The
next rounds sample around what was found, for the problems whose plans do not arrive yet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from grasp_planner.algorithm import Algorithm
from grasp_planner.base import Planner
from grasp_planner.blocks import first_of_blocks, hold_actions
from grasp_planner.costs import excess
from grasp_planner.newton import PRODUCTS, NewtonSteps, refine_by_rollout, refine_lifted
from grasp_planner.options import PlannerConfig, choice, integer, number, positive, schedule
from grasp_planner.population import fresh_actions, pick, smallest, take, uniform
from grasp_planner.schedules import Schedule, geometric
from grasp_planner.search import Search

# Which iteration's noise is whose: a round has so many of its own, for sampling and for scoring.
STREAMS = 8
PRESSED_EVERY = 3  # of Adam's steps, the constraints' multipliers of each candidate rise
FORBIDDEN = 1e12  # a score above that of every plan which keeps the constraints


@dataclass(frozen=True)
class LiftedNewtonConfig(PlannerConfig):
    """How to plan; what every planner has is in `PlannerConfig`, but `hold` is 5 here.

    Lengths in action space are in units of half the box (1 where it is open), those in state space
    in units of `state_scale`.

    Attributes:
        rounds: of sampling, refining, comparing, at most. >= 1; 6.
        enough: a problem whose best plan has a robust score of at most this takes no part in later
            rounds. A score is about 0.15 where a plan arrives whatever the noise, above 1 where it
            is lost. >= 0; 0.3. With 0 all rounds are made, and none waits for the device.
        samples: plans of a problem that are rolled out in the first round. >= 1; 256.
        resamples: in every later one. >= 1; 96.
        candidates: the best of them, which are refined. 1 to `samples` and `resamples`; 6.
        refinement: "lifted": Gauss-Newton steps on virtual states, or "rollout": through the true
            rollout, with one more rollout per step (Levenberg-Marquardt). "lifted".
        refine_steps: of them. >= 0; 6.
        jacobians_every: lifted steps that share one set of Jacobians; the steps in between see new
            defects alone and cost as much as a forward pass. >= 1; None is D / 4, rounded up, so
            that an iteration costs about as much as 5 forward passes however large states are.
        products: "jacobians" of every time step, "matrix-free" products of conjugate gradients, or
            "auto": Jacobians up to 128 state features.
        damping: lambda of a step, relative to the mean squared sensitivity; where it starts, for
            "rollout". >= 0; 1e-3.
        max_action_step, max_state_step: the most that a step changes a number. > 0; 1, 2.
        spread: of fresh samples: they are clipped from a uniform distribution this wide. > 0; 1.6.
        least_amplitude: each fresh sample is scaled by a number from here to 1. 0 to 1; 1.
        wander: of a fresh sample from one block to the next, where it does not jump. >= 0; 0.2.
        changes: how often a fresh sample jumps on its way, on average, at most; each has its own
            number from 1 to this. >= 1; 5.
        elite_share, crossover_share: of a later round's samples, those near what was refined, and
            those that take each action feature from one of two good plans; the rest is fresh. 0 to
            1, together at most 1; 0.5, 0.25.
        elite_noise: how near, at most. >= 0; 0.7.
        pool: the first round's best, which crossover draws from. >= 1; 64.
        cost_steps: Adam's steps on the whole cost after them, where the config adds to the goal's;
            each costs two rollouts. They take the second-order steps' place for a world model of
            windows or noise. >= 0; 15.
        cost_lr: their size, in units of half the box, falling to a tenth. > 0; 0.1.
        score_rollouts: noisy rollouts that a candidate is compared by; 0 compares exact costs
            alone. >= 0; 8.
        score_action_noise: of each step. >= 0; 0.05.
        score_state_noise: of the start. >= 0; 0.05.
        effort_weight: of the mean squared action e, as `e / (1 + e)`, in the score of a candidate
            that arrives: models err most where actions are large. A number or a `Schedule` over
            rounds, 0 to 1; 0.25.
        score_scale: a cost c counts as `c / (c + s)`, where s is this times the sum of the goal
            weights: below s a plan has arrived, above it is lost. > 0; 0.025.
    """

    hold: int = integer(5, 1)
    rounds: int = integer(6, 1)
    enough: float = number(0.3)
    samples: int = integer(256, 1)
    resamples: int = integer(96, 1)
    candidates: int = integer(6, 1)
    refinement: str = choice("lifted", ("lifted", "rollout"))
    refine_steps: int = integer(6, 0)
    jacobians_every: int | None = integer(None, 1)
    products: str = choice("auto", PRODUCTS)
    damping: float = number(1e-3)
    max_action_step: float = positive(1.0)
    max_state_step: float = positive(2.0)
    spread: float = positive(1.6)
    least_amplitude: float = number(1.0, 0.0, 1.0)
    wander: float = number(0.2)
    changes: float = number(5.0, 1.0)
    elite_share: float = number(0.5, 0.0, 1.0)
    crossover_share: float = number(0.25, 0.0, 1.0)
    elite_noise: float = number(0.7)
    pool: int = integer(64, 1)
    cost_steps: int = integer(15, 0)
    cost_lr: float = positive(0.1)
    score_rollouts: int = integer(8, 0)
    score_action_noise: float = number(0.05)
    score_state_noise: float = number(0.05)
    effort_weight: float | Schedule = schedule(0.25, most=1.0)
    score_scale: float = positive(0.025)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.candidates > min(self.samples, self.resamples):
            raise ValueError(
                f"candidates must be at most samples and resamples, got {self.candidates} of "
                f"{self.samples} and {self.resamples}"
            )
        if self.elite_share + self.crossover_share > 1:
            raise ValueError(
                "elite_share and crossover_share must be at most 1 together, got "
                f"{self.elite_share} and {self.crossover_share}"
            )


class _Population(Algorithm):
    """The rounds. Blocks of actions are `(B', R, K, A)`, one action per `hold` steps.

    `pool`: the first round's best. `blocks`, `scores`: every candidate there was, the archive.
    """

    variables: ClassVar = ("pool", "blocks", "scores", "best_score")

    waits = True  # a round costs more than to wait for who has arrived

    def __init__(self, search: Search) -> None:
        super().__init__(search)
        problem, unit = search.problem, search.box.half_width
        self.steps = NewtonSteps(
            goal_weight=search.goal_weight,
            hold=self.config.hold,
            low=search.box.low,
            high=search.box.high,
            max_action_step=self.config.max_action_step * float(unit.max()) if len(unit) else 1.0,
            max_state_step=self.config.max_state_step,
            damping=self.config.damping,
            products=self.config.products,
            jacobians_every=self.config.jacobians_every or -(-problem.state_features // 4),
            max_rows=self.config.max_rows,
        )
        self.width = problem.action_features

    def begin(self) -> None:
        problems = len(self.search.live)
        self.blocks = self.search.start.new_empty(problems, 0, self.config.blocks, self.width)
        self.scores = self.blocks.new_empty(problems, 0)
        self.best_score = self.blocks.new_full((problems,), torch.inf)
        self.pool = self.blocks

    def step(self, k: int) -> int:
        config, search = self.config, self.search
        blocks = self.first_samples() if k == 1 else self.later_samples(k - 1)
        states = search.imagine(self.held(blocks))
        cost = search.cost_of(states, self.held(blocks))
        if k == 1:
            self.pool = take(blocks, smallest(cost, config.pool))
        chosen = smallest(cost, config.candidates)
        if k == 1:  # from no action at all the steps find a gentle plan, if there is one
            chosen = torch.cat((torch.zeros_like(chosen[:, :1]), chosen[:, :-1]), 1)
        refined = self.refine(take(blocks, chosen), take(states, chosen))
        # The best as it is, too: far from a goal out of reach a step may make things worse.
        rivals = [refined, take(blocks, smallest(cost, 1))]
        if k == 1:  # and the warm start
            rivals.append(blocks[:, :1])
        self.compare(torch.cat(rivals, 1))
        return search.done(k)

    def done(self) -> Tensor | None:
        if self.config.enough == 0 or self.search.objective.adds:  # no score says that all is well
            return None
        return self.best_score <= self.config.enough

    def compare(self, blocks: Tensor) -> None:
        """Scores candidates `(B', R, K, A)`, for the archive; the best becomes the search's."""
        search = self.search
        scores, states, cost, violation = self.score(blocks)
        self.blocks = torch.cat((self.blocks, blocks), 1)
        self.scores = torch.cat((self.scores, scores), 1)
        least, which = scores.min(1)
        rows = torch.arange(len(which), device=which.device)
        better = least < self.best_score
        chosen = (states[rows, which], cost[rows, which], violation[rows, which])
        search.choose(better, self.held(blocks[rows, which]), *chosen)
        self.best_score = torch.where(better, least, self.best_score)

    def elites(self) -> Tensor:
        """The blocks `(B', candidates, K, A)` of the best scores, in order."""
        return take(self.blocks, smallest(self.scores, self.config.candidates))

    def refine(self, blocks: Tensor, states: Tensor) -> Tensor:
        """Second-order steps on the chosen candidates, toward the goal's state nearest to each."""
        search, config = self.search, self.config
        if not search.model.markov:  # no Jacobian leads from one of its states to the next
            return self.polished(blocks)
        count = blocks.shape[1]
        nearest = search.objective.target.nearest(states[:, :, -1], search.goal_weight)
        rows, goal = states.flatten(0, 1), nearest.flatten(0, 1)
        actions = self.held(blocks).flatten(0, 1)
        if config.refinement == "lifted":
            actions = refine_lifted(
                search.model, self.steps, config.refine_steps, rows, actions, goal
            )
            search.model_calls += self.steps.calls(rows, actions) * config.refine_steps
        else:
            actions, _, _ = refine_by_rollout(
                search.model, self.steps, config.refine_steps, rows, actions, goal
            )
            calls = self.steps.calls(rows, actions) + config.horizon
            search.model_calls += calls * config.refine_steps
        blocks = first_of_blocks(actions, config.hold).unflatten(0, (len(blocks), count))
        return self.polished(blocks) if search.objective.adds else blocks

    def polished(self, blocks: Tensor) -> Tensor:
        """Adam's steps on the whole cost through the rollout, where there is more than a goal.

        Second-order steps know the goal alone, and may have cut through what the rest forbids.
        """
        search, config = self.search, self.config
        moving = search.box.to_units(blocks).flatten(0, 1).contiguous()
        memory: dict[str, Any] = {}
        raises = config.constraint_method != "penalty"
        pressed = search.multipliers
        if pressed is not None:  # each candidate's own from here on
            pressed = pressed.expand(-1, blocks.shape[1], -1)
        for j in range(1, config.cost_steps + 1):
            plans = search.box.from_units(moving).unflatten(0, blocks.shape[:2])
            states, gradient = search.imagine_gradient(self.held(plans), pressed)
            if pressed is not None and raises and j % PRESSED_EVERY == 0:
                values, equal = search.objective.constraints(states, self.held(plans))
                pressed = search.objective.raised(pressed, values, equal, search.now)
            lr = geometric(config.cost_lr, 0.1 * config.cost_lr, j, config.cost_steps)
            search.box.descend_(moving, gradient.flatten(0, 1), memory, lr=lr)
        return search.box.from_units(moving).unflatten(0, blocks.shape[:2])

    # ------------------------------------------------------------------------------------- samples

    def held(self, blocks: Tensor) -> Tensor:
        return hold_actions(blocks, self.config.hold, self.config.horizon)

    def noise(self, count: int, stream: int) -> Tensor:
        return self.search.normals(count, self.config.blocks, self.width, stream)

    def fresh(self, count: int, stream: int) -> Tensor:
        search, blocks = self.search, self.config.blocks
        values = fresh_actions(
            search,
            count,
            stream,
            spread=self.config.spread,
            wander=self.config.wander,
            keep=(1 - self.config.changes / blocks, 1 - 1 / blocks),
        )
        sizes = uniform(self.noise(count, stream + 6)[:, :, :1, :1], self.config.least_amplitude)
        return search.box.from_units(sizes * values)

    def first_samples(self) -> Tensor:
        """The warm start (or no action), and fresh ones."""
        blocks = self.fresh(self.config.samples, 0)
        blocks[:, 0] = self.search.box.clip(first_of_blocks(self.search.warm, self.config.hold))
        return blocks

    def later_samples(self, r: int) -> Tensor:
        """Around what was refined, across it and the pool, and fresh ones again."""
        config = self.config
        near = int(config.elite_share * config.resamples)
        crossed = int(config.crossover_share * config.resamples)
        stream = STREAMS * r
        return torch.cat(
            (
                self.fresh(config.resamples - near - crossed, stream),
                self.near_elites(near, stream + 3),
                self.crossed(crossed, stream + 5),
            ),
            1,
        )

    def near_elites(self, count: int, stream: int) -> Tensor:
        """The best of the archive, each with its own amount of noise that is smooth in time."""
        search = self.search
        elites = self.elites()
        which = torch.arange(count, device=elites.device) % max(elites.shape[1], 1)
        noise, sizes = self.noise(count, stream), self.noise(count, stream + 1)
        smooth = [noise[:, :, 0]]
        for k in range(1, self.config.blocks):
            smooth.append(0.7 * smooth[-1] + 0.51**0.5 * noise[:, :, k])
        size = self.config.elite_noise * uniform(sizes[:, :, :1, :1])
        step = size * search.box.half_width * torch.stack(smooth, 2)
        return search.box.clip(elites[:, which] + step)

    def crossed(self, count: int, stream: int) -> Tensor:
        """Each action feature from an elite or from one of the pool."""
        elites = self.elites()
        coins = uniform(self.noise(count, stream))
        a = pick(elites, coins[:, :, 0, 0])
        b = pick(self.pool, uniform(self.noise(count, stream + 1))[:, :, 0, 0])
        return torch.where(coins[:, :, -1:] < 0.5, a, b)

    # ----------------------------------------------------------------------------------- the score

    def score(self, blocks: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Robust score of candidates `(B', R)`; states, cost, violation of their exact rollouts."""
        config, search = self.config, self.search
        actions = self.held(blocks)
        count = actions.shape[1]
        copies = config.score_rollouts + 1  # the first one is exact
        # Common random numbers: all candidates, in all rounds, meet the same noise.
        shape = (config.horizon, self.width)
        shake = search.normals(copies, *shape, STREAMS * config.rounds)[:, None]
        shake[:, :, 0] = 0
        features = search.problem.state_features
        start_shake = search.normals(copies, 1, features, STREAMS * config.rounds + 1)
        start_shake[:, 0] = 0
        noisy = actions[:, :, None] + config.score_action_noise * search.box.half_width * shake
        start = search.start[:, None].repeat(1, copies, 1)
        start[:, :, :features] += config.score_state_noise * start_shake[:, :, 0]
        start = start[:, None].expand(-1, count, -1, -1)
        noisy = search.box.clip(noisy).flatten(1, 2)
        states = search.imagine(noisy, start.flatten(1, 2))
        cost = search.cost_of(states, noisy).unflatten(1, (count, copies))
        exact_states = states.unflatten(1, (count, copies))[:, :, 0]
        search.seen(exact_states, actions, cost[:, :, 0])
        judged, violation = search.judged(exact_states, actions, cost[:, :, 0])
        if search.objective.adds:  # costs of any size and sign; a trade-off is kept as it is
            robust = cost[:, :, 0] + cost[:, :, min(1, copies - 1) :].mean(2)
            over = excess(violation, config.constraint_tolerance)
            robust = torch.where(over > 0, FORBIDDEN * (1 + over), robust)
            robust = torch.where(torch.isfinite(judged + robust), robust, torch.inf)
            return robust, exact_states, judged, violation
        weight = search.goal_weight.sum()
        scale = config.score_scale * torch.where(weight > 0, weight, 1.0)  # no goal: all arrive
        share = cost / (cost + scale)
        share = torch.where(torch.isfinite(cost), share, torch.inf)
        exact, noisy = share[:, :, 0], share[:, :, min(1, copies - 1) :].mean(2)
        effort = search.box.to_units(actions).square().mean((2, 3))
        # Bounded, and only as far as a plan arrives: no plan that is lost wins by being lazy.
        gentle = (
            config.effort_weight(search.now, config.rounds)
            * effort
            / (1 + effort)
            * (1 - exact)
            * (1 - noisy)
        )
        robust = torch.where(torch.isfinite(exact + noisy), exact + noisy + gentle, torch.inf)
        return robust, exact_states, judged, violation


class LiftedNewtonPlanner(Planner):
    """Population and lifted Gauss-Newton; see the module.

        planner = LiftedNewtonPlanner(world_model, LiftedNewtonConfig(horizon=50, action_low=-1.0))
        plan = planner.plan(start, goal)      # start, goal (B, D); plan.actions (B, T, A)

    The plan returned is the candidate with the best robust cost; its own cost is that of its exact
    rollout. A warm start is the first sample, and a candidate as it is.
    """

    config_type: ClassVar = LiftedNewtonConfig
    algorithm_type: ClassVar = _Population

    def _samples(self) -> int:
        config: LiftedNewtonConfig = self.config
        return max(
            config.samples, config.resamples, config.candidates * (config.score_rollouts + 1)
        )

    def _iterations(self) -> int:
        return int(self.config.rounds)
