"""Combinations of options in which every two values of every two options meet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from allpairspy import AllPairs


def pairwise(factors: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """As few combinations `name -> value` as are easily found; the same in every run.

    Most bugs of options that do not go together need two of them, which so few combinations find
    (Kuhn, Wallace and Gallo, *Software Fault Interactions*, IEEE TSE 2004).
    """
    names, sizes = list(factors), [range(len(values)) for values in factors.values()]
    # Indices stand for values, of which some are equal and some cannot be hashed.
    rows = AllPairs([list(size) for size in sizes])
    return [{name: factors[name][i] for name, i in zip(names, row, strict=True)} for row in rows]
