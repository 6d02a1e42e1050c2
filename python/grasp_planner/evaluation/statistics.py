"""What so many problems can tell about a share, and about a time."""

from __future__ import annotations

import math
from collections.abc import Sequence


def wilson(successes: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of the share `successes / count`, of independent trials.

    >>> [round(end, 3) for end in wilson(9, 10)]
    [0.596, 0.982]
    """
    if not 0 <= successes <= count or count == 0:
        raise ValueError(f"successes must be from 0 to count > 0, not {successes} of {count}")
    p, z2 = successes / count, 1.96**2
    centre = (p + z2 / (2 * count)) / (1 + z2 / count)
    spread = math.sqrt(z2 * (p * (1 - p) + z2 / (4 * count)) / count) / (1 + z2 / count)
    return max(centre - spread, 0.0), min(centre + spread, 1.0)


def quantile(values: Sequence[float], share: float) -> float | None:
    """The value below which a `share` of the others lies, interpolated; None of none."""
    if not values:
        return None
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])
