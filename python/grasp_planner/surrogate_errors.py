"""How far a surrogate of the state gradient is from the exact one, on the data and off them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from grasp_planner.interruptible import one_thread
from grasp_planner.surrogate import Examples, Surrogate, check_data, exact_gradient
from grasp_planner.world_model import CheckedModel, WorldModel, frozen

#: Standard deviations of the noise on data states, in units of `state_scale`.
NOISES = (0.0, 0.03, 0.1, 0.3, 1.0)


@torch.no_grad()
def measure(
    surrogate: Surrogate,
    world_model: WorldModel,
    states: Tensor,
    actions: Tensor,
    *,
    noises: Sequence[float] = NOISES,
    rows: int = 6_000,
    seed: int = 0,
) -> list[dict[str, float]]:
    """How far a surrogate is from the exact gradient, on data and with noise on the states.

    One entry per noise, a standard deviation in units of the surrogate's `state_scale`, for `rows`
    random data rows with cotangents as in `fit`. Errors are relative: the root of the summed
    squares over that of what they are compared with, in the same units.

        error          of the surrogate, from the exact gradient at the same, noisy state
        median         of the error's length where the cotangent's is 1
        cosine         between these two, the mean
        identity       what the error would be if the cotangent itself were the answer
        from_data      of the surrogate at the noisy state, from the exact gradient without noise
        exact_from_data    of the exact gradient at the noisy state, from the one without noise
        gain, exact_gain   99 % of the answers are at most so many times as long as the cotangent

    Args:
        surrogate, world_model: what to compare.
        states, actions: data (rows, D) and (rows, A); best some that `fit` has not seen.
        noises: each >= 0.
        rows: how many, drawn with replacement. >= 1.
        seed: of rows, noise and cotangents.

    Raises:
        TypeError, ValueError: the data, or what the world model answers, is wrong; it is named.
    """
    check_data(states, actions)
    scale = surrogate.state_scale
    data = Examples(states, actions, scale, torch.Generator().manual_seed(seed))
    model = CheckedModel(world_model)
    state, action = data.rows(rows)
    found = []
    with torch.inference_mode(False), frozen(world_model), one_thread():
        clean, cotangent = exact_gradient(
            model, state, action, lambda prediction: data.cotangents(prediction, state)
        )
        direction = data.normal(*state.shape)
        for noise in noises:
            noisy = state + noise * scale * direction
            exact, _ = exact_gradient(model, noisy, action, cotangent)
            answer = surrogate(noisy, action, cotangent)
            exact, answer, own, given = (v * scale for v in (exact, answer, clean, cotangent))
            found.append(
                {
                    "noise": noise,
                    "error": _relative(answer, exact),
                    "median": float((answer - exact).norm(dim=-1).median()),
                    "cosine": float(nn.functional.cosine_similarity(answer, exact).mean()),
                    "identity": _relative(given, exact),
                    "from_data": _relative(answer, own),
                    "exact_from_data": _relative(exact, own),
                    "gain": _longest(answer),
                    "exact_gain": _longest(exact),
                }
            )
    return found


def _relative(value: Tensor, wanted: Tensor) -> float:
    return float((value - wanted).norm() / wanted.norm())


def _longest(answers: Tensor) -> float:
    return float(torch.quantile(answers.norm(dim=-1), 0.99))
