"""The counts of `costs`, against the formulas run number by number on things that count."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise, product
from typing import Any

import pytest
import torch

from grasp_kernels import MLPDynamics, costs
from grasp_kernels.mlp import MLPLayer


class Number:
    """A number that counts what is done with it."""

    def __init__(self, count: Counter[str]) -> None:
        self.count = count

    def _did(self, *_: Any) -> Number:
        self.count["operations"] += 1
        return self

    __add__ = __sub__ = __mul__ = __truediv__ = _did

    def sqrt(self) -> Number:
        return self._did()

    def clamp(self) -> Number:
        return self._did()


class Memory:
    """Arrays by name; every element is counted once when read and once when written."""

    def __init__(self) -> None:
        self.count: Counter[str] = Counter()
        self.read: set[tuple[Any, ...]] = set()
        self.written: set[tuple[Any, ...]] = set()

    def load(self, *place: Any) -> Number:
        self.read.add(place)
        return Number(self.count)

    def store(self, *place: Any) -> None:
        self.written.add(place)

    def bytes(self, places: set[tuple[Any, ...]], wide: int, widths: dict[str, int]) -> int:
        return sum(widths.get(place[0], wide) for place in places)


SMALL = dict.fromkeys(("loss", "w", "v", "coefficients", "cotangents", "m1", "m2", "lr"), 4) | {
    "ids": 8
}


def lifted_step_by_hand(
    n: int, t: int, d: int, *, noise: str, modes: int, w: bool, m: bool, free: bool
) -> Memory:
    memory = Memory()
    for plan, step, x in product(range(n), range(t), range(d)):
        for i in range(3):
            memory.load("coefficients", plan, i)
        memory.load("ids", plan)
        weight = memory.load("w", x) if w else None
        prediction = memory.load("prediction", plan, step, x)
        residual = prediction - memory.load("trajectory", plan, step + 1, x)
        error = prediction - memory.load("goal", plan, x)
        for value in (residual, error):
            square = value * value
            _ = (square * weight if w else square) + square  # into the sum
        cotangent = (error * weight_of_goal(memory) + residual) * Number(memory.count)
        _ = cotangent * weight if w else cotangent
        memory.store("cotangent", plan, step, x)
        memory.store("loss", plan, step, 0)
        memory.store("loss", plan, step, 1)
        if step == t - 1 and not free:
            continue
        gradient = residual * Number(memory.count)
        gradient = gradient * weight if w else gradient
        if m:
            gradient = gradient + memory.load("state_gradient", plan, step, x) * residual
        move = gradient * residual  # the step size
        if noise == "bridge":
            for _ in range(modes):
                memory.count["operations"] += 2
        _ = residual + move  # the state
        if noise != "none":
            _ = residual + residual * move
        memory.store("trajectory", plan, step + 1, x)
    return memory


def weight_of_goal(memory: Memory) -> Number:
    return Number(memory.count)


@pytest.mark.parametrize("noise", ["white", "bridge", "none"])
@pytest.mark.parametrize(("w", "m", "free"), [(False, False, False), (True, True, True)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lifted_step(noise: str, w: bool, m: bool, free: bool, dtype: torch.dtype) -> None:
    n, t, d, modes = 2, 3, 5, 4
    found = costs.lifted_step_(
        n,
        t,
        d,
        noise=noise,
        modes=modes,
        dtype=dtype,
        feature_weight=w,
        state_gradient=m,
        terminal="free" if free else "fixed",
    )
    memory = lifted_step_by_hand(n, t, d, noise=noise, modes=modes, w=w, m=m, free=free)
    assert found.operations == memory.count["operations"]
    assert found.bytes_read == memory.bytes(memory.read, dtype.itemsize, SMALL)
    assert found.bytes_written == memory.bytes(memory.written, dtype.itemsize, SMALL)
    rows = t if free else t - 1
    drawn = {"white": n * rows * 8, "bridge": n * modes * 8, "none": 0}[noise]  # D = 5: 8 normals
    assert found.noise == 111 * drawn // 2


def test_lifted_loss_and_its_backward() -> None:
    n, t, d = 2, 3, 5
    forward, backward = Memory(), Memory()
    for plan, step, x in product(range(n), range(t), range(d)):
        for memory in (forward, backward):
            prediction = memory.load("prediction", plan, step, x)
            residual = prediction - memory.load("trajectory", plan, step + 1, x)
            error = prediction - memory.load("goal", plan, x)
            if memory is forward:
                for i, value in enumerate((residual, error)):
                    _ = value + value * value
                    memory.store("loss", plan, step, i)
                continue
            for i in range(2):
                memory.load("cotangents", plan, step, i)
            _ = residual * Number(memory.count) + error * Number(memory.count)
            memory.store("prediction_gradient", plan, step, x)
            for row in range(t + 1):
                memory.store("trajectory_gradient", plan, row, x)
    for memory, found in (
        (forward, costs.lifted_loss(n, t, d)),
        (backward, costs.lifted_loss_backward(n, t, d)),
    ):
        assert found.operations == memory.count["operations"]
        assert found.bytes_read == memory.bytes(memory.read, 4, SMALL)
        assert found.bytes_written == memory.bytes(memory.written, 4, SMALL)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("bounds", [0, 2])
def test_action_step(optimizer: str, bounds: int) -> None:
    memory = Memory()
    one = Number(memory.count)
    for place in product(range(2), range(3), range(2)):
        action, gradient = memory.load("actions", *place), memory.load("gradient", *place)
        memory.load("lr", place[0])
        move = gradient
        if optimizer == "adam":
            first, second = memory.load("m1", *place), memory.load("m2", *place)
            first = first * one + gradient * one
            second = second * one + (gradient * gradient) * one
            move = (first / one) / ((second / one).sqrt() + one)
            memory.store("m1", *place)
            memory.store("m2", *place)
        action = action - one * move
        for _ in range(bounds):
            action = action.clamp()
        memory.store("actions", *place)
    found = costs.action_step_(2, 3, 2, optimizer=optimizer, bounds=bounds, dtype=torch.bfloat16)
    assert found.operations == memory.count["operations"]
    assert found.bytes_read == memory.bytes(memory.read, 2, SMALL)
    assert found.bytes_written == memory.bytes(memory.written, 2, SMALL)


@pytest.fixture
def dynamics() -> MLPDynamics:
    widths = [5, 7, 6, 3]
    layers = []
    for inputs, width in pairwise(widths):
        norm = (torch.ones(width), torch.zeros(width), 1e-5) if width == 7 else None
        layers.append(MLPLayer(torch.randn(width, inputs), torch.zeros(width), norm))
    return MLPDynamics(tuple(layers), action_features=2, residual=True)


def test_model_is_counted_as_it_is_packed(dynamics: MLPDynamics) -> None:
    weights, constants, structure = dynamics.packed()
    assert costs.mlp_weights(structure) == weights.numel() == 5 * 7 + 7 * 6 + 6 * 3
    rollout = costs.mlp_rollout(0, 4, structure, dtype=torch.float32)
    assert rollout.bytes_read == 4 * (weights.numel() + constants.numel())
    narrow = costs.mlp_rollout(0, 4, structure, dtype=torch.bfloat16)
    assert narrow.bytes_read == 2 * weights.numel() + 4 * constants.numel()


def test_mlp_products(dynamics: MLPDynamics) -> None:
    """Two operations per weight and row, counted by running every product."""
    structure, n, t, iterations = dynamics.structure, 2, 3, 4
    widths = [5, 7, 6, 3]

    def products(columns_of_first: int = 5) -> int:
        done = 0
        for layer, (inputs, width) in enumerate(pairwise(widths)):
            for _ in product(range(width), range(columns_of_first if layer == 0 else inputs)):
                done += 2
        return done

    rows = n * t
    assert costs.mlp_rollout(n, t, structure, dtype=torch.float32).operations == rows * products()
    backward = costs.mlp_rollout_backward(n, t, structure, dtype=torch.float32)
    assert backward.operations == rows * 2 * products()
    plan = costs.mlp_lifted_plan_(
        n, t, structure, iterations=iterations, noise="none", dtype=torch.float32
    )
    step = costs.lifted_step_(n, t, 3, noise="none").operations
    act = costs.action_step_(n, t, 2).operations
    model = rows * (products() + products(columns_of_first=2))
    assert plan.operations == iterations * (model + step + act)
    sync = costs.mlp_sync_(n, t, structure, steps=iterations, dtype=torch.float32)
    assert sync.operations == iterations * (rows * 2 * products() + act) + rows * products()


def test_mlp_variables_are_read_and_written_once(dynamics: MLPDynamics) -> None:
    structure, n, t, k = dynamics.structure, 2, 3, 4
    model = costs.mlp_rollout(0, 0, structure, dtype=torch.float32).bytes_read
    plan = costs.mlp_lifted_plan_(n, t, structure, iterations=k, dtype=torch.float32)
    trajectory, actions = torch.zeros(n, t + 1, 3), torch.zeros(n, t, 2)
    variables = 4 * (trajectory.numel() + 3 * actions.numel())  # Adam's two moments
    assert plan.bytes_read == variables + model + 4 * (n * 3 + 2 * k)
    assert plan.bytes_written == variables + 4 * k * n


def test_jacobians_are_a_way_forward_and_one_back_for_every_output(dynamics: MLPDynamics) -> None:
    structure, rows = dynamics.structure, 2 * 4
    found = costs.mlp_jacobians(2, 4, structure, dtype=torch.float32)
    forward, hidden = 5 * 7 + 7 * 6 + 6 * 3, 5 * 7 + 7 * 6
    assert found.operations == 2 * rows * (forward + 3 * hidden)
    model = costs.mlp_rollout(0, 0, structure, dtype=torch.float32).bytes_read
    assert found.bytes_read == model + 4 * rows * (3 + 2)
    assert found.bytes_written == 4 * rows * (3 + 3 * 3 + 3 * 2)


def newton_step_by_hand(n: int, t: int, d: int, a: int, hold: int, solves: int) -> Memory:
    memory = Memory()
    one, x = Number(memory.count), range(d)
    for plan in range(n):
        memory.load("damping", plan)
        for step in reversed(range(t)):
            for i in x:
                defect = memory.load("prediction", plan, step, i) - memory.load(
                    "trajectory", plan, step + 1, i
                )
                _ = one + defect * defect
                memory.load("goal", plan, i)
            for _, k in product(x, x):  # rows of L, and along them
                _ = one + one * one
                for j in x:
                    _ = one + one * memory.load("state_jacobian", plan, step, k, j)
                for j in range(a):
                    _ = one + one * memory.load("action_jacobian", plan, step, k, j)
        entries = math.ceil(t / hold) * a
        for _ in range(solves):
            for i in x:
                for _ in product(range(entries), range(i + 1)):
                    _ = one + one * one
            memory.count["operations"] += d**3 // 3 + 2 * d * d  # a factor, and two substitutions
            for _ in product(x, range(entries)):
                _ = one - one * one
        for _ in range(entries):
            moved = one + one.clamp()
            for _ in range(3):
                moved = moved.clamp()
        for step in range(t):
            for i in range(a):
                _ = (one - memory.load("actions", plan, step, i)).clamp()
                memory.store("actions", plan, step, i)
            for i in x:
                change = one
                for _ in range(d + a):
                    change = change + one * one
                change = (change + one).clamp().clamp()
                _ = memory.load("trajectory", plan, step, i) + change
                memory.store("trajectory", plan, step + 1, i)
        for name in ("goal_error", "defect", "step"):
            memory.store(name, plan)
    for name, i in product(("low", "high"), range(a)):
        memory.load(name, i)
    return memory


@pytest.mark.parametrize(("hold", "solves"), [(1, 1), (3, 2)])
def test_lifted_newton_step(hold: int, solves: int) -> None:
    memory = newton_step_by_hand(2, 4, 3, 2, hold, solves)
    found = costs.lifted_newton_step_(2, 4, 3, 2, hold=hold, solves=solves)
    assert found.operations == memory.count["operations"]
    assert found.bytes_read == memory.bytes(memory.read, 4, {})
    assert found.bytes_written == memory.bytes(memory.written, 4, {})


def test_costs_add_up() -> None:
    one, other = costs.Cost(1, 2, 3, 4), costs.Cost(10, 20, 30, 40)
    assert one + other == costs.Cost(11, 22, 33, 44)
    assert (one + other).bytes == 33
    assert costs.gaussian_noise(2, 3, 5).bytes_written == 2 * 3 * 5 * 4
    assert costs.gaussian_noise(2, 0, 5, noise="bridge").noise == 0
    assert math.isclose(costs.gaussian_noise(1, 1, 4).noise, 222)
