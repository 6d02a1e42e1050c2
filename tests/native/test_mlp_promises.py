"""The MLP ops on CPU: bits by coordinates alone, broken plans, and every instruction set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from kernels import mlp_cases as cases

from grasp_kernels import MLPDynamics, mlp_lifted_plan_, mlp_rollout, mlp_sync_, native

from . import test_activations
from .conftest import same_bits
from .mlp_results import (
    ACTIONS,
    FEATURES,
    LIFTED,
    NARROW,
    PLANS,
    ROLLOUT,
    STEPS,
    SYNC,
    WIDTHS,
    assert_near,
    both,
    lifted_results,
    rollout_results,
    sync_results,
)
from .test_build import python

# ------------------------------------------------------------------------------------------- bits


def everything(
    dynamics: MLPDynamics, tensors: Any, plan_ids: torch.Tensor, noise: str = "white"
) -> list[torch.Tensor]:
    """What every public call returns or writes; rows are plans."""
    trajectory, actions, goal = (tensor.clone() for tensor in tensors)
    plans, horizon, width = actions.shape
    start = trajectory[:, 0].clone()
    leaves = start.clone().requires_grad_(), actions.clone().requires_grad_()
    states = mlp_rollout(dynamics, *leaves)
    gradients = torch.autograd.grad(states, leaves, trajectory)
    state: dict[str, Any] = {}
    sounds = [torch.ones(plans, dtype=torch.bool) for _ in range(2)]
    history = mlp_lifted_plan_(
        dynamics,
        trajectory,
        actions,
        goal,
        state,
        schedule=cases.schedule(4),
        first_iteration=2,
        state_lr=0.2,
        action_lr=0.1,
        seed=cases.SEED,
        plan_ids=plan_ids,
        noise=noise,
        modes=3,
        sound=sounds[0],
    )
    lifted = [trajectory.clone(), actions.clone()]
    best = cases.bests(plans, horizon, goal.shape[1], width, torch.float32)
    mlp_sync_(
        dynamics, trajectory, actions, *best, start, goal, steps=3, lr=0.1, blend=0.5,
        sound=sounds[1],
    )  # fmt: skip
    memory = [state["first_moment"], state["second_moment"]]
    flags = [flag.float() for flag in sounds]
    return [
        states.detach(), *gradients, history.T, *lifted, *memory, trajectory, actions, *best, *flags
    ]  # fmt: skip


BATCHES = [
    (5, FEATURES, (33, 20), torch.float32, "white"),
    (5, 3, (8,), torch.float32, "bridge"),
    (1, 1, (1,), torch.float32, "white"),
    (13, 67, (17,), NARROW, "white"),
    (60, 4, (20,), torch.float32, "bridge"),
    (60, 4, (20,), NARROW, "none"),
    # Alone, a sync keeps the slopes of its rollout; the batch's are too many and are made again.
    (900, 4, (20,), torch.float32, "none"),
]


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize(("steps", "features", "widths", "dtype", "noise"), BATCHES)
def test_a_plan_alone_has_the_bits_of_the_batch(
    steps: int,
    features: int,
    widths: tuple[int, ...],
    dtype: torch.dtype,
    noise: str,
    norm: bool,
) -> None:
    """Whatever shares a tile, a block of rows or a thread with it; the ids name the noise."""
    dynamics = cases.model(features, ACTIONS, widths, norm=norm, dtype=dtype)
    plans = 60
    tensors = cases.plan_tensors(plans, steps, features, ACTIONS)
    plan_ids = cases.ids(plans)
    torch.set_num_threads(1)
    whole = everything(dynamics, tensors, plan_ids, noise)
    torch.set_num_threads(2)
    assert all(map(same_bits, everything(dynamics, tensors, plan_ids, noise), whole))
    for rows in ([0], [29], [59], list(range(3)), list(range(11, 40)), [59, 7, 31]):
        part = everything(dynamics, [t[rows] for t in tensors], plan_ids[rows], noise)
        assert all(same_bits(one, all_of[rows]) for one, all_of in zip(part, whole, strict=True))
    if noise != "none" and steps > 1:
        other = everything(dynamics, tensors, plan_ids + 1, noise)
        assert not same_bits(other[4], whole[4])


@pytest.mark.parametrize("threads", [2, 3, 8])
@pytest.mark.parametrize("plans", [1, 2, 7, 57, 200])
def test_threads_do_not_change_bits(plans: int, threads: int) -> None:
    dynamics = cases.model(FEATURES, ACTIONS, WIDTHS, norm=True)
    tensors = cases.plan_tensors(plans, STEPS, FEATURES, ACTIONS)
    torch.set_num_threads(1)
    alone = everything(dynamics, tensors, cases.ids(plans))
    torch.set_num_threads(threads)
    assert all(map(same_bits, everything(dynamics, tensors, cases.ids(plans)), alone))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("steps", "features", "widths"), [(5, 3, (8,)), (5, 12, (33, 20)), (60, 4, (3,)), (2, 67, ())]
)
@pytest.mark.parametrize("activation", ["mish", "simnorm", "relu"])
def test_a_broken_plan_is_alone(
    activation: str, steps: int, features: int, widths: tuple[int, ...], bad: float
) -> None:
    """In the start of one plan among 30, of several tiles: slim matrices and padded lanes too."""
    for norm in (False, True):
        dynamics = cases.model(features, ACTIONS, widths, activation=activation, norm=norm)
        tensors = cases.plan_tensors(30, steps, features, ACTIONS)
        clean = everything(dynamics, tensors, cases.ids(30))
        assert all(result.isfinite().all() for result in clean[:-2])
        spoiled = [tensor.clone() for tensor in tensors]
        spoiled[0][13, 0] = bad
        results = everything(dynamics, spoiled, cases.ids(30))
        others = torch.arange(30) != 13
        for one, other in zip(results, clean, strict=True):
            assert same_bits(one[others], other[others])
        sync_sound = results[-1]
        assert not sync_sound[13]
        assert sync_sound[others].all()
        best_cost = results[-5]
        assert best_cost[13] == torch.inf


# --------------------------------------------------------------------------------- what is refused


def test_a_packed_model_that_does_not_fit_is_refused() -> None:
    """Memory safety: whatever the structure says, nothing outside of the tensors is read."""
    weights, constants, structure = cases.model(FEATURES, ACTIONS, (8,), norm=True).packed()
    start, actions = torch.zeros(2, FEATURES), torch.zeros(2, 3, ACTIONS)

    def changed(place: int, value: int) -> list[int]:
        return [*structure[:place], value, *structure[place + 1 :]]

    for packed in (
        (weights[:-1], constants, structure),
        (torch.cat((weights, weights[:1])), constants, structure),
        (weights, constants[:-1], structure),
        (weights, torch.cat((constants, constants[:1])), structure),
        (weights.double(), constants, structure),
        (weights, constants.double(), structure),
        (weights.repeat_interleave(2)[::2], constants, structure),
        (weights, constants, structure[:-1]),
        (weights, constants, []),
        (weights, constants, changed(3, 3)),
        (weights, constants, changed(3, 17)),
        (weights, constants, changed(4, 9)),
        (weights, constants, changed(4, -8)),
        (weights, constants, changed(5, 8)),
        (weights, constants, changed(5, -1)),
        (weights, constants, changed(6, 0)),
        (weights, constants, changed(0, FEATURES + 1)),
        (weights, constants, changed(1, ACTIONS + 1)),
        (weights, constants, changed(5, 7)),
    ):
        with pytest.raises(RuntimeError):
            native.mlp_rollout(start, actions, *packed)


# ------------------------------------------------------------------------------- instruction sets


def answers() -> dict[str, Any]:
    """Some of everything above: values, a batch and plans alone, and the activations."""
    values = {}
    for index, activation in enumerate(cases.ACTIVATIONS):
        dynamics, arguments = answer_problem(index)
        packed = dynamics.packed()
        values[activation] = [
            rollout_results(native, packed, arguments),
            lifted_results(native, packed, arguments, noise="bridge"),
            sync_results(native, packed, arguments),
        ]
    dynamics = cases.model(FEATURES, ACTIONS, WIDTHS, norm=True)
    tensors, plan_ids = cases.plan_tensors(40, STEPS, FEATURES, ACTIONS), cases.ids(40)
    batch = everything(dynamics, tensors, plan_ids)
    alone = everything(dynamics, [t[17:18] for t in tensors], plan_ids[17:18])
    x = test_activations.grid()
    activations = {name: test_activations.evaluate(name, x) for name in sorted(cases.MODULES)}
    return {"values": values, "batch": batch, "alone": alone, "activations": activations}


def answer_problem(index: int) -> tuple[MLPDynamics, Any]:
    activation, features = cases.ACTIVATIONS[index], (1, 3, 12, 64)[index % 4]
    dynamics = cases.model(features, ACTIONS, WIDTHS, activation=activation, norm=index % 2 == 1)
    return dynamics, cases.plan_tensors(PLANS, STEPS, features, ACTIONS)


ANSWER = """
import sys, torch
sys.path.insert(0, "tests")
from grasp_kernels import native
from native.test_mlp_promises import answers
torch.save((native.simd(), answers()), sys.argv[1])
"""


@pytest.mark.parametrize("simd", ["avx512", "avx2", "baseline"])
def test_every_instruction_set(simd: str, tmp_path: Path) -> None:
    """Each keeps the promises by itself: against the reference, and to the bit alone."""
    done = python(ANSWER, str(tmp_path / "forced"), GRASP_KERNELS_SIMD=simd)
    if "is not available here" in done.stderr:
        pytest.skip(f"this machine has no {simd}")
    assert done.returncode == 0, done.stderr
    used, forced = torch.load(tmp_path / "forced")
    assert used == simd
    for index, activation in enumerate(cases.ACTIVATIONS):
        dynamics, arguments = answer_problem(index)
        for names, results, found, options in zip(
            (ROLLOUT, LIFTED, SYNC),
            (rollout_results, lifted_results, sync_results),
            forced["values"][activation],
            ({}, {"noise": "bridge"}, {}),
            strict=True,
        ):
            truth, plain = both(results, dynamics, arguments, **options)[1:]
            assert_near(names, found, truth, plain)
    for one, whole in zip(forced["alone"], forced["batch"], strict=True):
        assert same_bits(one, whole[17:18])
    for name, (value, slope) in forced["activations"].items():
        test_activations.assert_accurate(name, test_activations.grid(), value, slope)
