"""World models of every make: named when wrong, left as they were, and planned through."""

from __future__ import annotations

import functools
import threading

import planner_cases as cases
import pytest
import torch
from grasp_planner import GraspPlanner
from grasp_planner.world_model import CheckedModel
from planner_cases import arithmetic
from torch import nn

# ---------------------------------------------------------------------------------- wrong models


def moves_state(state, action):
    state += 0.3 * action.repeat(1, 2)
    return state


def clamps_state(state, action):
    state.clamp_(-1.0, 1.0)
    return arithmetic(state, action)


def clamps_action(state, action):
    with torch.no_grad():
        action.clamp_(-0.5, 0.5)
    return arithmetic(state, action)


@pytest.mark.parametrize("model", [moves_state, clamps_state, clamps_action])
@pytest.mark.parametrize(
    "variant",
    [{}, {"candidates": 1}, {"state_optimizer": "adam"}, {"state_scale": (1.0, 2.0, 3.0, 4.0)}],
    ids=str,
)
def test_a_model_that_writes_to_its_input(model, variant) -> None:
    with pytest.raises((ValueError, RuntimeError), match=r"world_model .*in place"):
        cases.solve(model, 2, **variant)


def test_a_model_that_fails_is_named_with_what_it_was_given() -> None:
    start, goal = cases.problems(2)
    model = cases.MLP()
    told = r"world_model .*\(4, {}\) torch.{} .*\(4, 2\) torch.{}.*parameters torch.float32 on cpu"
    with pytest.raises(RuntimeError, match=told.format(4, "float64", "float64")):
        GraspPlanner(model, cases.config()).plan(start.double(), goal.double())
    with pytest.raises(RuntimeError, match=told.format(5, "float32", "float32")):
        GraspPlanner(model, cases.config()).plan(torch.zeros(2, 5), torch.zeros(2, 5))
    narrow = {"action_features": 3, "action_low": None, "action_high": None}
    with pytest.raises(RuntimeError, match=r"world_model .*action \(4, 3\) torch.float32"):
        cases.solve(lambda s, a: model(s, a), 2, **narrow)


def test_a_model_that_ignores_its_action_is_named_by_the_sync_alone() -> None:
    weight = torch.eye(4, requires_grad=True)
    for max_rows in (None, 4):
        with pytest.raises(ValueError, match="world_model does not use the action"):
            cases.solve(lambda s, a: s @ weight, 2, iterations=0, max_rows=max_rows)


# -------------------------------------------------------------------------------- left as it was


def flags(model: nn.Module) -> list[bool]:
    return [*(m.training for m in model.modules()), *(p.requires_grad for p in model.parameters())]


def test_two_threads_through_one_model() -> None:
    """Both inside at once, and the first out must not thaw the model, nor the last leave it so."""

    class Meeting(cases.MLP):
        def forward(self, state, action):
            if threading.current_thread() not in met:
                met.add(threading.current_thread())
                barrier.wait(timeout=20)
            seen.update(flags(self))
            return super().forward(state, action)

    barrier, met, seen, failed = threading.Barrier(2), set(), set(), []
    model = Meeting().train()

    def plan(iterations: int) -> None:
        try:
            cases.solve(model, 1, iterations=iterations)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=plan, args=(k,)) for k in (1, 30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert len(met) == 2
    assert seen == {False}
    assert all(flags(model))


def test_a_buffer_changed_behind_torchs_back_is_put_back() -> None:
    class Counting(cases.MLP):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, state, action):
            self.calls.data.add_(1)  # which leaves no trace in the version
            return super().forward(state, action)

    model = Counting()
    cases.solve(model, 1)
    assert float(model.calls) == 0.0


def test_parameters_that_autograd_cannot_use() -> None:
    """Made in inference mode: torch refuses them in a graph, and they are left as they were."""
    with torch.inference_mode():
        model = cases.MLP().train()
    with pytest.raises(RuntimeError, match="world_model failed"):
        cases.solve(model, 1)
    assert all(flags(model))


def test_a_partial_of_a_module_is_frozen() -> None:
    class Seen(cases.MLP):
        def forward(self, state, action, scale=1.0):
            seen.update(flags(self))
            return super().forward(state, scale * action)

    model, seen = Seen().train(), set()
    cases.solve(functools.partial(functools.partial(model, scale=0.5)), 1)
    cases.solve(functools.partial(model.forward, scale=0.5), 1)
    assert seen == {False}
    assert all(flags(model))


# ------------------------------------------------------------------------------- planned through


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own exporter
def test_an_exported_module() -> None:
    """Its `eval` and `train` raise."""
    model = cases.MLP().eval()
    rows = torch.export.Dim.AUTO
    program = torch.export.export(
        model, (torch.randn(3, 4), torch.randn(3, 2)), dynamic_shapes=({0: rows}, {0: rows})
    )
    exported = program.module()
    with pytest.raises(NotImplementedError):
        exported.eval()
    assert torch.isfinite(cases.solve(exported, 2).cost).all()


def test_a_random_model_is_the_same_in_stretches() -> None:
    """A stretch is evaluated again on the way back, and must draw then what it drew before."""

    def model(state, action):
        return state + 0.3 * action.repeat(1, 2) * torch.randn_like(state)

    gradients = []
    for max_rows in (None, 1, 2, 4):
        torch.manual_seed(0)
        actions = torch.zeros(1, 6, 2, requires_grad=True)
        states = CheckedModel(model).rollout(torch.zeros(1, 4), actions, max_rows)
        gradients.append(torch.autograd.grad(states[:, -1].sum(), actions)[0])
    for gradient in gradients[1:]:
        torch.testing.assert_close(gradient, gradients[0], rtol=1e-6, atol=1e-6)
    plans = []
    for max_rows in (None, 2):
        torch.manual_seed(0)
        settings = {"iterations": 0, "candidates": 1, "max_rows": max_rows, "sync_optimizer": "sgd"}
        plans.append(cases.solve(model, 1, **settings))
    torch.testing.assert_close(plans[0].actions, plans[1].actions, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("variant", [{}, {"initialization": "rollout"}], ids=str)
@pytest.mark.parametrize("warm", [None, torch.zeros(4, 7, 2)], ids=["cold", "warm"])
@pytest.mark.parametrize("max_rows", [1, 3, 8])
def test_the_model_never_sees_more_rows_than_allowed(variant, warm, max_rows) -> None:
    def model(state, action):
        rows.add(len(state))
        return arithmetic(state, action)

    rows: set[int] = set()
    settings = cases.config(max_rows=max_rows, iterations=2, sync_every=1, **variant)
    GraspPlanner(model, settings).plan(*cases.problems(4), actions=warm)
    assert max(rows) <= max_rows
