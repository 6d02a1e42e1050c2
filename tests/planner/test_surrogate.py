"""The learned surrogate of the state gradient: what it can be by construction, and its fit."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from grasp_planner.interruptible import Checkpoint, CheckpointMismatchError, TrainingInterrupted
from grasp_planner.surrogate import Surrogate, SurrogateRecipe, exact_gradient, fit
from grasp_planner.surrogate_errors import measure
from torch import Tensor, nn

STATE, ACTION = 5, 2
QUICK = SurrogateRecipe(steps=60, batch=32, units=16, hidden=16, seed=3)


class Killed(BaseException):
    """As rude as SIGKILL: nothing in the training may catch it."""


class Linear(nn.Module):
    """`F(s, a) = s M^T + a B^T`, far from the identity, in features of very different units."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        units = torch.tensor([1.0, 0.01, 30.0, 2.0, 0.5])
        mixed = torch.randn(STATE, STATE, generator=generator)
        self.matrix = nn.Parameter(units[:, None] * mixed / units)
        self.control = nn.Parameter(torch.randn(STATE, ACTION, generator=generator))
        self.units = units

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        return state @ self.matrix.T + action @ self.control.T


def wave(state: Tensor, action: Tensor) -> Tensor:
    """A world model whose state gradient changes from place to place."""
    return state + 0.5 * (state.roll(1, -1) + action[..., :1]).sin()


def data(rows: int = 2_000) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    states = torch.randn(rows, STATE, generator=generator)
    return states, torch.rand(rows, ACTION, generator=generator) * 2 - 1


def trained(steps: int = 300, **changes: object) -> Surrogate:
    return fit(wave, *data(), recipe=replace(QUICK, steps=steps, **changes))


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_a_linear_model_is_matched_in_its_own_units() -> None:
    model = Linear()
    states, actions = data()
    states = states * model.units
    recipe = SurrogateRecipe(steps=1_200, batch=64, units=16, hidden=16, learning_rate=1e-2)
    surrogate = fit(model, states, actions, recipe=recipe)
    cotangent = torch.randn(200, STATE) / model.units
    answer = surrogate(states[:200], actions[:200], cotangent)
    wanted = cotangent @ model.matrix
    error = ((answer - wanted) * model.units).norm() / (wanted * model.units).norm()
    assert error < 0.01
    # Also far away, where a linear model is the same.
    assert torch.allclose(surrogate(50 * states[:200], actions[:200], cotangent) * model.units,
                          wanted * model.units, atol=0.1)  # fmt: skip


def test_it_is_linear_in_the_cotangent_and_zero_gives_zero() -> None:
    surrogate = trained()
    (states, actions), (one, other) = data(40), torch.randn(2, 40, STATE)
    answers = [surrogate(states, actions, c) for c in (one, other, 3 * one - 2 * other)]
    torch.testing.assert_close(answers[2], 3 * answers[0] - 2 * answers[1], rtol=1e-5, atol=1e-5)
    tiny, huge = (surrogate(states, actions, factor * one) for factor in (1e-20, 1e20))
    torch.testing.assert_close(tiny * 1e20, huge * 1e-20)
    assert not surrogate(states, actions, torch.zeros_like(one)).any()


def test_untrained_it_is_the_identity() -> None:
    cotangent = torch.randn(4, STATE)
    surrogate = Surrogate(STATE, ACTION)
    assert torch.equal(
        surrogate(torch.randn(4, STATE), torch.randn(4, ACTION), cotangent), cotangent
    )


def test_it_follows_the_exact_gradient_on_data_and_is_tame_elsewhere() -> None:
    recipe = replace(QUICK, steps=1_200, batch=128, units=64, hidden=64)
    near, *_, far = measure(fit(wave, *data(), recipe=recipe), wave, *data(500))
    assert near["error"] < 0.15 < near["identity"]
    assert near["cosine"] > 0.98
    assert near["from_data"] == near["error"]
    assert near["exact_from_data"] == 0
    assert far["from_data"] < far["exact_from_data"]
    assert far["gain"] < 2


def test_far_states_answer_as_the_border_of_the_data() -> None:
    surrogate, (states, actions) = trained(), data(40)
    cotangent = torch.randn(40, STATE)
    corner = surrogate.state_high.expand_as(states)
    torch.testing.assert_close(
        surrogate(corner, actions, cotangent), surrogate(corner + 1e6, actions, cotangent)
    )


def test_its_change_of_a_cotangent_is_bounded_everywhere() -> None:
    surrogate = trained()
    states, actions = 1e3 * torch.randn(500, STATE), 1e3 * torch.randn(500, ACTION)
    cotangent = torch.randn(500, STATE)
    change = (surrogate(states, actions, cotangent) - cotangent) * surrogate.state_scale
    most = math.prod(
        float(torch.linalg.matrix_norm(matrix, 2)) for matrix in (surrogate.read, surrogate.write)
    )
    given = (cotangent * surrogate.state_scale).norm(dim=-1)
    assert bool((change.norm(dim=-1) <= most * given).all())


def test_a_row_with_nan_stays_alone() -> None:
    surrogate, (states, actions) = trained(), data(6)
    cotangent = torch.randn(6, STATE)
    wanted = surrogate(states, actions, cotangent)
    for place in (states, actions, cotangent):
        keep, place[2] = place[2].clone(), torch.nan
        answer = surrogate(states, actions, cotangent)
        place[2] = keep
        assert answer[2].isnan().any()
        assert torch.equal(answer[[0, 1, 3, 4, 5]], wanted[[0, 1, 3, 4, 5]])


def test_a_model_that_forgets_its_state_has_no_state_gradient() -> None:
    states, actions = data(8)
    for model in (lambda s, a: a @ torch.ones(ACTION, STATE), lambda s, a: a.repeat(1, 3)[:, :5]):
        gradient, _ = exact_gradient(model, states, actions, torch.ones_like(states))
        assert not gradient.any()


class Sized(nn.Module):
    """In training mode with dropout: a careless fit would show."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(STATE + ACTION, STATE)
        self.drop = nn.Dropout(0.5)

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        return state + self.drop(self.layer(torch.cat((state, action), -1)))


def test_model_and_caller_are_left_as_they_were() -> None:
    model = Sized()
    before, threads = [p.clone() for p in model.parameters()], torch.get_num_threads()
    torch.manual_seed(99)
    expected = torch.rand(3)
    torch.manual_seed(99)
    first = fit(model, *data(), recipe=QUICK)
    assert torch.equal(torch.rand(3), expected)
    assert same(fit(model, *data(), recipe=QUICK), first)
    assert torch.get_num_threads() == threads
    assert model.training
    assert model.drop.training
    for parameter, was in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter, was)
        assert parameter.requires_grad
        assert parameter.grad is None
    assert not any(p.requires_grad for p in first.parameters())


@pytest.mark.parametrize("cut", ["stop", "kill"])
def test_a_run_that_was_cut_ends_in_the_same_bits(tmp_path: Path, cut: str) -> None:
    checkpoint = Checkpoint(tmp_path / "checkpoint.pt", {"run": "mine"})
    recipe = replace(QUICK, steps=120)

    def die(phase: str, done: int, total: int, loss: float | None) -> None:
        if done == 100:
            raise Killed

    asked: list[None] = []
    if cut == "stop":
        with pytest.raises(TrainingInterrupted, match="stopped after 70 of 120 steps"):
            fit(wave, *data(), recipe=recipe, checkpoint=checkpoint,
                should_stop=lambda: asked.append(None) or len(asked) > 70)  # fmt: skip
    else:
        with pytest.raises(Killed):
            fit(wave, *data(), recipe=recipe, checkpoint=checkpoint, report=die,
                checkpoint_seconds=0.01)  # fmt: skip
    assert 0 < checkpoint.load()["step"] < 120
    resumed = fit(wave, *data(), recipe=recipe, checkpoint=checkpoint)
    assert same(resumed, fit(wave, *data(), recipe=recipe))
    seen: list[str] = []
    again = fit(wave, *data(), recipe=recipe, checkpoint=checkpoint,
                report=lambda phase, *_: seen.append(phase))  # fmt: skip
    assert same(again, resumed)
    assert not seen
    with pytest.raises(CheckpointMismatchError, match="run was mine, now other"):
        fit(wave, *data(), recipe=recipe, checkpoint=replace(checkpoint, identity={"run": "other"}))


def test_bad_arguments_are_named() -> None:
    surrogate, (states, actions) = Surrogate(STATE, ACTION), data(4)
    for arguments, message in (
        ((states[:, :3], actions, states), r"state must be \(rows, 5\).*got \(4, 3\)"),
        ((states, actions[:3], states), r"action must be \(rows, 2\).*got \(3, 2\)"),
        ((states, actions, states[:1]), r"cotangent must be \(rows, 5\).*got \(1, 5\)"),
    ):
        with pytest.raises(ValueError, match=message):
            surrogate(*arguments)
    with pytest.raises(ValueError, match="every size"):
        Surrogate(STATE, 0)
    for field, value in (("steps", 0), ("units", 0), ("state_noise", -0.1), ("learning_rate", 0)):
        with pytest.raises(ValueError, match=field):
            replace(QUICK, **{field: value})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ({"states": torch.full((4, STATE), torch.nan)}, "states contain"),
        ({"actions": torch.full((4, ACTION), torch.inf)}, "actions contain"),
        ({"states": torch.zeros(4, STATE, 1)}, r"states must be \(rows, features\).*4, 5, 1"),
        ({"states": torch.zeros(4, STATE).double()}, r"states must be .* torch.float64"),
        ({"states": torch.zeros(3, STATE)}, "same rows"),
        ({"states": torch.zeros(0, STATE), "actions": torch.zeros(0, ACTION)}, "at least one"),
        ({"state_scale": torch.zeros(STATE)}, "state_scale must be"),
        ({"state_scale": torch.ones(1)}, "state_scale must be"),
        ({"world_model": lambda s, a: s[:, :2]}, "world_model must return next states"),
        ({"world_model": lambda s, a: s * torch.nan}, "world_model's gradient"),
    ],
)
def test_bad_data_and_models_are_named(spoil: dict[str, object], message: str) -> None:
    states, actions = data(4)
    arguments = {"world_model": wave, "states": states, "actions": actions, **spoil}
    with pytest.raises(ValueError, match=message):
        fit(**arguments, recipe=QUICK)
