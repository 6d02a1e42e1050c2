"""Wall-Pixels: what the camera shows, what latents tell, and a training that survives a kill."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from grasp_planner import tasks
from grasp_planner.interruptible import CheckpointMismatchError, TrainingInterrupted
from grasp_planner.tasks.evaluation import open_loop
from grasp_planner.tasks.wall_pixels import WallPixelsTask
from grasp_planner.tasks.wall_pixels.frames import SIZE, render
from grasp_planner.tasks.wall_pixels.model import PixelModel
from grasp_planner.tasks.wall_pixels.vision import PixelRecipe
from grasp_planner.tasks.wall_single.environment import random_positions

from grasp_kernels import mlp_rollout

TINY = PixelRecipe(
    transitions=1_800,
    episode_steps=9,
    hidden=8,
    batch=16,
    stages=((1, 20), (2, 20)),
    latent_features=4,
    encoder_steps=50,
    encoder_batch=4,
    encoder_unroll=2,
    seed=3,
)


@pytest.fixture(scope="module")
def pixels() -> WallPixelsTask:
    return WallPixelsTask()


def places(count: int, seed: int = 0) -> torch.Tensor:
    generator = np.random.default_rng(seed)
    return torch.from_numpy(random_positions(generator, count, margin=0.0)).float()


# The camera ---------------------------------------------------------------------------------------


def test_the_dot_is_whole_and_where_the_agent_is() -> None:
    corners = torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]])
    positions = torch.cat((places(200), corners))
    positions = positions[positions[:, 0].abs() > 0.2]  # in front of the wall it hides a part of it
    frames = render(positions)
    assert frames.shape == (len(positions), SIZE, SIZE)
    assert frames.dtype == torch.uint8
    room = frames.min(dim=0).values  # nobody is everywhere
    dot = (frames - room).double()
    assert torch.allclose(dot.sum((1, 2)), dot.sum((1, 2)).mean().expand(len(dot)), rtol=0.02)
    centres = (torch.arange(SIZE).double() + 0.5) * 2.2 / SIZE - 1.1
    weight = dot.sum((1, 2))
    x = (dot.sum(1) @ centres) / weight
    y = (dot.sum(2) @ centres.flip(0)) / weight
    assert (torch.stack((x, y), dim=1) - positions).abs().max() < 0.002


def test_the_wall_has_a_door() -> None:
    room = render(torch.tensor([[0.9, -0.9], [-0.9, -0.9]])).min(dim=0).values
    rows = ((1.1 - torch.tensor([-0.5, 0.55, 0.9])) * SIZE / 2.2).long()
    assert (room[rows, SIZE // 2] > 100).tolist() == [True, False, True]
    assert int(room[rows, SIZE // 4].max()) == 0


def test_motion_below_a_pixel_shows() -> None:
    still = torch.tensor([[0.5, 0.5]])
    assert not torch.equal(render(still), render(still + 0.002))
    assert torch.equal(render(still), render(still.clone()))


def test_frames_do_not_depend_on_their_company() -> None:
    positions = places(50)
    together = render(positions)
    assert all(torch.equal(render(positions[b : b + 1])[0], together[b]) for b in range(50))


# Latents ------------------------------------------------------------------------------------------


def test_observing_is_seeing_and_encoding(pixels: WallPixelsTask) -> None:
    positions = places(30).reshape(5, 6, 2)
    latents = pixels.observe(positions)
    assert latents.shape == (5, 6, 32)
    frames = render(positions.flatten(0, 1)).unflatten(0, (5, 6))
    assert torch.allclose(pixels.encoder(frames), latents, atol=1e-5)
    assert not latents.requires_grad


def test_the_probe_finds_the_agent(pixels: WallPixelsTask) -> None:
    positions = places(2_000, seed=1)
    error = (pixels.positions(pixels.observe(positions)) - positions).norm(dim=-1)
    assert error.median() < 0.006
    assert error.quantile(0.99) < 0.025


def test_near_latents_are_near_places(pixels: WallPixelsTask) -> None:
    """Rank correlation of distances, between places of the same room."""
    positions = places(4_000, seed=2)
    positions = positions[positions[:, 0] > 0][:1_600]
    latents = pixels.observe(positions) / pixels.state_scale
    half = len(positions) // 2
    ranks = [
        (values[:half] - values[half : 2 * half]).norm(dim=-1).argsort().argsort()
        for values in (positions, latents)
    ]
    assert torch.corrcoef(torch.stack(ranks).double())[0, 1] > 0.95


def test_whole_plan_kernels_take_the_latent_dynamics(pixels: WallPixelsTask) -> None:
    problems = pixels.sample_problems(3, horizon=50, seed=0)
    actions = torch.rand(3, 50, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    dynamics = pixels.world_model.mlp_dynamics()
    expected = open_loop(pixels.world_model, problems.start, actions)
    assert torch.allclose(mlp_rollout(dynamics, problems.start, actions), expected, atol=1e-3)


def test_all_features_share_one_unit(pixels: WallPixelsTask) -> None:
    assert bool((pixels.state_scale == pixels.state_scale[0]).all())
    assert bool((pixels.goal_weight_features == 1).all())


def test_arrival_in_truth_is_of_true_positions(pixels: WallPixelsTask) -> None:
    problems = pixels.sample_problems(5, horizon=50, seed=0)
    off = torch.tensor([0.9, 1.1]) * pixels.success_radius
    for shift, expected in zip(off, (True, False), strict=True):
        last = problems.environment_goal + torch.tensor([0.6, -0.8]) * shift
        assert bool((pixels.environment_reached(last, problems) == expected).all())


def test_the_probe_is_least_squares() -> None:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(500, 4, generator=generator) * torch.tensor([1.0, 2.0, 0.5, 1.0]) + 3
    truth = torch.tensor([[0.3, -0.1, 0.2, 0.0], [0.0, 0.4, 0.1, -0.3]])
    model = PixelModel(4, 2, hidden=8, layers=1)
    model.fit_probe(latents, latents @ truth.T - 0.7)
    assert torch.allclose(model.probe.weight, truth, atol=1e-4)
    assert torch.allclose(model.probe.bias, torch.tensor(-0.7), atol=1e-4)


# Training -----------------------------------------------------------------------------------------


def weights(folder: Path, **options) -> dict[str, torch.Tensor]:
    return WallPixelsTask.train(TINY, folder, **options).state_dict()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    return weights(tmp_path_factory.mktemp("whole"))


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


class Killed(BaseException):
    """As rude as SIGKILL."""


@pytest.mark.parametrize("at", [25, 75])
def test_a_killed_run_ends_in_the_same_weights(tmp_path, uninterrupted, at) -> None:
    def die(phase: str, done: int, total: int, loss: float | None) -> None:
        if phase == "train" and done >= at:
            raise Killed

    with pytest.raises(Killed):
        weights(tmp_path, report=die)
    assert_same(weights(tmp_path), uninterrupted)


@pytest.mark.parametrize("at", [30, 70])
def test_a_stopped_run_goes_on_where_it_was(tmp_path, uninterrupted, at) -> None:
    asked = []

    def stop() -> bool:
        asked.append(None)
        return len(asked) > at

    with pytest.raises(TrainingInterrupted):
        weights(tmp_path, should_stop=stop)
    seen = []
    again = weights(tmp_path, report=lambda phase, done, *rest: seen.append((phase, done)))
    assert_same(again, uninterrupted)
    steps = [done for phase, done in seen if phase == "train"]
    assert steps == sorted(steps)
    assert steps[-1] == TINY.encoder_steps + TINY.steps


def test_another_recipe_is_refused_by_name(tmp_path) -> None:
    weights(tmp_path)
    other = PixelRecipe(**{**TINY.__dict__, "encoder_steps": 51})
    with pytest.raises(CheckpointMismatchError, match="encoder_steps was 50, now 51"):
        WallPixelsTask.train(other, tmp_path)


def test_fewer_steps_are_fewer_for_the_encoder_too() -> None:
    scaled = TINY.with_steps(20)
    assert (scaled.steps, scaled.encoder_steps) == (20, 25)


def test_the_shipped_task_is_listed() -> None:
    assert isinstance(tasks.load("wall-pixels"), WallPixelsTask)
