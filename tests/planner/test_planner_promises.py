"""The promises that every planner keeps: same plans anywhere, no host reads, a model left as it
was, errors that stay at home.
"""

from __future__ import annotations

import warnings
from typing import Any

import planner_cases as cases
import pytest
import torch
from grasp_planner import NonFiniteWarning, Plan
from planner_cases import arithmetic
from test_promises import Touchy, assert_same_state, exploding, poisoned, state_of, touchy
from torch import Tensor

every_planner = pytest.mark.parametrize("kind", cases.KINDS)
IDS = torch.tensor([5, 0, 2**55, 77])  # the largest id depends on the number of samples


def plan(kind: str, start: Tensor, goal: Tensor, ids: Tensor, **changes: Any) -> Plan:
    return cases.planner(kind, arithmetic, **changes).plan(start, goal, plan_ids=ids)


def assert_same(found: Plan, expected: Plan, rows: Any) -> None:
    for a, b in zip(cases.per_problem(found), cases.per_problem(expected), strict=True):
        assert cases.same_bits(a, b[rows])


# ---------------------------------------------------------------------------- 2: same plan anywhere


@every_planner
def test_alone_in_a_batch_and_permuted(kind: str) -> None:
    start, goal = cases.problems(4)
    together = plan(kind, start, goal, IDS)
    order = [2, 0, 3, 1]
    assert_same(plan(kind, start[order], goal[order], IDS[order]), together, order)
    for n in range(4):
        alone = plan(kind, start[n : n + 1], goal[n : n + 1], IDS[n : n + 1])
        assert_same(alone, together, slice(n, n + 1))


@every_planner
def test_chunks_of_any_size(kind: str) -> None:
    start, goal = cases.problems(3)
    whole = plan(kind, start, goal, IDS[:3])
    for max_rows in (1, 5, 10**6):
        assert cases.same_plans(plan(kind, start, goal, IDS[:3], max_rows=max_rows), whole)


@every_planner
@pytest.mark.parametrize("max_rows", [1, 5])
def test_the_model_never_sees_more_rows_than_allowed(kind: str, max_rows: int) -> None:
    def model(state: Tensor, action: Tensor) -> Tensor:
        rows.add(len(state))
        return arithmetic(state, action)

    rows: set[int] = set()
    cases.planner(kind, model, max_rows=max_rows).plan(*cases.problems(3))
    assert max(rows) == max_rows


@every_planner
def test_the_seed_and_the_id_matter(kind: str) -> None:
    """And that all of the above is not because nothing is random."""
    start, goal = cases.problems(6)
    ids = torch.arange(6)
    base = plan(kind, start, goal, ids)
    assert cases.same_plans(base, plan(kind, start, goal, ids))
    assert cases.same_plans(base, cases.planner(kind, arithmetic).plan(start, goal))
    for other in (plan(kind, start, goal, ids + 1), plan(kind, start, goal, ids, seed=4)):
        assert not torch.equal(base.loss_history, other.loss_history)
        assert not torch.equal(base.actions, other.actions)


def test_samples_of_neighbouring_problems_have_nothing_in_common() -> None:
    """Problem n's samples are named after n, all of them, so that no two share their noise."""
    start, goal = torch.zeros(2, 4), torch.ones(2, 4)
    seen: list[Tensor] = []

    def model(state: Tensor, action: Tensor) -> Tensor:
        seen.append(action.clone())
        return arithmetic(state, action)

    for kind in ("cem", "icem", "mppi", "gradient", "lifted-newton"):
        seen.clear()
        cases.planner(kind, model).plan(start, goal)
        actions = seen[0].detach()
        assert len(torch.unique(actions, dim=0)) >= len(actions) - 3, kind  # the idle ones


@pytest.mark.parametrize("kind", ["cem", "lifted-newton", "latco"])
def test_any_thread_count(kind: str) -> None:
    start, goal = cases.problems(16)
    slow = {"action_low": -0.1, "action_high": 0.1}
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            planner = cases.planner(kind, arithmetic, horizon=40, **slow)
            results.append(planner.plan(0.1 * start, 0.1 * goal))
    finally:
        torch.set_num_threads(before)
    assert cases.same_plans(*results)


def test_a_wide_state_on_any_thread_count() -> None:
    """One plan of one wide state: where a sum over features is tempted to split over threads."""
    start, goal = torch.randn(2, 5, 100_003).unbind(0)
    changes = {"horizon": 2, "action_features": 1, "samples": 1, "elites": 1}
    planner = cases.planner("cem", lambda s, a: s + 0.1 * a, **changes)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            alone = [planner.plan(start[n], goal[n]) for n in range(5)]
            results.append(torch.cat([plan.cost for plan in alone]))
    finally:
        torch.set_num_threads(before)
    assert cases.same_bits(*results)


# --------------------------------------------------------------------------------- 3: no host reads


@every_planner
def test_the_loop_never_waits_for_the_device(kind: str) -> None:
    start, goal = cases.problems(2)
    reads = cases.HostReads()
    everything = {"enough": 0} if kind.startswith("lifted") else {}  # else it asks who has arrived
    planner = cases.planner(kind, reads.watch(arithmetic), **everything)
    with reads:
        planner.plan(start, goal, actions=torch.zeros(2, 7, 2), callback=lambda moment: None)
    assert reads.model_calls >= 4 * 7
    assert reads.during_the_loop() == []
    assert reads.seen  # before and after the loop the planner does read, so the counter is alive


# ------------------------------------------------------------------------ 4: the model is untouched


def model_for(kind: str) -> Touchy:
    """`torch.func` allows no model that writes to its own buffers; all other ways do."""
    model = touchy()
    if kind.endswith("matrix-free"):
        model.forward = cases.MLP.forward.__get__(model)
    return model


@every_planner
def test_the_model_is_as_it_was(kind: str) -> None:
    model = model_for(kind)
    before = state_of(model)
    planner = cases.planner(kind, model)
    first = planner.plan(*cases.problems(2))
    assert_same_state(model, before)
    assert model.modes <= {False}  # dropout was off while planning
    assert cases.same_plans(planner.plan(*cases.problems(2)), first)


@every_planner
@pytest.mark.parametrize("calls", [0, 10])
def test_the_model_is_as_it_was_after_an_error(kind: str, calls: int) -> None:
    model = touchy()
    model.broken_after = calls
    before = state_of(model)
    with pytest.raises(RuntimeError):
        cases.planner(kind, model).plan(*cases.problems(2))
    assert_same_state(model, before)


@every_planner
def test_inputs_are_only_read_and_outputs_are_the_callers(kind: str) -> None:
    """Nothing returned shares memory with what was given, or asks for a gradient."""
    start, goal = cases.problems(2)
    start.requires_grad_()
    warm = torch.full((2, 7, 2), 0.1)
    given = [start, goal, warm]
    before = [t.detach().clone() for t in given]
    plan = cases.planner(kind, cases.MLP()).plan(start, goal, actions=warm)
    assert all(torch.equal(a.detach(), b) for a, b in zip(given, before, strict=True))
    for part in cases.per_problem(plan):
        assert not part.requires_grad
        for tensor in given:
            assert part.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr()


@every_planner
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_called_without_gradients(kind: str, mode: Any) -> None:
    start, goal = cases.problems(2)
    planner = cases.planner(kind, arithmetic)
    with mode():
        found = planner.plan(start, goal)
    assert cases.same_plans(found, planner.plan(start, goal))
    assert not found.actions.is_inference()


# ----------------------------------------------------------------- 5: a broken plan breaks no other


@every_planner
@pytest.mark.parametrize("model", [exploding, poisoned])
def test_a_broken_plan_breaks_no_other(kind: str, model: Any) -> None:
    start, goal = cases.problems(3)
    ids = torch.tensor([10, 2**40 + 3, 30])
    planner = cases.planner(kind, model)
    sound = planner.plan(start, goal, plan_ids=ids)
    assert sound.finite.all()
    broken = start.clone()
    broken[1] = 100.0
    with pytest.warns(NonFiniteWarning, match=str(2**40 + 3)) as caught:
        found = planner.plan(broken, goal, plan_ids=ids)
    assert caught[0].filename == __file__
    for name in (10, 30):
        assert f"plan_id {name} " not in str(caught[0].message)
    for a, b in zip(cases.per_problem(found), cases.per_problem(sound), strict=True):
        assert cases.same_bits(a[[0, 2]], b[[0, 2]])
    assert found.finite.tolist() == [True, False, True]
    assert found.cost[1] == torch.inf
    assert torch.isfinite(found.actions).all()
    assert found.states[1, 1:].isnan().all()  # no states are made up


def cliff(state: Tensor, action: Tensor) -> Tensor:
    """Nothing is known beyond a thrust of 0.6."""
    return torch.where(action[:, :1] > 0.6, torch.nan, arithmetic(state, action))


@every_planner
def test_samples_that_break_are_not_chosen(kind: str) -> None:
    start, goal = cases.problems(4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NonFiniteWarning)
        plan = cases.planner(kind, cliff).plan(start, goal)
    assert plan.finite.all()
    assert (plan.actions[..., 0] <= 0.6).all()
    for part in (plan.actions, plan.states, plan.cost):
        assert torch.isfinite(part).all()
    idle = cases.roll_out(cliff, start, torch.zeros_like(plan.actions))[:, -1]
    cost = (idle - goal).square().sum(1)
    if kind in ("cem", "icem", "mppi", "gradient"):
        assert (plan.cost < cost).all()
    else:  # a step of the others may end beyond the cliff, from wherever it begins
        assert (plan.cost <= 1.000001 * cost).all()
