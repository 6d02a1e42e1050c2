"""`Sharded`: one plan call of many ranks, over problems, candidates or time.

Every rank calls `plan` with the same arguments, and every rank gets the same plan: that which one
process would have found, to the bit. Noise is a function of plan id, iteration, step and feature,
and rows do not know what is planned beside them; so it does not matter who plans them.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad

from grasp_planner.base import Planner
from grasp_planner.costs import best_of, excess
from grasp_planner.distributed.neighbours import Neighbours
from grasp_planner.distributed.time_axis import TimeSlice
from grasp_planner.inputs import Problem, check_problem, check_snapshots
from grasp_planner.isolation import joined, part_of, warn_of_failures
from grasp_planner.options import PlannerConfig
from grasp_planner.plan import Plan, moved
from grasp_planner.planner import GraspPlanner
from grasp_planner.running import Budget, Checkpoint, Watch
from grasp_planner.world_model import WorldModelError

OVER = ("problems", "candidates", "time")


class Sharded(Planner):
    """A planner whose work is shared out over the ranks of a process group.

        torch.distributed.init_process_group("gloo")        # as torchrun has set it up
        planner = Sharded(GraspPlanner(world_model, config), over="problems")
        plan = planner.plan(start, goal)                    # on all ranks: same call, same plan

    Over "problems" each rank plans a share of the B problems; of any planner. Over "candidates"
    each rank plans a share of the R candidates of every problem, and one collective finds the best;
    of `GraspPlanner`. Over "time" each rank holds a stretch of the horizon, with about `1 / size`
    of the memory, and sends one row of states to the next in each iteration; true rollouts and
    their gradients pass from rank to rank. Of `GraspPlanner`, with `config.kernels` "step" where
    the world model is an MLP.

    It is a `Planner`: `MPC` takes it. In a world of one it is the planner it was made from.

    Args:
        planner: what every rank has, with the same world model and config.
        over: "problems", "candidates" or "time". "problems".
        group: the ranks that share; None is all.
        whole: over "time", whether every rank gets the whole plan in the end; False leaves each
            with its own steps, `(B, t, A)` and `(B, t + 1, D)`, in the order of ranks, which is
            nothing for `MPC`. True.

    Raises:
        TypeError, ValueError: an argument is wrong; it is named.
    """

    config_type = PlannerConfig

    def __init__(
        self,
        planner: Planner,
        over: str = "problems",
        *,
        group: dist.ProcessGroup | None = None,
        whole: bool = True,
    ) -> None:
        if not isinstance(planner, Planner):
            raise TypeError(f"planner must be a Planner, got {type(planner).__name__}")
        if isinstance(planner, Sharded):
            raise TypeError("planner must be one that is not shared out yet, got Sharded")
        if over not in OVER:
            raise ValueError(f"over must be one of {', '.join(map(repr, OVER))}, got {over!r}")
        if over != "problems" and not isinstance(planner, GraspPlanner):
            raise ValueError(f"over {over!r} needs a GraspPlanner, got {type(planner).__name__}")
        if over == "candidates" and planner.config.stop_cost is not None:
            raise ValueError(
                "over 'candidates' needs config.stop_cost None: a candidate that arrives ends the "
                "search of those beside it"
            )
        super().__init__(planner.world_model, planner.config)
        self.planner, self.over, self.whole = planner, over, whole
        self.neighbours = Neighbours(group)

    def plan(self, start: Any, goal: Any, **given: Any) -> Plan:
        """As the planner's own `plan`, called by all ranks with the same arguments.

        `progress`, `callback` and warnings tell of this rank's share. A checkpoint is one file per
        rank, `checkpoint` with the rank's number behind it; over "time" there is none, and no time
        budget: ranks would not agree on when it is spent.

        Raises:
            TypeError, ValueError: an argument is wrong, on all ranks; it is named.
            RankLostError: a rank died, did not come within the group's timeout or raised an error
                of its own; this one waited for it. Over "time" an error of a rank's `callback` or
                `progress` is heard of only once its process ends or time is out.
            WorldModelError: as in one process, where no problem could be planned at all.
        """
        if self.neighbours.size == 1:
            return self.planner.plan(start, goal, **given)
        over = getattr(self, f"_over_{self.over}")
        self.planner.accelerated()  # what is compiled for this call stays so for the next
        with torch.inference_mode(False), torch.no_grad():
            plan: Plan = over(start, goal, **given)
        return plan

    def _samples(self) -> int:
        return self.planner._samples()

    def _over_problems(self, *given: Any, **named: Any) -> Plan:
        problem = self._checked(*given, **named)
        ranks = self.neighbours
        shares = [part_of(problem.count, rank, ranks.size) for rank in range(ranks.size)]
        mine = copy.copy(self.planner)
        mine.shard = (ranks.rank, ranks.size)
        idle = problem.count > 0 and not shares[ranks.rank]
        found = self._everyones(None if idle else mine, problem, *given, **named)
        parts: list[tuple[list[int], Plan | None]] = []
        failures: dict[int, str] = {}
        for rows, plan in zip(shares, found, strict=True):
            if isinstance(plan, Plan):
                parts.append((list(rows), plan))
                failures |= {rows[b]: why for b, why in plan.failures.items()}
            else:
                parts += [([b], None) for b in rows]
                failures |= dict.fromkeys(rows, str(plan))
        plans = [plan for _, plan in parts if plan is not None]
        if not plans:
            raise WorldModelError(next(iter(failures.values())))
        if isinstance(found[ranks.rank], str):  # else it has told already
            warn_of_failures(problem, {b: failures[b] for b in shares[ranks.rank]})
        calls = max(plan.model_calls for plan in plans)
        return replace(joined(problem, parts, failures), model_calls=calls)

    def _over_candidates(self, *given: Any, **named: Any) -> Plan:
        """The best of every rank's best; of equals the first candidate's, as in one process."""
        problem = self._checked(*given, **named)
        mine = copy.copy(self.planner)
        assert isinstance(mine, GraspPlanner)
        mine.share = part_of(self.config.candidates, self.neighbours.rank, self.neighbours.size)
        found = self._everyones(mine if mine.share else None, problem, *given, **named)
        for why in found:
            if isinstance(why, str):  # all problems have failed, as below
                raise WorldModelError(why)
        plans = [plan for plan in found if isinstance(plan, Plan)]
        iterations = max(plan.iterations for plan in plans)  # a time budget may cut some short
        cost, over = (torch.stack([getattr(p, n) for p in plans], 1) for n in ("cost", "violation"))
        which = best_of(cost, excess(over, self.config.constraint_tolerance))
        # A problem fails where any of its candidates does, and keeps nothing of the others.
        failed = [set(plan.failures) for plan in plans]
        failures = {b: why for plan in plans[::-1] for b, why in plan.failures.items()}
        lost = torch.tensor(sorted(failures), dtype=torch.int64, device=which.device)
        for b in failures:
            which[b] = next(r for r, theirs in enumerate(failed) if b in theirs)
        rows = torch.arange(len(which), device=which.device)

        def best(name: str) -> Tensor:
            return torch.stack([getattr(plan, name) for plan in plans], 1)[rows, which]

        def history(plan: Plan) -> Tensor:
            missing = iterations - len(plan.loss_history)
            return pad(plan.loss_history, (0, 0, 0, 0, 0, missing), value=torch.nan)

        chosen: dict[str, Any] = {
            name: best(name) for name in ("actions", "states", "cost", "violation", "finite")
        }
        snapshots = {k: [plan.snapshots[k] for plan in plans] for k in plans[0].snapshots}
        return replace(
            plans[0],
            **chosen,
            candidate_cost=torch.cat([plan.candidate_cost for plan in plans], 1).index_fill(
                0, lost, torch.inf
            ),
            loss_history=torch.cat([history(plan) for plan in plans], 2).index_fill(
                1, lost, torch.nan
            ),
            iterations=iterations,
            model_calls=max(plan.model_calls for plan in plans),
            out_of_time=any(plan.out_of_time for plan in plans),
            snapshots={
                k: torch.cat(states, 1).index_fill(0, lost, torch.nan)
                for k, states in snapshots.items()
            },
            failures=dict(sorted(failures.items())),
        )

    def _over_time(self, start: Any, goal: Any, *, actions: Any = None, **named: Any) -> Plan:
        for name in ("checkpoint", "time_budget_ms"):
            if named.get(name) is not None:
                raise ValueError(f"over 'time' {name} must be None, got {named[name]!r}")
        assert isinstance(self.planner, GraspPlanner)
        mine = TimeSlice(self.planner, self.neighbours)
        if actions is not None:
            self._checked(start, goal, actions=actions, **named)  # all of them, on all ranks
            actions = actions[:, mine.span.first : mine.span.last]
        plan = mine.plan(start, goal, actions=actions, **named)
        if not self.whole:
            for rows in (plan.states, *plan.snapshots.values()):
                before = self.neighbours.shift(rows[..., -1, :])
                if before is not None:
                    rows[..., 0, :] = before
            return plan
        device = plan.actions.device
        parts = [moved(part, device) for part in self.neighbours.everyones(moved(plan, "cpu"))]

        def joint(states: list[Tensor]) -> Tensor:
            """Of each rank's but the first one's, the states after its own steps."""
            return torch.cat([states[0], *(rows[..., 1:, :] for rows in states[1:])], -2)

        return replace(
            plan,
            actions=torch.cat([part.actions for part in parts], 1),
            states=joint([part.states for part in parts]),
            snapshots={k: joint([part.snapshots[k] for part in parts]) for k in plan.snapshots},
        )

    # ----------------------------------------------------------------------------------- together

    def _checked(
        self,
        start: Any,
        goal: Any,
        *,
        actions: Any = None,
        plan_ids: Any = None,
        context: Any = None,
        past_actions: Any = None,
        time_budget_ms: Any = None,
        progress: Any = None,
        callback: Any = None,
        callback_at: Any = None,
        checkpoint: Any = None,
        checkpoint_every: Any = 10,
        snapshots: Any = (),
    ) -> Problem:
        """All problems; an argument that is wrong is so on all ranks, before any of them waits."""
        given = (start, goal, actions, plan_ids, self._samples(), context, past_actions)
        problem = check_problem(self.world_model, self.config, *given)
        Budget(time_budget_ms, problem.start.device)
        Watch(progress, callback, callback_at)
        Checkpoint(checkpoint, checkpoint_every)
        check_snapshots(snapshots, self.planner._iterations())
        return problem

    def _everyones(
        self, mine: Planner | None, problem: Problem, *given: Any, **named: Any
    ) -> list[Plan | str | None]:
        """Every rank's plan, in order, or why there is none; None where it had nothing to do.

        All ranks come here, whatever they met, so that none waits for another in vain.
        """
        ranks = self.neighbours
        if named.get("checkpoint") is not None:
            named["checkpoint"] = f"{named['checkpoint']}.{ranks.rank}"
        found: Plan | str | None = None
        own: Exception | None = None
        try:
            found = None if mine is None else moved(mine.plan(*given, **named), "cpu")
        except WorldModelError as error:
            found = str(error)
        except Exception as error:
            own = error
        left = None if own is None else f"{type(own).__name__}: {own}"
        everyones = ranks.everyones((found, left))
        if own is not None:
            try:
                raise own
            finally:
                own = None  # else it would hold its frames, and they it
        for rank, (_, words) in enumerate(everyones):
            if words is not None:
                raise ranks.left_by(rank, words)
        device = problem.start.device
        return [moved(plan, device) if isinstance(plan, Plan) else plan for plan, _ in everyones]
