"""`command(state)` over any planner: the vocabulary of `pytorch_mppi`, and its loop beside it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from grasp_bench.pendulums import pendulum, upright
from grasp_planner import (
    CEMPlanner,
    GradientPlanner,
    GraspPlanner,
    ICEMPlanner,
    LatCoPlanner,
    LiftedNewtonPlanner,
    MPPIPlanner,
    Planner,
)
from grasp_planner.adapters.pytorch_mppi import Controller
from torch import Tensor, nn

PLANNERS = {
    CEMPlanner: {"iterations": 3},
    ICEMPlanner: {},
    MPPIPlanner: {"iterations": 3},
    GradientPlanner: {"iterations": 30},
    LatCoPlanner: {"iterations": 30},
    GraspPlanner: {"iterations": 20, "candidates": 2, "final_sync_steps": 5},
    LiftedNewtonPlanner: {"rounds": 1},
}


def slide(state: Tensor, action: Tensor) -> Tensor:
    return state + 0.2 * torch.cat((action, action), 1)


def near(state: Tensor, action: Tensor) -> Tensor:
    """Near (1, 1), gently."""
    return (state - 1.0).square().sum(1) + 0.01 * action.square().sum(1)


def controller(planner: type[Planner] = ICEMPlanner, **changes: Any) -> Controller:
    settings: dict[str, Any] = {"nx": 2, "noise_sigma": 0.3 * torch.eye(1), "u_max": 1.0}
    settings |= {"dynamics": slide, "running_cost": near, "num_samples": 40, "horizon": 6}
    return Controller(planner=planner, **{**settings, **PLANNERS[planner], **changes})


def test_beside_pytorch_mppi_in_its_own_loop() -> None:
    """The same arguments and rollouts, ours in three iterations of a third: cheaper from both."""
    theirs = pytest.importorskip("pytorch_mppi").MPPI
    shared: dict[str, Any] = {"horizon": 15, "lambda_": 1.0}
    shared |= {"u_min": torch.tensor(-2.0), "u_max": torch.tensor(2.0)}
    totals = []
    for seed in range(2):
        torch.manual_seed(seed)
        begin = torch.tensor([math.pi, 1.0]) + 0.3 * torch.randn(2)
        for make, samples in ((theirs, 300), (Controller, 100)):
            driver = make(pendulum, upright, 2, torch.eye(1), num_samples=samples, **shared)
            state, total = begin[None], 0.0
            for _ in range(100):
                action = driver.command(state[0])
                assert action.shape == (1,)
                state = pendulum(state, action[None])
                total += float(upright(state, action))
            totals.append(total)
    assert totals[1] < totals[0]
    assert totals[3] < totals[2]


@pytest.mark.parametrize("planner", PLANNERS, ids=lambda planner: planner.__name__)
def test_every_planner_drives(planner: type[Planner]) -> None:
    driver = controller(planner)
    state = torch.zeros(2)
    for _ in range(12):
        state = slide(state[None], driver.command(state)[None])[0]
    assert float(near(state[None], torch.zeros(1, 1))) < 0.1
    assert driver.plan is not None
    assert (driver.U.abs() <= 1.0).all()


def test_costs_are_the_sum_that_theirs_are() -> None:
    """Of states after each action, with the terminal cost, of scaled actions; written out."""

    def terminal(states: Tensor, actions: Tensor) -> Tensor:
        assert states.shape[0] == 1
        return 3.0 * states[:, :, -1, 0].abs() + actions[:, :, 0, 0]

    driver = controller(terminal_state_cost=terminal, u_scale=0.5, u_per_command=2)
    begin = torch.tensor([0.2, -0.4])
    first = driver.command(begin)
    assert torch.equal(first, driver.U[:2])
    assert driver.plan is not None
    states = driver.get_rollouts(begin)
    assert states.shape == (1, 6, 2)
    torch.testing.assert_close(states, driver.plan.states[:, 1:])
    scaled = 0.5 * driver.U
    expected = near(states[0], scaled).sum() + 3.0 * states[0, -1, 0].abs() + scaled[0, 0]
    torch.testing.assert_close(driver.plan.cost[0], expected)
    state = begin[None]
    for t in range(6):
        state = slide(state, scaled[t][None])
    torch.testing.assert_close(states[0, -1], state[0])


def test_the_nominal_plan_moves_on() -> None:
    given = torch.linspace(-0.5, 0.5, 6)[:, None]
    seen: list[Tensor] = []

    class Recorder(ICEMPlanner):
        def plan(self, *args: Any, actions: Tensor | None = None, **given: Any) -> Any:
            seen.append(actions)
            return super().plan(*args, actions=actions, **given)

    PLANNERS[Recorder] = {}
    driver = controller(Recorder, U_init=given, u_init=torch.tensor([0.25]))
    driver.command([0.0, 0.0])
    moved = torch.cat((given[1:], torch.tensor([[0.25]])))
    assert torch.equal(seen[0][0], moved)
    before = driver.U.clone()
    driver.command([0.0, 0.0], shift_nominal_trajectory=False)
    assert torch.equal(seen[1][0], before)
    driver.U = torch.zeros(6, 1)
    driver.command([0.0, 0.0], False)
    assert torch.equal(seen[2][0], torch.zeros(6, 1))
    driver.reset()
    driver.U = [[0.5]]  # before the first command, and shorter than a plan
    driver.command(np.zeros(4, np.float32)[::-2], False)
    assert seen[3] is not None
    assert seen[3].flatten().tolist() == [0.5] + [0.25] * 5
    driver.reset()
    assert torch.equal(driver.U, given)
    driver.change_horizon(8)
    assert torch.equal(driver.get_action_sequence()[6:], torch.full((2, 1), 0.25))
    assert driver.command([0.0, 0.0]).shape == (1,)
    driver.change_horizon(3)
    assert driver.command([0.0, 0.0]).shape == (1,)
    assert driver.T == len(driver.U) == 3
    without = controller(Recorder)
    without.command([0.0, 0.0])
    assert seen[-1] is None
    assert torch.equal(controller(Recorder).U, torch.zeros(6, 1))


def test_the_same_states_give_the_same_commands() -> None:
    driver = controller()
    states = [torch.tensor([0.1 * k, 0.0]) for k in range(3)]
    first = [driver.command(state) for state in states]
    driver.reset()
    assert all(torch.equal(a, driver.command(s)) for a, s in zip(first, states, strict=True))
    other = controller(seed=1)
    assert not torch.equal(first[0], other.command(states[0]))
    begin = driver.U.clone()
    plans = []
    for _ in range(2):  # from the same plan, with new noise
        driver.U = begin
        driver.command(states[0], False)
        plans.append(driver.U)
    assert not torch.equal(plans[0], plans[1])


def test_costs_that_have_no_gradient() -> None:
    def counted(state: Tensor, action: Tensor) -> Tensor:
        return torch.tensor([float(int(10 * abs(s - 1.0))) for s in state[:, 0].tolist()])

    for planner in (ICEMPlanner, CEMPlanner, MPPIPlanner):
        driver, state = controller(planner, running_cost=counted), torch.zeros(1, 2)
        for _ in range(8):
            state = slide(state, driver.command(state)[None])
        assert abs(float(state[0, 0]) - 1.0) < 0.2


def test_a_network_is_left_as_it_was() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.drop = nn.Linear(3, 2), nn.Dropout(0.5)

        def forward(self, state: Tensor, action: Tensor) -> Tensor:
            assert not self.training
            return state + self.drop(self.layer(torch.cat((state, action), 1)))

    network = Network()
    controller(dynamics=network, u_scale=2.0).command(torch.zeros(2))
    assert network.training
    assert network.layer.weight.requires_grad


def test_samples_and_deviations_are_the_planners() -> None:
    config = controller(CEMPlanner, num_samples=64, noise_sigma=torch.tensor(0.25)).planner.config
    assert (config.samples, config.initial_std, config.horizon) == (64, 0.5, 6)
    assert (config.action_low, config.action_high) == ((-1.0,), (1.0,))
    wide = Controller(
        slide,
        near,
        2,
        torch.diag(torch.tensor([4.0, 9.0], dtype=torch.float64)),
        u_min=torch.tensor([-1.0, -8.0]),
        u_max=torch.tensor([3.0, 4.0]),
        num_samples=8,
    )
    assert wide.planner.config.initial_std == pytest.approx((2 / 2 + 3 / 6) / 2)
    assert (wide.planner.config.elites, wide.U.dtype) == (2, torch.float64)
    free = controller(MPPIPlanner, u_max=None, noise_sigma=0.0001 * torch.eye(1)).planner.config
    assert free.action_low is None
    assert (free.std, free.last_std) == pytest.approx((0.01, 0.01))


def test_clear_errors() -> None:
    wrong: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"dynamics": 3}, TypeError, "dynamics must be callable, got int"),
        ({"terminal_state_cost": 3}, TypeError, "terminal_state_cost must be callable, got int"),
        ({"nx": 0}, ValueError, "nx must be at least 1, got 0"),
        ({"noise_sigma": 1.0}, TypeError, "noise_sigma must be a floating Tensor"),
        ({"noise_sigma": torch.zeros(2, 2)}, ValueError, "with a diagonal above 0"),
        ({"num_samples": 0}, ValueError, "num_samples must be at least 1, got 0"),
        ({"u_per_command": 7}, ValueError, "u_per_command must be from 1 to the horizon, 6"),
        ({"u_max": torch.ones(3)}, ValueError, r"u_m.. must be a number or \(1,\), got \(3,\)"),
        ({"U_init": torch.zeros(6, 2)}, ValueError, r"U_init must be \(T, nu\), nu = 1, got \(6"),
        ({"noise_mu": torch.zeros(1)}, TypeError, "noise_mu: no setting of ICEMConfig to be give"),
        ({"cost": near}, TypeError, "cost: no setting of ICEMConfig to be given here"),
        ({"noise_sigma": torch.ones(2, 2, 2)}, ValueError, r"noise_sigma must be \(nu, nu\), nu"),
        ({"noise_sigma": torch.ones(0, 0)}, ValueError, r"noise_sigma must be \(nu, nu\), nu"),
        ({"u_init": torch.zeros(3)}, ValueError, r"u_init must be \(1,\), got \(3,\)"),
        ({"U_init": "zero"}, TypeError, "U_init must be numbers, got 'zero'"),
        ({"u_max": "two"}, TypeError, "u_max must be numbers, got 'two'"),
        ({"u_min": 2.0}, ValueError, r"u_min must not be above u_max, got \[?2.0\]? and \[?1.0"),
        ({"u_scale": "2"}, TypeError, "u_scale must be a number, got str"),
        ({"planner": 3}, TypeError, "planner must be a class of Planner, got 3"),
    ]
    for given, error, words in wrong:
        made: dict[str, Any] = {"dynamics": slide, "running_cost": near, "nx": 2, "u_max": 1.0}
        made |= {"noise_sigma": torch.eye(1), "horizon": 6}
        with pytest.raises(error, match=words):
            Controller(**{**made, **given})
    with pytest.raises(ValueError, match=r"state must be \(nx,\) = \(2,\), got \(3, 2\)"):
        controller().command(torch.zeros(3, 2))
    with pytest.raises(TypeError, match="state must be numbers, got None"):
        controller().command(None)
    with pytest.raises(ValueError, match=r"U must be \(T, nu\), nu = 1, got \(6, 2\)"):
        controller().U = torch.zeros(6, 2)
    with pytest.raises(ValueError, match=r"running_cost must return \(\d+,\), got \(\d+, 2\)"):
        controller(running_cost=lambda s, a: s).command(torch.zeros(2))
    with pytest.raises(ValueError, match=r"terminal_state_cost must return \(\d+,\), got"):
        controller(terminal_state_cost=lambda s, a: s).command(torch.zeros(2))
