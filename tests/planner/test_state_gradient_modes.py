"""What flows back through the model's state input: nothing, a share, all of it, or a surrogate."""

from __future__ import annotations

from typing import Any

import planner_cases as cases
import pytest
import torch
from grasp_planner import GraspPlanner, Schedule
from torch import Tensor


def exact(model: Any) -> Any:
    """A surrogate that is no worse than what it stands for."""

    def pulled_back(state: Tensor, action: Tensor, cotangent: Tensor) -> Tensor:
        with torch.enable_grad():
            given = state.detach().requires_grad_()
            (found,) = torch.autograd.grad(model(given, action), given, cotangent)
        return found

    return pulled_back


@pytest.mark.parametrize("scale", [0.3, 1.0])
@pytest.mark.parametrize(
    "changes",
    [{}, {"state_scale": (2.0, 0.5, 1.0, 3.0)}, {"max_rows": 5, "state_optimizer": "adam"}],
    ids=str,
)
def test_an_exact_surrogate_changes_nothing(scale: float, changes: dict[str, Any]) -> None:
    model = cases.MLP(dtype=torch.float64)
    settings = cases.config(state_gradient_scale=scale, **changes)
    start, goal = cases.problems(3, torch.float64)
    expected = GraspPlanner(model, settings).plan(start, goal)
    found = GraspPlanner(model, settings, surrogate=exact(model)).plan(start, goal)
    torch.testing.assert_close(found.loss_history, expected.loss_history, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(found.actions, expected.actions, rtol=1e-6, atol=1e-8)
    stopped = GraspPlanner(model, cases.config(**changes)).plan(start, goal)
    assert not torch.allclose(stopped.loss_history, expected.loss_history, rtol=1e-3)
    none = GraspPlanner(model, settings, surrogate=lambda s, a, c: 0 * c).plan(start, goal)
    torch.testing.assert_close(none.loss_history, stopped.loss_history, rtol=1e-6, atol=1e-9)


def test_a_surrogate_is_left_as_it_was() -> None:
    from grasp_planner.surrogate import Surrogate

    surrogate = Surrogate(cases.STATE, cases.ACTION).train()
    before = {name: value.clone() for name, value in surrogate.state_dict().items()}
    planner = GraspPlanner(cases.MLP(), cases.config(state_gradient_scale=0.5), surrogate=surrogate)
    assert planner.plan(*cases.problems(2)).finite.all()
    assert surrogate.training
    assert all(p.requires_grad and p.grad is None for p in surrogate.parameters())
    assert all(torch.equal(v, before[n]) for n, v in surrogate.state_dict().items())


def test_bad_surrogates_are_named() -> None:
    with pytest.raises(TypeError, match="surrogate must be callable, got int"):
        GraspPlanner(cases.MLP(), cases.config(state_gradient_scale=1.0), surrogate=3)
    with pytest.raises(ValueError, match="surrogate is of no use while"):
        GraspPlanner(cases.MLP(), cases.config(), surrogate=exact(cases.MLP()))
    planner = GraspPlanner(
        cases.MLP(), cases.config(state_gradient_scale=1.0), surrogate=lambda s, a, c: c[:, :2]
    )
    with pytest.raises(ValueError, match=r"surrogate must return \(rows, D\) \(28, 4\)"):
        planner.plan(*cases.problems(2))


def test_the_share_may_change_over_the_iterations() -> None:
    """From all to nothing: the first iteration is that of 1, the last that of 0."""
    model, (start, goal) = cases.MLP(), cases.problems(2)
    falling = Schedule(1.0, 0.0, "linear")
    settings = {"iterations": 1, "sync_every": 0}
    one = GraspPlanner(model, cases.config(**settings, state_gradient_scale=1.0))
    first = GraspPlanner(model, cases.config(**settings, state_gradient_scale=falling))
    assert cases.same_plans(one.plan(start, goal), first.plan(start, goal))
    longer = cases.config(state_gradient_scale=falling, sync_every=0)
    plan = GraspPlanner(model, longer).plan(start, goal)
    for scale in (0.0, 1.0):
        other = GraspPlanner(model, cases.config(state_gradient_scale=scale, sync_every=0))
        assert not torch.equal(other.plan(start, goal).loss_history[-1], plan.loss_history[-1])
