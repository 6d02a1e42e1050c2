"""pyproject.toml names the packages one by one; this keeps the list complete."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_package_is_named() -> None:
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    places = {"grasp_kernels": ROOT / "grasp_kernels"}
    places |= {name: ROOT / folder for name, folder in tool["package-dir"].items()}
    found = [
        ".".join([name, *file.parent.relative_to(folder).parts])
        for name, folder in places.items()
        for file in folder.rglob("__init__.py")
    ]
    assert sorted(tool["packages"]) == sorted(found)
