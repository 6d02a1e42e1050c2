"""Values of command line arguments, refused where they are read, by the name of their flag."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from typing import TypeVar

import torch

from grasp_planner import tasks
from grasp_planner.distributed.launch import own_device

MAX_SEED = 2**64 - 1
T = TypeVar("T")


def integer(least: int, most: float = math.inf) -> Callable[[str], int]:
    """An argparse type: a whole number from `least` to `most`."""
    span = f"from {least} to {most}" if most < math.inf else f"of at least {least}"

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or not least <= value <= most:
            raise argparse.ArgumentTypeError(f"must be a whole number {span}, not {text!r}")
        return value

    return parse


positive = integer(1)
seed = integer(0, MAX_SEED)


def listed(parse: Callable[[str], T]) -> Callable[[str], list[T]]:
    """An argparse type: values of another type between commas, each once."""
    return lambda text: list(dict.fromkeys(parse(part) for part in text.split(",")))


def number(most: float, words: str) -> Callable[[str], float]:
    """An argparse type: from 0 to `most`; in `words` for those who give another."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not 0 <= value <= most:  # also for NaN
            raise argparse.ArgumentTypeError(f"must be {words}, not {text!r}")
        return value

    return parse


fraction = number(1.0, "a number from 0 to 1")
weight = number(sys.float_info.max, "a finite number from 0")


def task_name(text: str) -> str:
    """An argparse type: the full name of a task, of it or of its alias."""
    try:
        return tasks.canonical(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def device(text: str) -> torch.device:
    """An argparse type: a device that torch can compute on, here and now; a rank's own GPU."""
    try:
        found = own_device(text)
        torch.zeros(1, device=found).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).split("\n", 1)[0]
        raise argparse.ArgumentTypeError(f"{text!r} cannot be used: {reason}") from error
    return found
