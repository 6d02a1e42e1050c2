"""The CPU backend: finds the compiled extension, and calls it.

The extension is looked for at the first call, never at import. Prebuilt beside this file (`pip
install` puts it there, see setup.py), else built once from the checkout's `csrc` into a cache, else
the reason is remembered and the reference runs instead. `GRASP_KERNELS_NATIVE=0` skips it, `=1`
insists on it.

The functions below have the signatures of `grasp_kernels.ops`. They allocate what an op returns and
leave the rest to C++; they take for granted what `ops` and `functional` have checked.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

PACKAGE = Path(__file__).resolve().parent
CSRC = PACKAGE.parent / "csrc"
NOT_BUILT = PACKAGE / "not_built.txt"  # why setup.py compiled nothing, where it did not
COMPILE_FLAGS = (
    "-std=c++17",
    "-O3",
    "-fno-math-errno",  # a square root is an instruction; NaN and infinity keep their meaning
    "-ffp-contract=off",  # the sources fuse by hand: equal formulas, equal bits
    "-fPIC",
    "-fvisibility=hidden",
    "-DNDEBUG",
    "-DTORCH_TARGET_VERSION=0x020a000000000000",  # the stable ABI of torch 2.10, and any later one
)


class Status(NamedTuple):
    """Whether the native backend can run here; `reason` says how, or why not."""

    available: bool
    reason: str


class BuildError(RuntimeError):
    """The extension cannot be compiled here."""


@functools.cache
def status() -> Status:
    """Finds (and may build) the extension, once; every dispatch asks, so the answer is kept.

    Raises if `GRASP_KERNELS_NATIVE=1` and there is none.
    """
    wanted = os.environ.get("GRASP_KERNELS_NATIVE", "")
    if wanted == "0":
        return Status(False, "skipped: GRASP_KERNELS_NATIVE=0")
    found = _find()
    if wanted == "1" and not found.available:
        raise RuntimeError(f"GRASP_KERNELS_NATIVE=1, but: {found.reason}")
    return found


def simd() -> str:
    """The instruction set in use: avx512, avx2 or baseline (see `GRASP_KERNELS_SIMD`)."""
    return str(_ops().simd())


# -------------------------------------------------------------------------------------- the ops


def lifted_step_(
    trajectory: Tensor,
    prediction: Tensor,
    goal: Tensor,
    coefficients: Tensor,
    plan_ids: Tensor,
    feature_weight: Tensor | None,
    time_weight: Tensor | None,
    state_gradient: Tensor | None,
    state_gradient_scale: float,
    seed: int,
    iteration: int,
    noise: str,
    modes: int,
    first_step: int,
    horizon: int,
    free_terminal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    dynamics = torch.empty(prediction.shape[:2], dtype=torch.float32, device="cpu")
    goal_error = torch.empty_like(dynamics)
    cotangent = torch.empty_like(prediction)
    _ops().lifted_step_(
        trajectory,
        prediction,
        goal,
        coefficients.float(),
        plan_ids,
        feature_weight,
        time_weight,
        state_gradient,
        state_gradient_scale,
        seed,
        iteration,
        noise,
        modes,
        first_step,
        horizon,
        free_terminal,
        dynamics,
        goal_error,
        cotangent,
    )
    return dynamics, goal_error, cotangent


def lifted_loss(
    prediction: Tensor,
    trajectory: Tensor,
    goal: Tensor,
    feature_weight: Tensor | None,
    time_weight: Tensor | None,
) -> tuple[Tensor, Tensor]:
    dynamics = torch.empty(prediction.shape[:2], dtype=torch.float32, device="cpu")
    goal_error = torch.empty_like(dynamics)
    _ops().lifted_loss(
        prediction, trajectory, goal, feature_weight, time_weight, dynamics, goal_error
    )
    return dynamics, goal_error


def lifted_loss_backward(
    dynamics_cotangent: Tensor,
    goal_cotangent: Tensor,
    prediction: Tensor,
    trajectory: Tensor,
    goal: Tensor,
    feature_weight: Tensor | None,
    time_weight: Tensor | None,
) -> tuple[Tensor, Tensor]:
    prediction_gradient = torch.empty_like(prediction)
    trajectory_gradient = torch.empty(trajectory.shape, dtype=trajectory.dtype, device="cpu")
    trajectory_gradient[:, :1].zero_()  # the start is given
    _ops().lifted_loss_backward(
        dynamics_cotangent.float(),
        goal_cotangent.float(),
        prediction,
        trajectory,
        goal,
        feature_weight,
        time_weight,
        prediction_gradient,
        trajectory_gradient,
    )
    return prediction_gradient, trajectory_gradient


def action_step_(
    actions: Tensor,
    gradient: Tensor,
    first_moment: Tensor | None,
    second_moment: Tensor | None,
    lr: Tensor,
    low: Tensor | None,
    high: Tensor | None,
    beta1: float,
    beta2: float,
    epsilon: float,
    correction1: float,
    correction2: float,
) -> None:
    _ops().action_step_(
        actions,
        gradient,
        first_moment,
        second_moment,
        lr.float(),
        low,
        high,
        beta1,
        beta2,
        epsilon,
        correction1,
        correction2,
    )


def gaussian_noise(
    plan_ids: Tensor,
    steps: int,
    features: int,
    seed: int,
    iteration: int,
    noise: str,
    modes: int,
    first_step: int,
    horizon: int,
    dtype: torch.dtype,
) -> Tensor:
    out = torch.empty((plan_ids.shape[0], steps, features), dtype=dtype, device="cpu")
    _ops().gaussian_noise(plan_ids, seed, iteration, noise, modes, first_step, horizon, out)
    return out


def philox_words(
    plan_ids: Tensor, steps: int, features: int, seed: int, iteration: int, first_step: int
) -> Tensor:
    groups = (features + 3) // 4
    out = torch.empty((plan_ids.shape[0], steps, 4 * groups), dtype=torch.int32, device="cpu")
    _ops().philox_words(plan_ids, features, seed, iteration, first_step, out)
    return out


def mlp_rollout(
    start: Tensor, actions: Tensor, weights: Tensor, constants: Tensor, structure: Sequence[int]
) -> Tensor:
    plans, steps, _ = actions.shape
    states = torch.empty((plans, steps + 1, start.shape[1]), dtype=torch.float32, device="cpu")
    states[:, 0] = start
    _ops().mlp_rollout(actions, weights, constants, structure, states)
    return states


def mlp_rollout_backward(
    cotangent: Tensor,
    states: Tensor,
    actions: Tensor,
    weights: Tensor,
    constants: Tensor,
    structure: Sequence[int],
) -> tuple[Tensor, Tensor]:
    start_gradient = torch.empty((states.shape[0], states.shape[2]), device="cpu")
    gradients = start_gradient, torch.empty_like(actions)
    _ops().mlp_rollout_backward(
        cotangent, states, actions, weights, constants, structure, *gradients
    )
    return gradients


def mlp_lifted_plan_(trajectory: Tensor, *rest: Any) -> Tensor:
    """The arguments are those of `reference.mlp_lifted_plan_`."""
    history = torch.empty((len(rest[5]), len(trajectory)), dtype=torch.float32, device="cpu")
    _ops().mlp_lifted_plan_(trajectory, *rest, history)
    return history


def mlp_sync_(*arguments: Any) -> None:
    """The arguments are those of `reference.mlp_sync_`."""
    _ops().mlp_sync_(*arguments)


def mlp_jacobians(
    states: Tensor, actions: Tensor, weights: Tensor, constants: Tensor, structure: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    rows, features = states.shape
    found = (
        torch.empty_like(states),
        torch.empty((rows, features, features), dtype=torch.float32, device="cpu"),
        torch.empty((rows, features, actions.shape[1]), dtype=torch.float32, device="cpu"),
    )
    _ops().mlp_jacobians(states, actions, weights, constants, structure, *found)
    return found


def lifted_newton_step_(trajectory: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The arguments are those of `reference.lifted_newton_step_`."""
    goal_error = torch.empty(len(trajectory), dtype=torch.float32, device="cpu")
    found = goal_error, torch.empty_like(goal_error), torch.empty_like(goal_error)
    _ops().lifted_newton_step_(trajectory, *rest, *found)
    return found


def small_product(a: Tensor, matrix: Tensor, repeats: int = 1) -> Tensor:
    """`a (rows, depth) @ matrix (depth, columns)` by the microkernel of the MLP ops, `repeats`
    times with the matrix packed once: for tests and `bench/plan.py`, not an op."""
    out = torch.empty((a.shape[0], matrix.shape[1]), dtype=torch.float32, device="cpu")
    _ops().small_product(a, matrix, repeats, out)
    return out


def normals_from_words(words: Tensor) -> Tensor:
    """The normals behind `gaussian_noise` from given int32 words `(4 n,)`: for tests, not an op."""
    out = torch.empty(words.shape, dtype=torch.float32, device="cpu")
    _ops().normals_from_words(words, out)
    return out


# ------------------------------------------------------------------------ finding the extension


class _Ops(NamedTuple):
    """The registered ops, already resolved: a call then costs no look-up by name."""

    lifted_step_: Any
    lifted_loss: Any
    lifted_loss_backward: Any
    action_step_: Any
    gaussian_noise: Any
    philox_words: Any
    mlp_rollout: Any
    mlp_rollout_backward: Any
    mlp_lifted_plan_: Any
    mlp_sync_: Any
    mlp_jacobians: Any
    lifted_newton_step_: Any
    small_product: Any
    normals_from_words: Any
    simd: Any


@functools.cache
def _ops() -> _Ops:
    found = status()
    if not found.available:
        raise RuntimeError(f"the native backend is not available: {found.reason}")
    namespace = torch.ops.grasp_kernels_native
    return _Ops(*(getattr(namespace, name).default for name in _Ops._fields))


def _find() -> Status:
    try:
        path, how = _prebuilt() or _built()
        torch.ops.load_library(path)
    except (BuildError, OSError) as error:
        return Status(False, str(error))
    # A wrong GRASP_KERNELS_SIMD is the user's error and is raised, here, at the first use.
    return Status(True, f"{how}, {torch.ops.grasp_kernels_native.simd()}")


def _prebuilt() -> tuple[Path, str] | None:
    """The extension beside this file, unless the sources beside it are newer."""
    for path in sorted(PACKAGE.glob("_native*.so")):
        if not any(s.stat().st_mtime > path.stat().st_mtime for s in source_files()):
            return path, "prebuilt"
    return None


def _built() -> tuple[Path, str]:
    """The extension in the cache, compiled on the first call that needs it."""
    path = _cache() / f"_native-{_fingerprint()}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.with_suffix(".lock")):
            if not path.exists():  # another process may have built it while this one waited
                build(path)
    return path, "built from csrc"


def _cache() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "grasp_kernels"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    import fcntl  # not on Windows, where build() has already refused

    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


# ------------------------------------------------------------------------------------- building


def source_files() -> list[Path]:
    """Every file that the extension is made of; empty outside a checkout."""
    return sorted(p for p in CSRC.rglob("*") if p.suffix in (".cpp", ".h"))


def compiler() -> list[str]:
    """The C++ compiler as a command; raises `BuildError` if this machine cannot build."""
    if sys.platform == "win32":
        raise BuildError("the native backend needs GCC or Clang; Windows is not supported")
    if not source_files():
        reason = NOT_BUILT.read_text() if NOT_BUILT.exists() else "no csrc to build one from"
        raise BuildError(f"not compiled when it was installed: {reason}")
    command = shlex.split(os.environ.get("CXX", ""))
    for name in command[:1] or ("g++", "clang++", "c++"):
        if found := shutil.which(name):
            return [found, *command[1:]]
    raise BuildError(f"no C++ compiler ({command[0] if command else 'g++, clang++, c++'})")


def _fingerprint() -> str:
    """Names a build: another compiler, torch or source gives another file."""
    version = subprocess.run([*compiler(), "--version"], capture_output=True, check=False).stdout
    digest = hashlib.sha256(version)
    digest.update(repr((torch.__version__, platform.machine(), COMPILE_FLAGS)).encode())
    for path in source_files():
        digest.update(path.relative_to(CSRC).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def build(target: Path) -> None:
    """Compiles `csrc` into the shared library `target`, which appears whole or not at all."""
    command = compiler()
    torch_root = Path(torch.__file__).parent
    include = [f"-I{CSRC / 'include'}", "-isystem", str(torch_root / "include")]
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="build-") as folder:
        sources = [p for p in source_files() if p.suffix == ".cpp"]
        objects = [str(Path(folder, p.stem + ".o")) for p in sources]
        _run(
            [*command, *COMPILE_FLAGS, *include, "-c", str(source), "-o", out]
            for source, out in zip(sources, objects, strict=True)
        )
        library = Path(folder, target.name)
        link = ["-shared", "-o", str(library), f"-L{torch_root / 'lib'}", "-ltorch", "-ltorch_cpu"]
        _run([[*command, *objects, *link]])
        library.replace(target)


def _run(commands: Any) -> None:
    """Runs the commands side by side, as many as there are cores; the first failure is raised."""
    waiting = list(commands)
    running: list[subprocess.Popen[str]] = []
    while waiting or running:
        while waiting and len(running) < (os.cpu_count() or 1):
            running.append(
                subprocess.Popen(waiting.pop(0), stderr=subprocess.PIPE, text=True, bufsize=-1)
            )
        process = running.pop(0)
        _, errors = process.communicate()
        if process.returncode:
            for other in running:
                other.kill()
                other.communicate()
            message = "\n".join(errors.strip().splitlines()[:12])
            raise BuildError(f"{shlex.join(process.args)} failed:\n{message}")  # type: ignore[arg-type]
