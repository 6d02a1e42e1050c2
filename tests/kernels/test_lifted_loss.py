"""The differentiable loss: values, the three gradients, and how it composes with a user's model."""

from __future__ import annotations

import kernel_cases as cases
import pytest
import torch
from torch import nn

import grasp_kernels
from grasp_kernels import lifted_loss, scale_state_gradient
from grasp_kernels.testing import assert_close

SHAPES = [(1, 1, 1), (3, 5, 7), (2, 1, 33), (5, 9, 1), (4, 3, 64), (1, 2, 1025), (2, 3, 4100)]


def weights(steps: int, features: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(features) + 0.5, torch.rand(steps) + 0.5


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("weighted", [False, True])
def test_values(dtype, shape, weighted) -> None:
    trajectory, prediction, goal = cases.inputs(*shape, dtype)
    w, v = weights(*shape[1:]) if weighted else (None, None)
    expected = cases.step(trajectory, prediction, goal, state_lr=0, goal_weight=0.3, w=w, v=v)
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    for per_step in (True, False):
        loss = lifted_loss(
            prediction,
            trajectory,
            goal,
            goal_weight=0.3,
            feature_weight=w,
            time_weight=v,
            per_step=per_step,
        )
        for name in ("dynamics", "goal", "total"):
            found, wanted = getattr(loss, name), expected[name]
            assert found.dtype == compute
            assert_close(found, wanted if per_step else wanted.sum(-1), "lifted_loss")


@pytest.mark.parametrize("weighted", [False, True])
def test_gradients_against_the_formula(dtype, weighted) -> None:
    """prediction 2w(gd r + gg v e); trajectory_{t+1} -2w gd r, row 0 zero; goal -sum_t 2w gg v e"""
    plans, steps, features = 3, 6, 37
    trajectory, prediction, goal = cases.inputs(plans, steps, features, dtype)
    w, v = weights(steps, features) if weighted else (None, None)
    leaves = [t.requires_grad_() for t in (prediction, trajectory, goal)]
    loss = lifted_loss(
        prediction, trajectory, goal, goal_weight=0.5, feature_weight=w, time_weight=v
    )
    outer = torch.tensor([1.0, 2.0, 0.5], dtype=loss.total.dtype)
    found = torch.autograd.grad((outer * loss.total).sum(), leaves)

    x, p, g = (t.detach().double() for t in (trajectory, prediction, goal))
    wd = torch.ones(features).double() if w is None else w.double()
    vd = (torch.ones(steps).double() if v is None else v.double())[:, None]
    scale = outer.double()[:, None, None]
    dynamics, goal_term = 2 * wd * scale * (p - x[:, 1:]), wd * scale * vd * (p - g[:, None])
    assert_close(found[0], dynamics + goal_term, "lifted_loss_backward", magnitude=10.0)
    assert_close(found[1][:, 1:], -dynamics, "lifted_loss_backward")
    assert not found[1][:, 0].any()
    assert_close(found[2], -goal_term.sum(1), "lifted_loss_backward", magnitude=10.0)


def test_goal_gradient_is_right_beside_a_large_residual(dtype) -> None:
    """The gradient of the goal does not contain the residual, so neither may its rounding error."""
    trajectory, prediction, goal = cases.inputs(2, 3, 16, dtype)
    trajectory = 64.0 * trajectory  # exact: residuals are 64 times the goal errors
    goal.requires_grad_()
    total = lifted_loss(prediction, trajectory, goal, goal_weight=0.01).total
    (found,) = torch.autograd.grad(total.sum(), goal)
    expected = -0.02 * (prediction.double() - goal.detach().double()[:, None]).sum(1)
    assert_close(found, expected, "lifted_loss_backward", magnitude=0.1)


def test_gradcheck_in_float64() -> None:
    trajectory, prediction, goal = cases.inputs(2, 3, 3, torch.float64)
    w, v = torch.rand(3, dtype=torch.float64), torch.rand(3, dtype=torch.float64)
    weight = torch.tensor([0.3, 0.7], dtype=torch.float64)

    def losses(p: torch.Tensor, x: torch.Tensor, g: torch.Tensor):
        return tuple(lifted_loss(p, x, g, goal_weight=weight, feature_weight=w, time_weight=v))

    leaves = [t.requires_grad_() for t in (prediction, trajectory, goal)]
    assert torch.autograd.gradcheck(losses, leaves)
    for i in range(3):  # one at a time: the others not needing a gradient is its own path
        only = [t.detach().requires_grad_(i == j) for j, t in enumerate(leaves)]
        assert torch.autograd.gradcheck(losses, only)


def test_gradcheck_per_step() -> None:
    trajectory, prediction, goal = cases.inputs(1, 2, 2, torch.float64)
    leaves = [t.requires_grad_() for t in (prediction, trajectory, goal)]
    assert torch.autograd.gradcheck(
        lambda p, x, g: tuple(lifted_loss(p, x, g, goal_weight=0.2, per_step=True)), leaves
    )


def test_each_loss_can_be_used_alone(dtype) -> None:
    """A gradient that never arrives for the other loss counts as zero, not as garbage."""
    trajectory, prediction, goal = cases.inputs(2, 3, 4, dtype)
    prediction.requires_grad_()
    loss = lifted_loss(prediction, trajectory, goal, goal_weight=0.3)
    (dynamics,) = torch.autograd.grad(loss.dynamics.sum(), prediction, retain_graph=True)
    (goal_term,) = torch.autograd.grad(loss.goal.sum(), prediction)
    p = prediction.detach().double()
    assert_close(dynamics, 2 * (p - trajectory.double()[:, 1:]), "lifted_loss_backward")
    assert_close(goal_term, 2 * (p - goal.double()[:, None]), "lifted_loss_backward")


def test_a_second_derivative_is_refused_not_wrong() -> None:
    trajectory, prediction, goal = cases.inputs(1, 2, 2, torch.float64)
    prediction.requires_grad_()
    total = lifted_loss(prediction, trajectory, goal, goal_weight=0.3).total.sum()
    (gradient,) = torch.autograd.grad(total, prediction, create_graph=True)
    with pytest.raises(RuntimeError):
        gradient.sum().backward()


class Model(nn.Module):
    """A model in which state and action meet in a product, so each path depends on the other."""

    def __init__(self, features: int = 3, width: int = 2) -> None:
        super().__init__()
        self.inner = nn.Linear(features + width, 8)
        self.outer = nn.Linear(8, features)
        self.double()

    def forward(self, state: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.inner(torch.cat([state, action], -1)))
        return state + 0.1 * self.outer(hidden) * (1 + action.sum(-1, keepdim=True))


@pytest.mark.parametrize("scale", [0.0, 0.3, 1.0])
def test_composes_with_a_model_and_scales_the_state_path(scale) -> None:
    """grad_a by the VJP; grad_s_{t+1} = -2w r + scale (dF/ds)^T cotangent, each written out."""
    model = Model()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    trajectory, _, goal = cases.inputs(2, 4, 3, torch.float64)
    actions = torch.randn(2, 4, 2, dtype=torch.float64, requires_grad=True)
    trajectory.requires_grad_()
    prediction = model(scale_state_gradient(trajectory[:, :-1], scale), actions)
    loss = lifted_loss(prediction, trajectory, goal, goal_weight=0.2)
    found_actions, found_states = torch.autograd.grad(loss.total.sum(), (actions, trajectory))

    states = trajectory.detach()[:, :-1].clone().requires_grad_()
    inputs = actions.detach().clone().requires_grad_()
    p = model(states, inputs)
    residual = p.detach() - trajectory.detach()[:, 1:]
    cotangent = 2 * (residual + 0.2 * (p.detach() - goal[:, None]))
    through_actions, through_states = torch.autograd.grad(p, (inputs, states), cotangent)
    expected = torch.zeros_like(trajectory)
    expected[:, 1:] -= 2 * residual
    expected[:, :-1] += scale * through_states
    torch.testing.assert_close(found_actions, through_actions, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found_states, expected, rtol=1e-12, atol=1e-12)


def test_state_path_of_scale_zero_is_cut_not_multiplied() -> None:
    """0 x inf would be NaN: at scale 0 the model is never differentiated for its states."""
    states = torch.zeros(2, 3, requires_grad=True)
    assert not scale_state_gradient(states, 0.0).requires_grad
    assert scale_state_gradient(states, 1.0).requires_grad
    (gradient,) = torch.autograd.grad(scale_state_gradient(states, 0.25).sum(), states)
    assert torch.equal(gradient, torch.full_like(states, 0.25))


def test_no_weight_gradient_is_made_where_none_is_asked() -> None:
    model = Model()
    trajectory, _, goal = cases.inputs(2, 4, 3, torch.float64)
    actions = torch.randn(2, 4, 2, dtype=torch.float64, requires_grad=True)
    prediction = model(scale_state_gradient(trajectory[:, :-1]), actions)
    loss = lifted_loss(prediction, trajectory, goal, goal_weight=0.2).total.sum()
    torch.autograd.grad(loss, actions)
    assert all(parameter.grad is None for parameter in model.parameters())
    # and where the user does ask, ordinary autograd reaches them
    prediction = model(scale_state_gradient(trajectory[:, :-1]), actions)
    lifted_loss(prediction, trajectory, goal, goal_weight=0.2).total.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0)])
def test_empty_sizes(dtype, shape) -> None:
    trajectory, prediction, goal = cases.inputs(*shape, dtype)
    leaves = [t.requires_grad_() for t in (prediction, trajectory, goal)]
    loss = lifted_loss(*leaves, goal_weight=0.3)
    assert loss.total.shape == shape[:1]
    assert not loss.total.any()
    for leaf, gradient in zip(leaves, torch.autograd.grad(loss.total.sum(), leaves), strict=True):
        assert gradient.shape == leaf.shape
        assert not gradient.any()


def test_any_strides(dtype) -> None:
    """Every argument non-contiguous in its own way gives the bits of the contiguous call."""
    plans, steps, features = 3, 4, 6
    trajectory, prediction, goal = cases.inputs(plans, steps, features, dtype)
    w, v = weights(steps, features)

    def run(p, x, g, w, v):
        p, x, g = (t.detach().requires_grad_() for t in (p, x, g))
        loss = lifted_loss(p, x, g, goal_weight=0.3, feature_weight=w, time_weight=v)
        return [*loss, *torch.autograd.grad(loss.total.sum(), (p, x, g))]

    expected = run(prediction, trajectory, goal, w, v)
    padded = torch.full((plans, 2 * (steps + 1), features + 3), torch.nan, dtype=dtype)
    padded[:, ::2, 1:-2] = trajectory
    views = {
        "transposed": (
            prediction.transpose(0, 2).contiguous().transpose(0, 2),
            trajectory.transpose(0, 2).contiguous().transpose(0, 2),
            goal.T.contiguous().T,
        ),
        "strided": (
            prediction.repeat_interleave(2, -1)[..., ::2],
            padded[:, ::2, 1:-2],
            goal.repeat_interleave(2, 0)[::2],
        ),
    }
    for name, (p, x, g) in views.items():
        assert not any(t.is_contiguous() for t in (p, x, g)), name
        found = run(p, x, g, w.repeat_interleave(2)[::2], v.repeat_interleave(3)[::3])
        for one, other in zip(found, expected, strict=True):
            assert cases.same_bits(one, other), name


def test_expanded_arguments_may_be_read(dtype) -> None:
    """The loss writes nothing, so overlapping memory is welcome: one goal, one prediction for all
    plans.
    """
    trajectory, prediction, goal = cases.inputs(3, 4, 5, dtype)
    one = (prediction[:1].expand(3, 4, 5), trajectory[:1].expand(3, 5, 5), goal[:1].expand(3, 5))
    found = lifted_loss(*one, goal_weight=0.3)
    expected = lifted_loss(*(t.contiguous() for t in one), goal_weight=0.3)
    assert all(cases.same_bits(a, b) for a, b in zip(found, expected, strict=True))


def test_loss_is_the_loss_of_the_step(dtype) -> None:
    trajectory, prediction, goal = cases.inputs(3, 4, 65, dtype)
    apart = lifted_loss(prediction, trajectory, goal, goal_weight=0.3)
    fused, _ = grasp_kernels.lifted_step_(
        trajectory,
        prediction,
        goal,
        state_lr=0.1,
        goal_weight=0.3,
        noise_scale=0.1,
        seed=0,
        iteration=1,
    )
    assert all(cases.same_bits(a, b) for a, b in zip(apart, fused, strict=True))


@pytest.mark.parametrize(("steps", "features"), [(200_000, 1), (40_000, 2)])
def test_a_long_plan_has_its_loss_whatever_the_threads(backend, steps, features) -> None:
    """One row of many steps: where torch would split the sum over time among its threads."""
    trajectory, prediction, goal = cases.inputs(2, steps, features, torch.float32)
    before = torch.get_num_threads()
    found = []
    try:
        for threads, some in ((1, slice(0, 1)), (2, slice(0, 1)), (4, slice(0, 1)), (2, slice(2))):
            torch.set_num_threads(threads)
            loss = lifted_loss(prediction[some], trajectory[some], goal[some], goal_weight=0.3)
            found.append(torch.stack(loss)[:, 0])
    finally:
        torch.set_num_threads(before)
    assert all(cases.same_bits(one, found[0]) for one in found[1:])
