"""Compiled world models and iterations, and CUDA graphs that outlive a goal and a batch."""

from __future__ import annotations

import shutil
from typing import Any

import planner_cases as cases
import pytest
import torch
from grasp_planner import GraspPlanner, LatentModel
from grasp_planner.compiled import MOST_GRAPHS, Captured
from planner_cases import arithmetic
from torch import Tensor

needs_a_compiler = pytest.mark.skipif(
    shutil.which("c++") is None and shutil.which("g++") is None, reason="no C++ compiler"
)
# Torch's own, while it traces.
quiet = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning",
    "ignore::FutureWarning",
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning",
)
COMPILED = ("cem", "lifted-newton", "grasp")


@pytest.fixture
def fresh() -> Any:
    """Nothing that another test compiled is in the way."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("kind", COMPILED)
@needs_a_compiler
@quiet
def test_a_compiled_plan_is_the_same(kind: str, fresh: None) -> None:
    """Also with another goal, another batch, and costs of one's own."""
    model = cases.MLP()
    planner = cases.planner(kind, model, compile="torch", action_weight=0.1)
    eager = cases.planner(kind, model, action_weight=0.1)
    for count in (2, 3):
        start, goal = cases.problems(count)
        plan, expected = planner.plan(start, goal), eager.plan(start, goal)
        torch.testing.assert_close(plan.actions, expected.actions, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(plan.cost, expected.cost, rtol=1e-3, atol=1e-3)


@needs_a_compiler
@quiet
def test_the_lifted_iteration_is_one_graph(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """No part of it falls back to Python, and it is compiled a few times, not once an iteration."""
    from grasp_planner import compiled

    graphs: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(len(graph.graph.nodes))
        return graph

    monkeypatch.setattr(
        compiled.torch, "compile", lambda f: f if f is not compiled.lifted_block else whole(f)
    )
    compile_ = torch._dynamo.optimize

    def whole(function: Any) -> Any:
        return compile_(backend, nopython=True)(function)

    model = cases.MLP()
    settings = cases.config(compile="torch", iterations=30, sync_every=0, action_features=2)
    start, goal = cases.problems(2)
    plan = GraspPlanner(model, settings).plan(start, goal)
    expected = GraspPlanner(model, cases.config(iterations=30, sync_every=0)).plan(start, goal)
    torch.testing.assert_close(plan.loss_history, expected.loss_history, rtol=1e-4, atol=1e-4)
    assert 1 <= len(graphs) <= 3


def test_graphs_are_kept_per_shape_and_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """On no GPU: `make_graphed_callables` stands for capture, and what is asked of it is seen."""
    captured: list[Any] = []

    def capture(model: Any, samples: Any, allow_unused_input: bool) -> Any:
        captured.append([(tuple(t.shape), t.requires_grad) for t in samples])
        buffer: list[Tensor] = []

        def replay(*given: Tensor) -> Tensor:
            assert [tuple(t.shape) for t in given] == [shape for shape, _ in captured[-1]] or buffer
            found = model(*given)
            if buffer:  # a graph writes where it wrote before
                buffer[0].data.copy_(found.data)
            else:
                buffer.append(found.detach().clone())
            return found

        return replay

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", capture)
    monkeypatch.setattr(Captured, "on_gpu", staticmethod(lambda tensor: True))
    start, goal = cases.problems(3)
    for kind in ("grasp", "cem"):
        captured.clear()
        planner = cases.planner(kind, arithmetic, compile="cuda-graph")
        eager = cases.planner(kind, arithmetic)
        assert cases.same_plans(planner.plan(start, goal), eager.plan(start, goal))
        first = len(captured)
        assert 1 <= first <= 4
        planner.plan(start, goal + 1.0)  # a new goal captures nothing
        assert len(captured) == first
        planner.plan(start[:2], goal[:2])  # a new batch does, once
        assert first < len(captured) <= 2 * first
        again = len(captured)
        planner.plan(start[:2], goal[:2])
        planner.plan(start, goal)
        assert len(captured) == again
    call = Captured(arithmetic)
    for rows in range(1, 20):
        call(torch.zeros(rows, 4), torch.zeros(rows, 2))
    assert len(call.graphs) == MOST_GRAPHS


def test_elsewhere_a_captured_model_is_called_as_it_is() -> None:
    start, goal = cases.problems(2)
    plan = cases.planner("grasp", arithmetic, compile="cuda-graph").plan(start, goal)
    assert cases.same_plans(plan, cases.planner("grasp", arithmetic).plan(start, goal))


@needs_a_compiler
@quiet
def test_windows_and_dicts_compile_too(fresh: None) -> None:
    def model(state: dict[str, Tensor], action: Tensor) -> dict[str, Tensor]:
        flat = arithmetic(state["all"][:, -1], action[:, -1])
        return {"all": flat + 0.1 * state["all"][:, 0]}

    wrapped = LatentModel(model, latents={"all": (4,)}, history=2)
    start = torch.randn(2, 2, 4)
    goal = {"all": torch.zeros(2, 4)}
    plans = [
        cases.planner("grasp", wrapped, compile=how).plan({"all": start}, goal)
        for how in ("torch", "none")
    ]
    torch.testing.assert_close(plans[0].cost, plans[1].cost, rtol=1e-3, atol=1e-3)
