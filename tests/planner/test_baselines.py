"""The planners to beat: each does what its paper says, on problems whose answer is known."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import planner_cases as cases
import pytest
import torch
from grasp_planner import (
    CEMConfig,
    GradientConfig,
    ICEMConfig,
    LatCoConfig,
    LiftedNewtonConfig,
    MPPIConfig,
    Plan,
    tasks,
)
from grasp_planner.baselines.cem import fit
from grasp_planner.baselines.icem import coloured, colouring
from grasp_planner.baselines.mppi import softmin
from grasp_planner.blocks import average_blocks, first_of_blocks, hold_actions, sum_blocks
from grasp_planner.inputs import check_problem
from grasp_planner.population import fresh_actions, pick, smallest
from grasp_planner.presets import PLANNERS, make_planner, planner_config
from grasp_planner.search import Search
from torch import Tensor


def integrator(state: Tensor, action: Tensor) -> Tensor:
    """Where one is, moved by where one wants to: the cost is a quadratic of the actions."""
    return state + 0.2 * action


START = torch.tensor([[0.0, 0.0], [0.5, -0.5]])
GOAL = torch.tensor([[0.7, -0.4], [-0.3, 0.1]])  # in reach of 7 steps of 0.2


def integrate(kind: str, **changes: Any) -> Plan:
    return cases.planner(kind, integrator, **changes).plan(START, GOAL)


# ------------------------------------------------------------------------------------- all converge


@pytest.mark.parametrize(
    ("kind", "changes", "enough"),
    [
        ("cem", {"samples": 64, "iterations": 20, "elites": 8, "min_std": 0.0}, 1e-5),
        ("icem", {"samples": 64, "least_samples": 32, "iterations": 20, "elites": 8}, 1e-4),
        ("mppi", {"samples": 64, "iterations": 20, "last_std": 0.01}, 1e-4),
        ("gradient", {"iterations": 120, "last_lr": 1e-3}, 1e-4),
        ("gradient", {"iterations": 60, "optimizer": "sgd", "lr": 0.5, "last_lr": 0.5}, 1e-6),
        ("latco", {"iterations": 200, "multiplier_every": 5}, 1e-3),
        ("latco", {"iterations": 200, "multiplier_every": 5, "initialization": "linear"}, 1e-3),
        ("lifted-newton", {"rounds": 1}, 1e-9),
    ],
)
def test_on_a_quadratic_it_arrives(kind: str, changes: dict[str, Any], enough: float) -> None:
    plan = integrate(kind, **changes)
    assert (plan.cost < enough).all()
    assert (plan.cost < plan.loss_history[0, :, 0]).all() or len(plan.loss_history) == 1


@pytest.mark.parametrize("kind", ["cem", "icem", "mppi", "gradient", "latco"])
def test_the_best_so_far_never_gets_worse(kind: str) -> None:
    history = cases.planner(kind, cases.arithmetic).plan(*cases.problems(8)).loss_history[..., 0]
    assert (history[1:] <= history[:-1]).all()
    assert (history[-1] < history[0]).any()


# ------------------------------------------------------------------------------------- CEM and iCEM


def test_a_normal_distribution_is_fitted_to_the_best() -> None:
    blocks = torch.randn(2, 6, 3, 2, dtype=torch.float64)
    cost = torch.tensor([[5.0, 1.0, 4.0, 2.0, 3.0, 9.0]]).repeat(2, 1)
    old = torch.full((2, 3, 2), 7.0, dtype=torch.float64)
    mean, std = fit(blocks, cost, 3, old, old)
    best = blocks[:, [1, 3, 4]]
    torch.testing.assert_close(mean, best.mean(1))
    torch.testing.assert_close(std, best.std(1, correction=0))


def test_what_is_not_finite_is_no_elite() -> None:
    blocks = torch.randn(3, 4, 2, 1, dtype=torch.float64)
    blocks[1, 2] = torch.nan
    inf = torch.inf
    cost = torch.tensor([[1.0, inf, 2.0, inf], [1.0, 2.0, inf, inf], [inf, inf, inf, inf]])
    old = torch.full((3, 2, 1), 7.0, dtype=torch.float64)
    mean, std = fit(blocks, cost, 3, old, old + 1)
    torch.testing.assert_close(mean[0], blocks[0, [0, 2]].mean(0))
    torch.testing.assert_close(mean[1], blocks[1, [0, 1]].mean(0))
    torch.testing.assert_close(std[1], blocks[1, [0, 1]].std(0, correction=0))
    assert torch.equal(mean[2], old[2])  # nothing to learn from
    assert torch.equal(std[2], old[2] + 1)


@pytest.mark.parametrize("steps", [1, 2, 7, 50])
@pytest.mark.parametrize("beta", [0.0, 1.0, 2.5])
def test_coloured_noise_has_variance_1_at_every_step(steps: int, beta: float) -> None:
    shape = colouring(steps, beta)
    assert shape.shape == (steps, steps)
    covariance = shape @ shape.T
    torch.testing.assert_close(covariance.diagonal(), torch.ones(steps, dtype=torch.float64))
    if beta == 0.0 and steps % 2:  # all frequencies alike; white
        torch.testing.assert_close(
            covariance, torch.eye(steps, dtype=torch.float64), rtol=0, atol=1.0 / steps
        )
    if steps == 50:
        neighbours = covariance.diagonal(1).mean()
        assert neighbours > {0.0: -0.05, 1.0: 0.5, 2.5: 0.95}[beta]
        assert neighbours < {0.0: 0.05, 1.0: 0.9, 2.5: 1.0}[beta]


@pytest.mark.parametrize("beta", [0.0, 1.0, 2.0, 3.0])
def test_coloured_noise_has_a_power_law(beta: float) -> None:
    """The slope of log power over log frequency is -beta, measured on noise."""
    steps = 64
    white = torch.randn(1, 4000, steps, 1, dtype=torch.float64)
    noise = coloured(white, colouring(steps, beta))[0, :, :, 0]
    torch.testing.assert_close(noise, white[0, :, :, 0] @ colouring(steps, beta).T)
    power = torch.fft.rfft(noise).abs().square().mean(0)[1 : steps // 2]
    frequency = torch.arange(1, steps // 2, dtype=torch.float64)
    x, y = frequency.log(), power.log()
    slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
    assert float(slope) == pytest.approx(-beta, abs=0.08)
    assert float(noise.var()) == pytest.approx(1.0, abs=0.05)


def test_populations_shrink_to_the_least() -> None:
    settings = ICEMConfig(samples=100, least_samples=40, decay=1.25, elites=10)
    sizes = [settings.samples_of(k) for k in range(1, 8)]
    assert sizes == [100, 80, 64, 51, 40, 40, 40]
    rows: list[int] = []

    def model(state: Tensor, action: Tensor) -> Tensor:
        rows.append(len(state))
        return integrator(state, action)

    planner = cases.planner(
        "icem", model, samples=20, least_samples=8, decay=2.0, elites=4, kept=0.5, horizon=1
    )
    planner.plan(START[:1], GOAL[:1])
    assert rows == [20 + 1, 10 + 2, 8 + 2, 8 + 2]  # the mean, then the elites that are kept


def test_more_elites_than_samples_and_the_like_are_refused() -> None:
    with pytest.raises(ValueError, match="elites must be at most samples, got 31 of 30"):
        CEMConfig(samples=30, elites=31)
    with pytest.raises(ValueError, match="elites, least_samples and samples"):
        ICEMConfig(least_samples=20, elites=21)
    with pytest.raises(ValueError, match="elites, least_samples and samples"):
        ICEMConfig(samples=50, least_samples=60)
    with pytest.raises(ValueError, match="candidates must be at most samples and resamples"):
        LiftedNewtonConfig(candidates=9, resamples=8)
    with pytest.raises(ValueError, match="elite_share and crossover_share"):
        LiftedNewtonConfig(elite_share=0.6, crossover_share=0.5)


# --------------------------------------------------------------------------------------------- MPPI


def test_weights_are_a_softmax_in_units_of_the_spread() -> None:
    cost = torch.tensor([[1.0, 3.0, 2.0, 6.0]], dtype=torch.float64)
    expected = torch.softmax(-cost / (0.5 * cost.std(1, correction=0)), 1)
    torch.testing.assert_close(softmin(cost, 0.5), expected)
    # So neither units nor a constant change anything.
    torch.testing.assert_close(softmin(1e6 * cost + 3e5, 0.5), expected)
    assert float(softmin(cost, 1e-3)[0, 0]) == pytest.approx(1.0)


def test_weights_of_what_is_not_finite() -> None:
    inf = torch.inf
    cost = torch.tensor([[2.0, inf, 1.0], [inf, inf, inf], [4.0, 4.0, inf]])
    weight = softmin(cost, 1.0)
    torch.testing.assert_close(weight[0, [0, 2]][None], softmin(cost[:1, [0, 2]], 1.0))
    assert weight[1].tolist() == [0.0, 0.0, 0.0]
    assert weight[2].tolist() == [0.5, 0.5, 0.0]


@pytest.mark.parametrize(
    ("of", "first", "last"),
    [
        (MPPIConfig(iterations=5, std=0.8, last_std=0.05).std_of, 0.8, 0.05),
        (GradientConfig(iterations=5, lr=0.2, last_lr=0.002).lr_of, 0.2, 0.002),
        (LatCoConfig(iterations=5, last_lr=0.02).lr_of, 1.0, 0.02),
    ],
)
def test_steps_fall_geometrically(of: Any, first: float, last: float) -> None:
    values = [of(k) for k in range(1, 6)]
    assert values[0] == pytest.approx(first)
    assert values[-1] == pytest.approx(last)
    ratios = [b / a for a, b in pairwise(values)]
    assert ratios == pytest.approx([ratios[0]] * 4)
    assert MPPIConfig(iterations=1).std_of(1) == MPPIConfig().std


# ------------------------------------------------------------------------------ gradients and LatCo


def hills(state: Tensor, action: Tensor) -> Tensor:
    """A place and its height, in which a descent from 0 ends in the nearest valley."""
    place = state[:, :1] + 0.5 * action
    return torch.cat([place, 1.0 + torch.cos(3.0 * place) + 0.3 * (place - 2.5).abs()], -1)


def test_several_starts_find_what_one_does_not() -> None:
    start, goal = torch.tensor([[0.0, 2.75]]), torch.tensor([[0.0, 0.0]])
    settings = {
        "horizon": 8,
        "hold": 4,
        "action_features": 1,
        "goal_feature_weight": (0.0, 1.0),
        "iterations": 60,
    }
    warm = torch.full((1, 8, 1), -0.1)
    cost = {
        restarts: float(
            cases.planner("gradient", hills, restarts=restarts, **settings)
            .plan(start, goal, actions=warm)
            .cost
        )
        for restarts in (1, 8)
    }
    assert cost[1] > 0.5
    assert cost[8] < 0.2 * cost[1]


def test_collocation_ends_dynamically_consistent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans begin free, in straight lines, and the multipliers close their defects."""
    from grasp_planner.baselines.latco import _LatCo

    defects: list[Tensor] = []
    inner = _LatCo.gradients

    def watched(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
        found = inner(*args)
        defects.append(found[0].sum(1))
        return found

    monkeypatch.setattr(_LatCo, "gradients", watched)
    start = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.3, -0.2, 0.1, 0.0]])
    goal = cases.roll_out(cases.arithmetic, start, 0.5 * torch.ones(2, 7, 2))[:, -1]
    settings = {"iterations": 300, "multiplier_every": 5, "initialization": "linear"}
    plan = cases.planner("latco", cases.arithmetic, **settings).plan(start, goal)
    assert (defects[0] > 1e-2).all()
    assert (defects[-1] < 1e-3).all()
    assert (defects[-1] < 0.05 * defects[0]).all()
    assert (plan.cost < 1e-2).all()
    assert (plan.cost < 0.02 * (start - goal).square().sum(1)).all()


# ---------------------------------------------------------------------------- samples, held actions


def a_search(**changes: Any) -> Search:
    planner = cases.planner("cem", cases.arithmetic, **changes)
    start, goal = cases.problems(3)
    problem = check_problem(cases.arithmetic, planner.config, start, goal, None, None)
    return Search(planner, problem)


def test_fresh_actions_are_smooth_and_reach_the_bounds() -> None:
    actions = fresh_actions(a_search(horizon=40, hold=1, samples=200), 200, 0)
    assert actions.shape == (3, 200, 40, 2)
    assert 0.05 < (actions.abs() == 1).float().mean() < 0.5
    assert actions.abs().max() == 1
    step = (actions[:, :, 1:] - actions[:, :, :-1]).abs().mean()
    apart = (actions[:, 1:, 1:] - actions[:, :-1, 1:]).abs().mean()
    assert step < 0.8 * apart  # of one sample, and between samples
    assert actions.mean().abs() < 0.05


def test_choosing_among_samples() -> None:
    cost = torch.tensor([[3.0, 1.0, 1.0, torch.inf], [torch.inf, 0.0, 5.0, 2.0]])
    assert smallest(cost, 3).tolist() == [[1, 2, 0], [1, 3, 2]]
    values = torch.arange(8.0).view(2, 4)
    coins = torch.tensor([[1e-9, 0.26, 0.9999999], [0.5, 0.7, 1.0]])
    assert pick(values, coins).tolist() == [[0.0, 1.0, 3.0], [6.0, 6.0, 7.0]]


@pytest.mark.parametrize("hold", [1, 2, 3, 7, 9])
def test_blocks(hold: int) -> None:
    """One action per block and one per step, sums and means; the last block may be shorter."""
    actions = torch.randn(3, 7, 2, dtype=torch.float64)
    parts = actions.split(hold, 1)
    sums = torch.stack([part.sum(1) for part in parts], 1)
    torch.testing.assert_close(sum_blocks(actions, hold), sums)
    means = torch.cat([part.mean(1, keepdim=True).expand_as(part) for part in parts], 1)
    average = average_blocks(actions, hold)
    torch.testing.assert_close(average, means)
    assert torch.equal(average_blocks(average, hold), average)  # to the bit
    blocks = first_of_blocks(average, hold)
    assert blocks.shape[1] == len(parts)
    assert torch.equal(hold_actions(blocks, hold, 7), average)


# ----------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize("name", PLANNERS)
def test_presets_plan_in_a_task(name: str) -> None:
    task = tasks.load("wall-single")
    problems = task.sample_problems(2, horizon=20, seed=0)
    small: dict[str, dict[str, Any]] = {
        "lifted-newton": {
            "rounds": 1,
            "samples": 16,
            "resamples": 8,
            "candidates": 2,
            "refine_steps": 2,
        },
        "cem": {"samples": 8, "iterations": 2, "elites": 2},
        "icem": {"samples": 8, "least_samples": 4, "iterations": 2, "elites": 2},
        "mppi": {"samples": 8, "iterations": 2},
        "gradient": {"restarts": 2, "iterations": 2},
        "latco": {"restarts": 2, "iterations": 2},
        "grasp": {"iterations": 3, "final_sync_steps": 2},
        "grasp-paper": {"iterations": 3, "sync_steps": 2},
    }
    planner = make_planner(name, task, horizon=20, seed=4, **small[name])
    settings = planner.config
    assert (settings.horizon, settings.seed) == (20, 4)
    assert settings.state_scale == tuple(task.state_scale.tolist())
    assert settings.action_low == tuple(task.action_low.tolist())
    assert settings.action_high == tuple(task.action_high.tolist())
    plan = planner.plan(problems.start, problems.goal)
    assert plan.actions.shape == (2, 20, len(settings.action_low))
    assert plan.finite.all()
    default = planner_config(name, task, horizon=20)
    assert type(default) is PLANNERS[name][0].config_type


def test_a_name_that_no_planner_has() -> None:
    task = tasks.load("wall-single")
    with pytest.raises(ValueError, match="unknown planner 'best'; there are: lifted-newton, cem"):
        make_planner("best", task, horizon=5)
    with pytest.raises(TypeError, match="restarts"):
        make_planner("cem", task, horizon=5, restarts=3)
