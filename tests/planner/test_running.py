"""How a search runs: good plans end early and cost nothing more, callbacks, the progress bar,
checkpoints, and world models that fail for some problems.
"""

from __future__ import annotations

import os
import random
import signal
import time
import warnings
from typing import Any

import planner_cases as cases
import pytest
import torch
from grasp_planner import (
    CheckpointMismatchError,
    LiftedNewtonPlanner,
    ModelFailureWarning,
    Moment,
    Plan,
    Schedule,
    WorldModelError,
)
from grasp_planner.inputs import check_problem
from grasp_planner.search import Search
from planner_cases import arithmetic
from torch import Tensor

every_planner = pytest.mark.parametrize("kind", cases.KINDS)


def easy_and_hard(count: int) -> tuple[Tensor, Tensor]:
    """Problem 0 needs no action at all."""
    start, goal = cases.problems(count)
    goal[0] = cases.roll_out(arithmetic, start[:1], torch.zeros(1, 7, 2))[0, -1]
    return start, goal


# ------------------------------------------------------------------------------ plans that are done


@every_planner
def test_a_plan_that_is_good_enough_leaves_and_the_others_do_not_notice(kind: str) -> None:
    start, goal = easy_and_hard(3)
    given = {"plan_ids": torch.tensor([4, 9, 2]), "actions": torch.zeros(3, 7, 2)}
    rows: list[int] = []

    def model(state: Tensor, action: Tensor) -> Tensor:
        rows.append(len(state))
        return arithmetic(state, action)

    settings = {"enough": 0.0} if kind.startswith("lifted") else {}
    free = cases.planner(kind, model, **settings).plan(start, goal, **given)
    last_rows = rows[-1]
    planner = cases.planner(kind, model, **settings, stop_cost=1e-3)
    plan = planner.plan(start, goal, **given)
    assert plan.cost[0] <= 1e-3
    assert (free.cost[1:] > 1e-3).all()  # so that nothing is different for them
    for name in ("actions", "states", "cost"):
        found, expected = getattr(plan, name), getattr(free, name)
        assert cases.same_bits(found[1:], expected[1:])
    assert plan.iterations == free.iterations
    assert rows[-1] * 3 == last_rows * 2  # the last rollout is of two problems, not of three


@every_planner
def test_it_does_not_matter_when_the_host_learns_of_it(kind: str, monkeypatch: Any) -> None:
    """A problem that is done and still searched, as a GPU is ahead, keeps the plan that it had."""
    start, goal = easy_and_hard(3)
    settings = {"enough": 0.0} if kind.startswith("lifted") else {}
    planner = cases.planner(kind, arithmetic, **settings, stop_cost=0.5)
    plan = planner.plan(start, goal)
    cases.a_device_that_is_slow(monkeypatch)
    late = planner.plan(start, goal)
    assert (plan.cost <= 0.5).any()
    for name in ("actions", "states", "cost", "violation"):
        assert cases.same_bits(getattr(late, name), getattr(plan, name))


@every_planner
def test_when_all_are_done_the_search_ends(kind: str) -> None:
    start, goal = cases.problems(3)
    planner = cases.planner(kind, arithmetic, stop_cost=1e9)
    plan = planner.plan(start, goal)
    assert plan.iterations <= 1
    assert plan.finite.all()
    full = cases.planner(kind, arithmetic).plan(start, goal)
    assert plan.model_calls < full.model_calls


SLOW: dict[str, dict[str, Any]] = {
    "cem": {"samples": 64},
    "icem": {"samples": 64, "least_samples": 64},
    "mppi": {"samples": 64},
    "gradient": {"restarts": 16},
    "latco": {"restarts": 16},
    "grasp": {"candidates": 16, "sync_every": 2},
}


@pytest.mark.parametrize("kind", SLOW)
def test_finished_plans_cost_no_time(kind: str) -> None:
    """255 of 256 problems need no action, which the first rollout of a warm start may show.

    So the search takes about the time of one problem, not that of 256.
    """
    start = torch.randn(256, 4, generator=torch.Generator().manual_seed(0))
    goal = cases.roll_out(steady, start, torch.zeros(256, 20, 2))[:, -1].clone()
    goal[0] += 3.0
    settings = {"horizon": 20, "iterations": 20, **SLOW[kind]}
    full = cases.planner(kind, steady, **settings)
    stopping = cases.planner(kind, steady, **settings, stop_cost=1e-6)

    def seconds(planner: Any, count: int) -> float:
        begin = time.process_time()  # whatever else the machine is doing
        planner.plan(start[:count], goal[:count], actions=torch.zeros(count, 20, 2))
        return time.process_time() - begin

    rounds = [(seconds(full, 1), seconds(full, 256), seconds(stopping, 256)) for _ in range(3)]
    one, all_of_them, with_a_stop = map(min, zip(*rounds, strict=True))
    assert with_a_stop < one + 0.4 * (all_of_them - one)


def steady(state: Tensor, action: Tensor) -> Tensor:
    """Stays where it is, but for the action."""
    return state + 0.1 * action.repeat(1, 2)


# ---------------------------------------------------------------------------------------- callbacks


@every_planner
def test_a_callback_at_chosen_iterations(kind: str) -> None:
    start, goal = cases.problems(2)
    planner = cases.planner(kind, arithmetic)
    expected = planner.plan(start, goal)
    last = expected.iterations
    for chosen, wanted in ((2, list(range(2, last + 1, 2))), ((1, last), [1, last])):
        seen: list[Moment] = []
        plan = planner.plan(start, goal, callback=seen.append, callback_at=chosen)
        assert [moment.iteration for moment in seen] == sorted(set(wanted))
        assert cases.same_plans(plan, expected)
        for moment in seen:
            assert moment.actions.shape == (2, 7, 2)
            assert moment.live.tolist() == [0, 1]
            assert moment.variables
            for value in moment.variables.values():
                assert len(value) % 2 == 0
                assert not value.requires_grad


@every_planner
def test_what_a_callback_sees_is_not_its_to_change(kind: str) -> None:
    start, goal = cases.problems(2)

    def meddle(moment: Moment) -> None:
        next(iter(moment.variables.values())).zero_()

    with pytest.raises(RuntimeError, match=r"callback changed .* in place"):
        cases.planner(kind, arithmetic).plan(start, goal, callback=meddle, callback_at=1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"callback": 3}, "callback must be callable, got int"),
        ({"callback_at": 3}, "callback_at is given, so callback must be, too"),
        ({"callback": print, "callback_at": 0}, "callback_at must be at least 1, got 0"),
        ({"callback": print, "callback_at": ()}, "callback_at must be iterations from 1"),
        ({"callback": print, "callback_at": "often"}, "callback_at must be an int or ints"),
        ({"progress": 3}, "progress must be a function, True or None, got 3"),
        ({"checkpoint": 3}, "checkpoint must be a path, got int"),
        ({"checkpoint": "x", "checkpoint_every": 0}, "checkpoint_every must be an int of at least"),
    ],
)
def test_bad_arguments_are_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        cases.planner("cem", arithmetic).plan(*cases.problems(1), **given)


def test_a_progress_bar(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    planner = cases.planner("cem", arithmetic)
    plan = planner.plan(*cases.problems(2), progress=True)
    assert "planning" in capsys.readouterr().out
    assert cases.same_plans(plan, planner.plan(*cases.problems(2), progress=False))


# -------------------------------------------------------------------------------------- checkpoints


def killed(planner: Any, iteration: int, **given: Any) -> int:
    """Plans in a process of its own, which is killed after that iteration; how it ended."""
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)  # other threads have not come along

        def kill(k: int) -> None:
            if k >= iteration:
                os.kill(os.getpid(), signal.SIGKILL)

        planner.plan(progress=kill, **given)
        os._exit(0)
    return os.WTERMSIG(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("case", range(20))
def test_a_killed_search_goes_on_to_the_same_bits(case: int, tmp_path: Any) -> None:
    chance = random.Random(case)
    kind = sorted(cases.KINDS)[case % len(cases.KINDS)]
    start, goal = easy_and_hard(3)
    given = {"start": start, "goal": goal, "actions": torch.zeros(3, 7, 2)}
    # Where plans leave early, too.
    planner = cases.planner(kind, arithmetic, stop_cost=chance.choice([None, 1e-6]))
    expected = planner.plan(**given)
    file = tmp_path / "folder" / "search.pt"
    saving = {"checkpoint": file, "checkpoint_every": chance.choice([1, 1, 3])}
    iteration = chance.randint(1, expected.iterations)
    assert killed(planner, iteration, **given, **saving) == signal.SIGKILL
    assert file.exists() == (iteration > saving["checkpoint_every"])
    done: list[int] = []
    plan = planner.plan(**given, **saving, progress=done.append)
    assert cases.same_plans(plan, expected)
    assert plan.model_calls == expected.model_calls
    assert done[0] == (iteration - 1) // saving["checkpoint_every"] * saving["checkpoint_every"] + 1
    done.clear()
    assert cases.same_plans(planner.plan(**given, **saving, progress=done.append), expected)
    assert done == []  # it holds the end


@every_planner
def test_a_search_that_is_killed_as_it_finishes(kind: str, tmp_path: Any, monkeypatch: Any) -> None:
    """After its last iteration, where weights have come to their ends."""
    start, goal = cases.problems(3)
    falling = Schedule(5.0, 0.1, "linear")
    planner = cases.planner(kind, arithmetic, action_weight=falling)
    expected = planner.plan(start, goal)
    algorithm = type(
        Search(
            planner, check_problem(arithmetic, planner.config, start, goal, None, None)
        ).algorithm
    )

    def killed_there(self: Any) -> None:
        raise KeyboardInterrupt

    saving = {"checkpoint": tmp_path / "search.pt", "checkpoint_every": 1}
    with monkeypatch.context() as patched:
        patched.setattr(algorithm, "finish", killed_there)
        with pytest.raises(KeyboardInterrupt):
            planner.plan(start, goal, **saving)
    done: list[int] = []
    plan = planner.plan(start, goal, **saving, progress=done.append)
    assert done == []
    assert cases.same_plans(plan, expected)


@every_planner
def test_out_of_time_is_no_end(kind: str, tmp_path: Any) -> None:
    """The same call, again and again, goes on until all is done."""
    start, goal = cases.problems(3)
    planner = cases.planner(kind, arithmetic)
    expected = planner.plan(start, goal)
    saving = {"checkpoint": tmp_path / "search.pt", "checkpoint_every": 100}
    made: list[int] = []
    for _ in range(2 * expected.iterations + 2):
        plan = planner.plan(start, goal, **saving, time_budget_ms=1e-6, progress=made.append)
        if not plan.out_of_time:
            break
    plan = planner.plan(start, goal, **saving, progress=made.append)
    assert not plan.out_of_time
    assert sorted(set(made)) == list(range(1, expected.iterations + 1))
    assert cases.same_plans(plan, expected)


def test_whole_plan_kernels_go_on_too(tmp_path: Any) -> None:
    from grasp_planner.tasks.mlp import ResidualMLP

    torch.manual_seed(0)
    planner = cases.planner("grasp", ResidualMLP(4, 2, hidden=8, layers=1), stop_cost=1e-6)
    start, goal = cases.problems(3)
    given = {"start": start, "goal": goal, "snapshots": (3, 9)}
    expected = planner.plan(**given)
    for iteration in (2, 5, 11):
        file = tmp_path / f"{iteration}.pt"
        saving = {"checkpoint": file, "checkpoint_every": 2}
        assert killed(planner, iteration, **given, **saving) == signal.SIGKILL
        assert cases.same_plans(planner.plan(**given, **saving), expected)


def test_a_checkpoint_of_another_search_is_refused(tmp_path: Any) -> None:
    start, goal = cases.problems(2)
    model = cases.MLP()
    file = tmp_path / "search.pt"
    cases.planner("cem", model).plan(start, goal, checkpoint=file)
    others = [
        (cases.planner("cem", model, seed=4), start, None),
        (cases.planner("mppi", model), start, None),
        (cases.planner("cem", cases.MLP()), start, None),
        (cases.planner("cem", model), start + 1, None),
        (cases.planner("cem", model), start, torch.tensor([5, 6])),
    ]
    before = file.read_bytes()
    for planner, other, ids in others:
        with pytest.raises(CheckpointMismatchError, match="is of another search"):
            planner.plan(other, goal, plan_ids=ids, checkpoint=file)
    assert file.read_bytes() == before
    file.write_bytes(b"no search")
    with pytest.raises(CheckpointMismatchError, match="is not one of a search"):
        cases.planner("cem", model).plan(start, goal, checkpoint=file)


# ------------------------------------------------------------------------------- models that fail


class Picky:
    """Fails whenever it sees a state that begins with 100."""

    def __init__(self, error: type[Exception] = RuntimeError, rows: int = 10**9) -> None:
        self.error, self.rows = error, rows

    def __call__(self, state: Tensor, action: Tensor) -> Tensor:
        if bool((state[:, 0].detach() == 100.0).any()):
            raise self.error("no such place")
        if len(state) > self.rows:
            raise torch.OutOfMemoryError(f"{len(state)} rows are too many")
        return arithmetic(state, action)


@every_planner
@pytest.mark.parametrize("error", [RuntimeError, AssertionError, ValueError])
def test_a_problem_that_the_model_raises_for_leaves_the_others(kind: str, error: Any) -> None:
    start, goal = cases.problems(5)
    ids = torch.tensor([3, 50, 8, 2, 7])
    start[:, 0].clamp_(-3, 3)
    expected = cases.planner(kind, arithmetic).plan(start, goal, plan_ids=ids)
    bad = start.clone()
    bad[1, 0] = bad[4, 0] = 100.0
    with pytest.warns(ModelFailureWarning, match=r"2 of 5 .*plan_id 50, plan_id 7 ") as caught:
        plan = cases.planner(kind, Picky(error)).plan(bad, goal, plan_ids=ids)
    assert caught[0].filename == __file__
    assert list(plan.failures) == [1, 4]
    assert "no such place" in plan.failures[1]
    assert plan.finite.tolist() == [True, False, True, True, False]
    sound = [0, 2, 3]
    for a, b in zip(cases.per_problem(plan), cases.per_problem(expected), strict=True):
        assert cases.same_bits(a[sound], b[sound])
    assert (plan.cost[[1, 4]] == torch.inf).all()
    assert torch.equal(plan.states[1, 0], bad[1])
    assert plan.states[1, 1:].isnan().all()
    assert torch.equal(plan.actions[1], torch.zeros(7, 2))


@every_planner
def test_memory_that_runs_out_is_shared_out(kind: str) -> None:
    """A batch that does not fit is planned in parts, a plan that does not in fewer rows."""
    start, goal = cases.problems(4)
    expected = cases.planner(kind, arithmetic).plan(start, goal)
    for rows in (40, 3):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            plan = cases.planner(kind, Picky(rows=rows)).plan(start, goal)
        assert plan.failures == {}
        for name in ("actions", "states", "cost", "finite", "loss_history"):
            assert cases.same_bits(getattr(plan, name), getattr(expected, name))


@every_planner
def test_a_model_that_always_fails_is_an_error(kind: str) -> None:
    start, goal = cases.problems(3)
    start[:, 0] = 100.0
    with pytest.raises(WorldModelError, match="no such place") as caught:
        cases.planner(kind, Picky(KeyError)).plan(start, goal)
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(WorldModelError, match="rows are too many"):
        cases.planner(kind, Picky(rows=0)).plan(*cases.problems(2))


def test_a_single_problem_that_fails_is_tried_once_and_none_at_all_is_an_error() -> None:
    calls: list[int] = []

    def failing(state: Tensor, action: Tensor) -> Tensor:
        calls.append(len(state))
        raise RuntimeError("never again")

    planner = cases.planner("cem", failing)
    for count in (1, 0):
        calls.clear()
        with pytest.raises(WorldModelError, match="never again"):
            planner.plan(*cases.problems(count))
        assert len(calls) == 1


def test_a_wrong_answer_is_everybodys_error() -> None:
    """It is no matter of single problems, and nothing is planned again."""
    calls: list[int] = []

    def wrong(state: Tensor, action: Tensor) -> Tensor:
        calls.append(len(state))
        return state[:, :3]

    with pytest.raises(ValueError, match="world_model must return"):
        cases.planner("cem", wrong).plan(*cases.problems(8))
    assert len(calls) == 1


def test_failures_reach_the_controller() -> None:
    """The environments whose plans failed go on by their warm starts."""
    from grasp_planner import MPC

    start, goal = cases.problems(2)
    controller = MPC(cases.planner("cem", Picky()), execute=1)
    first = controller.act(start, goal)
    moved = start.clone()
    moved[1, 0] = 100.0
    with pytest.warns(ModelFailureWarning):
        second = controller.act(moved, goal)
    assert torch.isfinite(second.actions).all()
    assert second.cost[1] == torch.inf
    assert torch.isfinite(first.cost).all()


def test_rounds_of_lifted_newton_stop_at_a_cost() -> None:
    """`stop_cost` is asked beside its own `enough`."""
    start, goal = cases.problems(2)
    planner = cases.planner("lifted-newton", arithmetic, rounds=4, enough=0.0, stop_cost=1e9)
    assert isinstance(planner, LiftedNewtonPlanner)
    plan: Plan = planner.plan(start, goal)
    assert plan.iterations == 1
