"""Why the bfloat16 kernels are right, without a GPU and without the interpreter.

The interpreter rounds float32 to bfloat16 by truncation and computes bfloat16 wrongly, so it says
nothing about these kernels. Instead, three facts about what the compiler makes of them:

    1. The Triton IR of a bfloat16 kernel is that of the float32 kernel, operation by operation, but
       for conversions between the two.
    2. Nothing but loads, stores and these conversions touches a bfloat16 number.
    3. In PTX, every conversion to bfloat16 rounds to nearest even (`.rn`), and what the backend
       moved across a conversion into bfloat16 is exact there: a sign, a minimum, a maximum.

The float32 kernels are held to the float64 reference by the interpreter; with 1-3 the bfloat16
kernels are the same arithmetic on widened inputs, rounded once.
"""

from __future__ import annotations

import dataclasses
import re

import pytest

pytest.importorskip("triton")
import triton
from triton.backends.compiler import GPUTarget

pytestmark = pytest.mark.aot

QUICK = ("lifted_step_white", "lifted_step_none", "lifted_loss_backward", "action_step_adam")
SLOW = (
    "lifted_step_bridge",
    "lifted_step_white_weighted",
    "lifted_loss",
    "gaussian_noise_white",
    "gaussian_noise_bridge",
    "action_step_sgd",
)


def compiled(name: str, dtype: str) -> dict[str, str]:
    """The bfloat16 variant as it is launched, or the same with float32 storage."""
    from grasp_kernels.triton.variants import variants

    found = next(v for v in variants() if (v.name, v.dtype) == (name, "bfloat16"))
    variant = dataclasses.replace(found, dtype=dtype)
    target = GPUTarget("cuda", 90, 32)
    return triton.compile(variant.source(), target=target, options=variant.options()).asm


def operations(ttir: str) -> list[str]:
    """The IR one operation a line, without source locations."""
    lines = [re.sub(r" loc\(.*", "", line).strip() for line in ttir.splitlines()]
    return [line for line in lines if line and not line.startswith("#loc")]


def without_conversions(ttir: str) -> list[str]:
    """The operations with bfloat16 read as float32, constants in place, values renumbered.

    A name may be used again in another loop, so every definition, of results and of what a loop
    carries, gets a name of its own.
    """
    names: dict[str, str] = {}
    kept = []
    for line in operations(ttir):
        line = line.replace("bf16", "f32")
        constant = re.match(r"(%\w+) = arith\.constant (.*)", line)
        if constant:
            names[constant[1]] = f"<{constant[2]}>"
            continue
        defined = re.findall(r"(%\w+)(?::\d+)? = ", line)
        uses = {name: value for name, value in names.items() if name not in defined}
        line = re.sub(r"%\w+", lambda found, uses=uses: uses.get(found[0], found[0]), line)
        conversion = re.match(r"(%\w+) = arith\.(?:extf|truncf) (%\w+(?:#\d+)?|<.*?>)", line)
        if conversion:
            names[conversion[1]] = conversion[2]
            continue
        for name in defined:
            names[name] = f"%v{len(kept)}{name[1:]}"
            line = re.sub(rf"{name}(?!\w)", names[name], line)
        kept.append(line)
    return renumbered(kept)


def renumbered(lines: list[str]) -> list[str]:
    """Values named by the order in which they appear."""
    order: dict[str, str] = {}
    return [
        re.sub(r"%\w+", lambda found: order.setdefault(found[0], f"%{len(order)}"), line)
        for line in lines
    ]


def check(name: str) -> None:
    narrow, wide = compiled(name, "bfloat16"), compiled(name, "float32")
    assert without_conversions(narrow["ttir"]) == without_conversions(wide["ttir"])

    touching = [op for op in operations(narrow["ttir"]) if re.search(r"xbf16|: bf16|to bf16", op)]
    allowed = ("tt.load", "tt.store", "arith.extf", "arith.truncf", "arith.constant")
    strange = [op for op in touching if not any(word in op for word in allowed)]
    assert not strange

    instructions = re.findall(r"^\s*(?:@%\w+ )?([a-z][\w.]*bf16[\w.]*)", narrow["ptx"], re.M)
    narrowing = [i for i in instructions if re.match(r"cvt\..*\.bf16(x2)?\.f32", i)]
    widening = [i for i in instructions if re.match(r"cvt(\.\w+)*\.f32\.bf16", i)]
    exact = [i for i in instructions if re.match(r"(neg|min\.NaN|max\.NaN)\.bf16", i)]
    assert all(i.startswith("cvt.rn.bf16") for i in narrowing)
    assert set(instructions) == {*narrowing, *widening, *exact}
    assert bool(narrowing) is (name != "lifted_loss")  # whose only outputs are float32


@pytest.mark.parametrize("name", QUICK)
def test_bfloat16_is_float32_arithmetic_rounded_once(name: str) -> None:
    check(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_bfloat16_is_float32_arithmetic_rounded_once_slow(name: str) -> None:
    check(name)
