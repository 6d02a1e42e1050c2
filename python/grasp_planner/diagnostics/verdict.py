"""From evidence to a verdict: the rules, in one place."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from grasp_planner.diagnostics.numbers import percent

VERDICTS = {
    "arrived": "the plan arrives under the model, and in truth where that is known",
    "model error": "it arrives under the model, and not in truth",
    "not finite": "the world model gives NaN or infinity along the plan",
    "bound-limited": "the actions press against their bounds; with wider ones a plan arrives",
    "local minimum": "nothing is gained from where it ended, yet another search arrives",
    "unreachable within T": "no search arrives in T steps, and more steps bring it there or closer",
    "search ran out of iterations": "going on from where it ended, it arrives or comes closer",
    "undecided": "the experiments do not tell",
}

PRESSING = 0.25  # of all action numbers: so many press outward where bounds limit a plan
GAIN = 0.1  # a refinement that lowers the cost by less has gained nothing
STEADY = 0.9  # of the distance before: what is left at each longer horizon, if more time helps


@dataclass(frozen=True)
class Evidence:
    """What is known of a plan. Distances and errors are in the success radius's own measure.

    Attributes:
        horizon: T.
        success_radius: a plan has arrived within it.
        distance_model: to the goal, at the end of the model's rollout.
        distance_real: the same in truth; None where that is not known.
        non_finite_step: the first step at which the rollout is NaN or infinite; None if there is
            none.
        model_error: between the rollout's end and where the plan ended in truth.
        model_error_step: the first step at which that error is larger than the success radius.
        at_bounds: share of the action numbers at a bound, 0 to 1.
        outward: share of all action numbers that are at a bound and would lower the cost beyond it.
        free_gradient: norm of the cost's gradient without those, as a share of the whole; NaN where
            the gradient is 0.
        refined_distance: after 100 steps of gradient descent from the plan, inside the bounds; NaN
            where it was not tried.
        refined_gain: by how much they lowered the cost, as a share of it.
        stronger, wider: distance that other searches reached, by name: within T and the bounds;
            with wider bounds. Empty: not tried.
        longer: the same by horizon, with more time.
    """

    horizon: int
    success_radius: float
    distance_model: float
    distance_real: float | None
    non_finite_step: int | None
    model_error: float | None
    model_error_step: int | None
    at_bounds: float
    outward: float
    free_gradient: float
    refined_distance: float
    refined_gain: float
    stronger: dict[str, float]
    wider: dict[str, float]
    longer: dict[int, float]

    def arrives(self, distance: float | None) -> bool:
        """NaN and None have not arrived."""
        return distance is not None and distance <= self.success_radius

    @property
    def closest(self) -> float:
        """Of all that was tried within T and the bounds."""
        known = [self.distance_model, self.refined_distance, *self.stronger.values()]
        return min((d for d in known if not math.isnan(d)), default=math.nan)

    @property
    def approaching(self) -> bool:
        """With every longer horizon, of at least two, the goal comes closer."""
        path = [self.closest, *(self.longer[steps] for steps in sorted(self.longer))]
        falls = all(after <= STEADY * before for before, after in pairwise(path))
        return len(path) > 2 and falls


@dataclass(frozen=True)
class Verdict:
    """Why a plan failed, or that it did not.

    Attributes:
        verdict: one of `VERDICTS`.
        because: the evidence in a sentence or two, with its numbers.
        evidence: all of it.
    """

    verdict: str
    because: str
    evidence: Evidence


def judge(found: Evidence) -> Verdict:
    """The verdict that the evidence allows."""
    name, because = _judge(found)
    return Verdict(name, because, found)


def _judge(e: Evidence) -> tuple[str, str]:
    def best(distances: dict[str, float]) -> str:
        name = min(distances, key=lambda key: distances[key])
        return f"{name} reaches {distances[name]:.3g}"

    radius = f"the success radius is {e.success_radius:.3g}"
    if e.non_finite_step is not None:
        return "not finite", f"The rollout is NaN or infinite from step {e.non_finite_step} on."
    if e.arrives(e.distance_model) or e.arrives(e.distance_real):
        return _arrived(e, radius)

    ended = f"The plan ends {e.distance_model:.3g} from the goal under the model; {radius}."
    stronger = {k: d for k, d in e.stronger.items() if e.arrives(d)}
    wider = {k: d for k, d in e.wider.items() if e.arrives(d)}
    longer = {f"T = {k}": d for k, d in sorted(e.longer.items()) if e.arrives(d)}
    gain = f"lowers the cost by {percent(e.refined_gain)}"
    if e.arrives(e.refined_distance):
        words = f"Gradient descent from there arrives, at {e.refined_distance:.3g}."
        return "search ran out of iterations", f"{ended} {words}"
    if stronger and e.refined_gain < GAIN:
        words = f"Gradient descent from there only {gain}, yet {best(stronger)} within T."
        return "local minimum", f"{ended} {words}"
    if stronger:
        words = f"Gradient descent from there {gain}, and {best(stronger)} within T."
        return "search ran out of iterations", f"{ended} {words}"
    pressing = f"{percent(e.outward)} of the action numbers press against their bounds"
    if wider and (e.outward >= PRESSING or not longer):
        time = f" More time would do too: {best(longer)}." if longer else ""
        return "bound-limited", f"{ended} {pressing}; with {best(wider)}.{time}"
    tried = f"No search comes closer than {e.closest:.3g} in T = {e.horizon} steps"
    if longer:
        words = f"{tried}; {best(longer)}."
        return "unreachable within T", f"{ended} {words}"
    if e.stronger and e.approaching:
        steps = max(e.longer)
        words = f"{tried}; with more it falls steadily, to {e.longer[steps]:.3g} at T = {steps}."
        return "unreachable within T", f"{ended} {words}"
    if e.refined_gain >= GAIN:
        words = f"Gradient descent from there still {gain}, to {e.refined_distance:.3g}."
        return "search ran out of iterations", f"{ended} {words}"
    if not (e.stronger or e.wider or e.longer):
        return "undecided", f"{ended} Gradient descent from there {gain}; nothing else was tried."
    words = f"{tried}, and neither wider bounds nor more time, as far as tried, arrive."
    return "undecided", f"{ended} {words}"


def _arrived(e: Evidence, radius: str) -> tuple[str, str]:
    model = f"It ends {e.distance_model:.4g} from the goal under the model"
    if e.distance_real is None:
        return "arrived", f"{model}; {radius}. What it does in truth is not known."
    both = f"{model} and {e.distance_real:.4g} in truth; {radius}."
    if e.arrives(e.distance_real):
        return "arrived", both
    if e.model_error_step is None:
        words = (
            f"The model errs by {e.model_error:.3g} at the end, which is within that radius: the "
            "plan left itself no margin."
        )
    else:
        words = (
            f"From step {e.model_error_step} on the model errs by more than that radius, at the "
            f"end by {e.model_error:.3g}."
        )
    return "model error", f"{both} {words}"
