"""One `plan` call under way, of any planner: its loop, true rollouts, and the best plans so far.

Symbols: B problems, B' of them still searched, R candidates each, T steps, D state features, A
action features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import grasp_kernels
from grasp_kernels import gaussian_noise
from grasp_planner.action_box import ActionBox
from grasp_planner.blocks import sum_blocks
from grasp_planner.costs import Objective, best_of, better, excess
from grasp_planner.inputs import Problem
from grasp_planner.models import roll_out, terminal_cost
from grasp_planner.newton import along
from grasp_planner.plan import Plan, warn_non_finite
from grasp_planner.running import Arrivals, Budget, Checkpoint, Moment, Watch
from grasp_planner.world_model import needed

if TYPE_CHECKING:
    from grasp_planner.base import Planner

#: Of a search, what is saved beside its algorithm's variables.
SAVED = (
    "finished",
    "iterations",
    "model_calls",
    "live",
    "start",
    "goal",
    "warm",
    "active",
    "best_cost",
    "best_actions",
    "best_states",
    "violation",
    "multipliers",
    "sound",
    "candidate_cost",
    "history",
    "snapshots",
)


class Search:
    """One call of `plan` under way. States are in units of the config's `state_scale`."""

    def __init__(
        self,
        planner: Planner,
        problem: Problem,
        budget: Budget | None = None,
        watch: Watch | None = None,
        checkpoint: Checkpoint | None = None,
        snapshots: frozenset[int] = frozenset(),
    ) -> None:
        self.planner, self.problem = planner, problem
        self.config: Any = planner.config  # of the planner's own class
        self.samples, self.total = planner._samples(), planner._iterations()
        self.model = planner._open(problem)
        self.budget = budget or Budget(None, problem.start.device)
        self.watch, self.checkpoint = watch or Watch(), checkpoint or Checkpoint(None, 1)
        self.wanted_snapshots = snapshots
        self.snapshots: dict[int, Tensor] = {}
        self.start, self.goal = problem.start, problem.goal
        self.finished = False
        self.iterations = self.model_calls = 0
        self.box = ActionBox(problem)
        self.warm = self.box.clip(problem.actions)
        self.objective = Objective.of(self.config, problem, self.total)
        self.goal_weight = self.objective.goal_weight
        self.now = 1  # the iteration under way, whose weights a search goes by
        self.best_cost = self.start.new_full((problem.count,), torch.inf)
        self.best_actions = self.warm
        states = self.start_state[:, None].expand(-1, self.config.horizon + 1, -1)
        # Of a plan without any finite rollout nothing is known but its start.
        self.best_states = torch.full_like(states, torch.nan).contiguous()
        self.best_states[:, 0] = self.start_state
        #: The problems that are still searched; `start`, `goal`, `warm`, all rollouts are theirs.
        self.live = torch.arange(problem.count, device=self.start.device)
        #: False where a live problem is good enough: what is found later changes nothing.
        self.active = torch.ones_like(self.live, dtype=torch.bool)
        self.algorithm = planner._algorithm(self)
        shape = (problem.count, self.algorithm.candidates)
        self.sound = torch.ones(shape, dtype=torch.bool, device=self.live.device)
        self.candidate_cost = self.best_cost[:, None].repeat(1, shape[1])
        #: By how much the best plans violate constraints; inf where nothing is known of them.
        self.violation = torch.full_like(self.best_cost, torch.inf)
        #: Of the constraints of live problems, `(B', multiplier_rows, C)`; None without any.
        self.multipliers = self._no_multipliers()
        self._seen: tuple[Tensor, Tensor, Tensor] | None = None
        self.history = self.candidate_cost.new_full((self.total, *shape), torch.nan)

    # ------------------------------------------------------------------------------------ the loop

    def run(self) -> None:
        """From the first iteration, or from where a checkpoint left off, to the last."""
        self.checkpoint.belongs_to(self.planner, self.problem)
        saved = self.checkpoint.load(self.live.device)
        if saved is None:
            self.algorithm.begin()
        else:
            self._restore(saved)
        if self.finished:
            return
        arrivals = Arrivals(self.algorithm.waits)
        with self.watch.open(self.total):
            self._part(arrivals)  # a warm start may be good enough
            while self.iterations < self.total and self._searching():
                self.now = first = self.iterations + 1
                self.iterations = self.algorithm.step(first)
                whole = not self.budget.spent  # else the step was cut short, within its sync
                self._note(first, whole)
                if self.budget.check():
                    if whole:
                        self.checkpoint.save(self.iterations, self._saved())
                    break
                self._part(arrivals)
            if self._searching():
                self.algorithm.finish()
            if not self.budget.spent:  # else there is more to do, when it is asked for again
                self.finished = True
                self.checkpoint.save(self.iterations, self._saved())

    def _searching(self) -> bool:
        """Whether anything is left to search; a batch of no problems is searched to the end."""
        return len(self.live) > 0 or self.problem.count == 0

    def _note(self, first: int, whole: bool) -> None:
        """Iterations `first ... self.iterations` are over; only `whole` ones are gone on from."""
        for k in range(first, self.iterations + 1):
            self.watch.advanced(k)
        self.watch.reached(self.iterations, self.moment)
        if whole and self.checkpoint.due(self.iterations):
            self.checkpoint.save(self.iterations, self._saved())

    def _part(self, arrivals: Arrivals) -> None:
        """Problems that need no more iterations take no part in any."""
        done = self.algorithm.done()
        if self.config.stop_cost is not None:
            cheap = self.best_cost[self.live] <= self.config.stop_cost
            cheap = cheap & (self.violation[self.live] <= self.config.constraint_tolerance)
            done = cheap if done is None else done | cheap
        if done is None or self.iterations == self.total or not len(self.live):
            return
        self.active = self.active & ~done
        gone = arrivals.learn(~self.active)
        if gone is None or not bool(gone.any()):
            return
        self._cut((~gone).nonzero()[:, 0].to(self.live.device))

    def _cut(self, rows: Tensor) -> None:
        """Only the live problems `rows` from now on; the others' best plans stay what they are."""
        count = len(self.live)
        for name in ("live", "start", "goal", "warm", "active"):
            setattr(self, name, getattr(self, name)[rows])
        self.objective = self.objective.take(rows)
        if self.multipliers is not None:
            self.multipliers = self.multipliers[rows]
        for name in self.algorithm.variables:
            value = getattr(self.algorithm, name)
            setattr(self.algorithm, name, _rows(value, rows, count))

    def _saved(self) -> dict[str, Any]:
        variables = {name: getattr(self.algorithm, name) for name in self.algorithm.variables}
        return {**{name: getattr(self, name) for name in SAVED}, "variables": variables}

    def _restore(self, saved: dict[str, Any]) -> None:
        self.objective = self.objective.take(saved["live"])
        for name in SAVED:
            setattr(self, name, saved[name])
        self.now = max(self.iterations, 1)  # which `finish` may be asked at, next of all
        for name, value in saved["variables"].items():
            setattr(self.algorithm, name, value)

    @property
    def start_state(self) -> Tensor:
        """s_0 of the live problems, `(B', D)`: where a model of windows starts, its last state."""
        return self.start[:, : self.problem.state_features]

    # -------------------------------------------------------------------------------------- noise

    def normals(self, count: int, steps: int, features: int, iteration: int) -> Tensor:
        """White noise `(B', count, steps, features)`, a function of seed, plan id and iteration."""
        ids = self.problem.problem_ids[self.live, None] * self.samples
        ids = ids + torch.arange(count, device=ids.device)
        noise = gaussian_noise(
            ids.numel(),
            steps,
            features,
            seed=self.config.seed,
            iteration=iteration,
            plan_ids=ids.flatten(),
            dtype=self.start.dtype,
        )
        return noise.view(*ids.shape, steps, features)

    # ------------------------------------------------------------------------------ true rollouts

    def rollout(self, actions: Tensor) -> tuple[Tensor, Tensor]:
        """States `(B', R, T + 1, D)` and cost `(B', R)` of actions `(B', R, T, A)`; the best stays.

        A rollout that is not finite costs inf.
        """
        states = self.imagine(actions)
        cost = self.cost_of(states, actions)
        self.keep(actions, states, cost)
        return states, cost

    def imagine(self, actions: Tensor, start: Tensor | None = None) -> Tensor:
        """States `(B', R, T + 1, D)` of actions `(B', R, T, A)`, from the problems' starts."""
        problems, candidates = actions.shape[:2]
        if start is None:
            start = self.start[:, None].expand(-1, candidates, -1)
        rows, controls = start.flatten(0, 1), actions.flatten(0, 1)
        states = roll_out(self.model, rows, controls, self.config.max_rows)
        self.model_calls += self.config.horizon
        return states.view(problems, candidates, *states.shape[1:])

    def cost_of(self, states: Tensor, actions: Tensor) -> Tensor:
        """What this iteration makes smaller, `(B', R)`; inf where a state is not finite.

        Where there is but a goal state it is `sum_d w_d (s_T - g)_d^2`.
        """
        if self.objective.plain:
            cost = terminal_cost(states, self.goal[:, None], self.goal_weight)
        else:
            cost = self.objective.search_cost(
                states, actions, self.now, self.multipliers_of(states)
            )
            cost = where_finite(states, cost)
        self.find_unsound(torch.isfinite(cost).all(1, keepdim=True))
        return cost

    def find_unsound(self, sound: Tensor) -> None:
        """Remembers the live problems' candidates where `sound (B', R)` is False."""
        self.sound = self.sound.index_copy(0, self.live, self.sound[self.live] & sound)

    def cost_gradient(self, actions: Tensor) -> tuple[Tensor, Tensor]:
        """`rollout`'s cost, and its gradient for one action per block, `(B', R, K, A)`."""
        states, gradient = self.imagine_gradient(actions)
        cost = self.cost_of(states, actions)
        self.keep(actions, states, cost)
        return cost, gradient

    def imagine_gradient(
        self, actions: Tensor, multipliers: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """`imagine`, and the gradient of this iteration's cost for one action per block.

        `multipliers (B', R, C)` in place of the search's.
        """
        problems, candidates = actions.shape[:2]
        controls = actions.flatten(0, 1).detach().requires_grad_()
        rows = self.start.repeat_interleave(candidates, 0)
        owner = torch.arange(problems, device=rows.device).repeat_interleave(candidates)
        multipliers = self.multipliers if multipliers is None else multipliers
        if multipliers is not None:
            multipliers = multipliers.expand(-1, candidates, -1).flatten(0, 1)
        gradient = torch.empty_like(controls)
        states = []
        most = self.config.max_rows or max(len(rows), 1)
        for n in range(0, len(rows), most):
            block = slice(n, n + most)
            with torch.enable_grad():
                found = self.model.rollout(rows[block], controls[block], self.config.max_rows)
                pressed = None if multipliers is None else multipliers[block]
                cost = self.cost_of_rows(found, controls[block], owner[block], pressed).sum()
            (part,) = torch.autograd.grad(cost, controls, allow_unused=True)
            gradient[block] = needed(part)[block]
            states.append(found.detach())
        self.model_calls += 2 * self.config.horizon
        shape = (problems, candidates, self.config.horizon + 1, self.problem.state_features)
        whole = (torch.cat(states) if states else rows.new_empty(shape)).view(shape)
        return whole, sum_blocks(gradient, self.config.hold).unflatten(0, (problems, candidates))

    def cost_of_rows(
        self, states: Tensor, actions: Tensor, owner: Tensor, multipliers: Tensor | None
    ) -> Tensor:
        """This iteration's cost `(n,)` of single plans, differentiable.

        `states (n, T + 1, D)`, `actions (n, T, A)`, `owner (n,)`: whose of the live problems they
        are, `multipliers (n, C)`.
        """
        if self.objective.plain:
            return (self.goal_weight * (states[:, -1] - self.goal[owner]).square()).sum(-1)
        pressed = None if multipliers is None else multipliers[:, None]
        plans = states[:, None], actions[:, None]
        return self.objective.take(owner).search_cost(*plans, self.now, pressed)[:, 0]

    def finish(self, actions: Tensor) -> None:
        """Plans `(B', R, T, A)` after the last iteration: where the search came to rest."""
        if self.budget.spent:
            return
        self.rollout(self.box.clip(actions))
        self.tell()

    # ------------------------------------------------------------------------------- the best plan

    def keep(self, actions: Tensor, states: Tensor, cost: Tensor) -> None:
        """Each problem's best of `(B', R, ...)`, where it is better than what there was."""
        if cost.numel() == 0:
            return
        self.seen(states, actions, cost)
        cost, violation = self.judged(states, actions, cost)
        over = excess(violation, self.config.constraint_tolerance)
        which = best_of(cost, over)
        rows = torch.arange(len(which), device=which.device)
        known = self.best_cost[self.live], self.excess()
        wins = better(cost[rows, which], over[rows, which], *known)
        chosen = (values[rows, which] for values in (actions, states, cost, violation))
        self.choose(wins, *chosen)

    def judged(self, states: Tensor, actions: Tensor, cost: Tensor) -> tuple[Tensor, Tensor]:
        """What plans of this iteration's `cost` are compared by: cost and violation, `(B', R)`."""
        if self.objective.searched_as_judged:
            return cost, torch.zeros_like(cost)
        judged, violation = self.objective.judged(states, actions)
        return where_finite(states, judged), violation

    def excess(self) -> Tensor:
        """By how much the live problems' best plans violate constraints beyond the tolerance."""
        return excess(self.violation[self.live], self.config.constraint_tolerance)

    def choose(
        self, where: Tensor, actions: Tensor, states: Tensor, cost: Tensor, violation: Tensor
    ) -> None:
        """From now on these are the best of the live problems `where (B',)` that are active."""
        where = where & self.active
        self.violation = self._chosen(where, violation, self.violation)
        self.best_cost = self._chosen(where, cost, self.best_cost)
        self.best_actions = self._chosen(where, actions, self.best_actions)
        self.best_states = self._chosen(where, states, self.best_states)

    def _chosen(self, where: Tensor, new: Tensor, best: Tensor) -> Tensor:
        """`best (B, ...)` with `new (B', ...)` in it; selecting by a mask would wait for it."""
        return best.index_copy(0, self.live, along(where, new, best[self.live]))

    # ------------------------------------------------------------------------------- multipliers

    def _no_multipliers(self) -> Tensor | None:
        if not self.config.constraints:
            return None
        still = self.best_states[:, None, :1].expand(-1, 1, self.config.horizon + 1, -1)
        values, _ = self.objective.constraints(still, self.warm[:, None])
        return torch.zeros_like(values).repeat(1, self.algorithm.multiplier_rows, 1)

    def seen(self, states: Tensor, actions: Tensor, cost: Tensor) -> None:
        """Plans that this iteration rolled out, for `raise_multipliers`."""
        self._seen = states, actions, cost

    def multipliers_of(self, states: Tensor) -> Tensor | None:
        """Those of plans `(B', R, ...)`; None where these plans have none."""
        known = self.multipliers
        return known if known is not None and known.shape[1] in (1, states.shape[1]) else None

    def raise_multipliers(self, k: int) -> None:
        """By the plans that iteration k has rolled out; of samples, by the best one."""
        config = self.config
        skip = config.constraint_method == "penalty" or k % config.constraint_every
        if self.multipliers is None or self._seen is None or skip:
            return
        states, actions, cost = self._seen
        if self.multipliers.shape[1] == 1:
            which = cost.min(1).indices
            rows = torch.arange(len(which), device=which.device)
            states, actions = states[rows, which][:, None], actions[rows, which][:, None]
        if states.shape[1] == self.multipliers.shape[1]:
            values, equal = self.objective.constraints(states, actions)
            self.multipliers = self.objective.raised(self.multipliers, values, equal, self.now)

    def done(self, k: int) -> int:
        """An iteration of samples is over: remember the best cost, tell who asked to know."""
        self.iterations = k
        self.raise_multipliers(k)
        known = torch.where(self.active, self.best_cost[self.live], torch.nan)
        self.history[k - 1, self.live] = known[:, None]
        self.tell()
        return k

    def tell(self) -> None:
        """The best plans so far, to whoever wants to know."""
        self.watch.improved(self.moment)

    def moment(self) -> Moment:
        names = self.algorithm.variables
        views = {name: getattr(self.algorithm, name) for name in names}
        return Moment(
            self.iterations,
            self.model_calls,
            self.best_actions,
            self.best_cost,
            self.live,
            {name: value.detach() for name, value in views.items() if isinstance(value, Tensor)},
        )

    def result(self) -> Plan:
        problem = self.problem
        if not bool(self.sound.all()):
            warn_non_finite(self.sound, problem.problem_ids, self.algorithm.first_candidate)
        states = self.best_states * problem.units
        states[:, 0] = problem.start_given  # as it came: scaling and back may round
        own = self.algorithm.candidates > 1
        return Plan(
            actions=self.best_actions,
            states=states,
            cost=self.best_cost,
            candidate_cost=self.candidate_cost if own else self.best_cost[:, None],
            loss_history=self.history[: self.iterations],
            iterations=self.iterations,
            model_calls=self.model_calls,
            violation=torch.where(torch.isfinite(self.best_cost), self.violation, torch.inf),
            finite=torch.isfinite(self.best_cost),
            backend=grasp_kernels.backend_for(self.start.device, self.start.dtype),
            path=self.model.path,
            out_of_time=self.budget.spent,
            snapshots=self.snapshots,
        )


def where_finite(states: Tensor, cost: Tensor) -> Tensor:
    """A cost, `(B', R)`, and inf where it or a state of `(B', R, T + 1, D)` is not finite."""
    finite = torch.isfinite(states).flatten(-2).all(-1) & torch.isfinite(cost)
    return torch.where(finite, cost, torch.inf)


def _rows(value: Any, rows: Tensor, count: int) -> Any:
    """The rows of the problems `rows`, of `count`, in a tensor or in all that a dict or list holds.

    Of anything else there is nothing to cut.
    """
    if isinstance(value, Tensor):
        return value.unflatten(0, (count, -1))[rows].flatten(0, 1)
    if isinstance(value, dict):
        return {name: _rows(part, rows, count) for name, part in value.items()}
    if isinstance(value, list):
        return [_rows(part, rows, count) for part in value]
    return value
