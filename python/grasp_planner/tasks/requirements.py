"""Optional packages, asked for where they are needed and named when they are missing."""

from __future__ import annotations

import importlib
from types import ModuleType

EXTRA = "grasp-kernels[tasks]"


class MissingExtraError(ImportError):
    """A package of the `[tasks]` extra is not installed."""


def require(module: str, *, task: str) -> ModuleType:
    """Imports `module` or says which extra brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{task}: this needs the package {module!r}, which cannot be imported ({error}); "
            f"install the extra that brings it: pip install '{EXTRA}'. "
            "The world model and the planner work without it."
        ) from error
