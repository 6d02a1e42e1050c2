"""Reads compiled kernels: instructions, loops, global accesses and registers, for NVIDIA and AMD.

Counts are static. An instruction is a line of the disassembly that issues: no-ops that pad the end
and the trap that follows the exit are left out. Code inside a loop is counted once, and again by
itself, so that a reader can multiply.

Accesses are told apart by the source line they come from, and what the Triton IR says of that line:

    scalar   one number per program: plan id, step size
    row      one number per time step: time weight, loss
    gather   indexed by a remainder: the bounds of an action
    bulk     everything else, and whatever cannot be attributed
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import triton

Line = tuple[str, int]


@dataclass
class Listing:
    """What the disassembly of one kernel shows."""

    instructions: int = 0
    loop_instructions: int = 0
    registers: int = 0
    spill_bytes: int = 0
    accesses: Counter[tuple[str, int]] = field(default_factory=Counter)
    """How often (kind, width in bits) occurs."""
    products: Counter[str] = field(default_factory=Counter)
    """How often each kind of product instruction occurs: of matrices, or a fused multiply-add."""
    scalar_spills: int = 0
    """AMD: scalar registers kept in lanes of vector registers; they cost no memory."""


PRODUCTS = ("HGMMA", "HMMA", "UTCHMMA", "DMMA", "FFMA", "v_mfma", "v_fma", "v_fmac", "v_pk_fma")
"""wgmma, mma, tcgen05 and mma of float64 of NVIDIA, matrix core instructions of AMD, and plain
multiply-adds."""


def product_kind(name: str) -> str | None:
    """Which of PRODUCTS the instruction is."""
    head = name.split(".")[0]
    if name.startswith("v_"):
        head = "v_mfma" if name.startswith("v_mfma") else name.rsplit("_", 1)[0]
        head = head.removesuffix("_f32")
    return {"FFMA2": "FFMA"}.get(head, head) if head.rstrip("2") in PRODUCTS else None


def access_kinds(ttir: str, elements: int, rows: int) -> dict[Line, str]:
    """The kind of access at each source line, from the Triton IR."""
    locations = dict(re.findall(r"^(#loc\d*) = (.*)$", ttir, re.M))

    def line(location: str) -> Line | None:
        """Follows names and call sites down to the innermost `"file":line:column`."""
        found = re.match(r'loc\("([^"]*)":(\d+):\d+\)', location)
        if found:
            return Path(found[1]).name, int(found[2])
        inner = re.search(r"#loc\d*", location)
        return line(locations[inner[0]]) if inner else None

    remainders = set(re.findall(r"(%\w+) = arith\.remsi", ttir))
    offsets = dict(re.findall(r"(%\w+) = tt\.addptr %\w+, (%\w+)", ttir))
    kinds: dict[Line, str] = {}
    pattern = r"tt\.(?:load|store) (%\w+).*? : (.*) loc\((#loc\d*)\)"
    for pointer, kind_of_pointer, location in re.findall(pattern, ttir):
        shape = re.match(r"tensor<((?:\d+x)+)", kind_of_pointer)
        where = line(locations[location])
        if where is None:
            continue
        if shape is None:
            kinds[where] = "scalar"
        elif offsets.get(pointer) in remainders:
            kinds[where] = "gather"
        elif rows < elements and shape[1] == f"{rows}x":
            kinds[where] = "row"
        else:
            kinds[where] = "bulk"
    return kinds


def read_nvidia(cubin: bytes, ptx: str, kinds: dict[Line, str]) -> Listing:
    """Reads a cubin with `nvdisasm` and `cuobjdump`, which Triton brings along.

    Widths are those of the machine code; which of them are not bulk is read from the PTX. (A load
    is inline assembly, and the line table of the machine code counts on inside of it.)
    """
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        code = _tool("nvdisasm", "-c", file.name)
        usage = _tool("cuobjdump", "--dump-resource-usage", file.name)
    # `        /*0a10*/              @!P0 LDG.E.128 R8, desc[UR16][R2.64] ;`
    instruction = re.compile(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)(.*)")
    listing, labels = Listing(), {}
    for text in code.splitlines():
        if found := re.match(r"^(\.L_\w+):", text):
            labels[found[1]] = listing.instructions
        elif found := instruction.match(text):
            name, operands = found.groups()
            target = re.search(r"`\((\.L_\w+)\)", operands)
            start = labels.get(target[1]) if target and name.startswith("BRA") else None
            if name.startswith("NOP") or start == listing.instructions:
                continue  # padding, or the trap that branches to itself
            listing.instructions += 1
            if start is not None:
                listing.loop_instructions += listing.instructions - start
            if kind := product_kind(name):
                listing.products[kind] += 1
            width = re.search(r"\.(64|128|256)\b|\.[US](8|16)\b", name)
            bits = int(width[1] or width[2]) if width else 32
            if name.startswith(("LDG", "STG")):
                listing.accesses["bulk", bits] += 1
            elif name.startswith(("LDL", "STL")):
                listing.spill_bytes += bits // 8
    for (kind, bits), count in ptx_accesses(ptx, kinds).items():
        if kind != "bulk":
            listing.accesses[kind, bits] = count
            listing.accesses["bulk", bits] -= count
    listing.accesses = +listing.accesses
    listing.registers = int(re.search(r"REG:(\d+)", usage)[1])  # type: ignore[index]
    stack = int(re.search(r"STACK:(\d+)", usage)[1])  # type: ignore[index]
    listing.spill_bytes = max(listing.spill_bytes, stack)
    return listing


def ptx_accesses(ptx: str, kinds: dict[Line, str]) -> Counter[tuple[str, int]]:
    """How often (kind, width in bits) occurs among the global loads and stores of PTX."""
    files = dict(re.findall(r'^\s*\.file\s+(\d+) "([^"]*)"', ptx, re.M))
    found: Counter[tuple[str, int]] = Counter()
    kind, inline = "bulk", False
    for text in ptx.splitlines():
        if "inline asm" in text:
            inline = "begin" in text
        elif (place := re.match(r"\s*\.loc\s+(\d+) (\d+)", text)) and not inline:
            kind = kinds.get((Path(files[place[1]]).name, int(place[2])), "bulk")
        elif access := re.search(r"\b(?:ld|st)\.global[\w.:]*?(?:\.v(\d))?\.[bfus](\d+)", text):
            found[kind, int(access[1] or 1) * int(access[2])] += 1
    return found


def read_amd(assembly: str, kinds: dict[Line, str]) -> Listing:
    """Reads the assembly text and the metadata of an AMD kernel."""
    code = assembly.split(".section\t.AMDGPU.csdata")[0].split(".amdgpu_metadata")[0]
    widths = {"dwordx4": 128, "dwordx3": 96, "dwordx2": 64, "dword": 32, "short": 16, "byte": 8}
    listing, where, labels = Listing(), None, {}
    for text in code.splitlines():
        if found := re.match(r"\s*\.loc\b.*; (\S+):(\d+):\d+", text):
            where = Path(found[1]).name, int(found[2])
        elif found := re.match(r"^(\.LBB\w+):", text):
            labels[found[1]] = listing.instructions
        elif found := re.match(r"^\t([a-z]+_\w+)(.*)", text):
            name, operands = found.groups()
            if name == "s_nop":
                continue
            listing.instructions += 1
            if kind := product_kind(name):
                listing.products[kind] += 1
            target = re.search(r"(\.LBB\w+)", operands)
            if target and "branch" in name and target[1] in labels:
                listing.loop_instructions += listing.instructions - labels[target[1]]
            if re.match(r"(global|buffer)_(load|store)", name):
                bits = next(bits for suffix, bits in widths.items() if suffix in name)
                listing.accesses[kinds.get(where, "bulk") if where else "bulk", bits] += 1

    def metadata(key: str) -> int:
        return int(re.search(rf"\.{key}:\s+(\d+)", assembly)[1])  # type: ignore[index]

    listing.registers = metadata("vgpr_count")  # of the unified file: VGPRs and AGPRs together
    listing.scalar_spills = metadata("sgpr_spill_count")
    # Private memory is where whatever finds no lane goes.
    memory = metadata("private_segment_fixed_size")
    listing.spill_bytes = max(4 * metadata("vgpr_spill_count"), memory)
    return listing


def _tool(name: str, *arguments: str) -> str:
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return subprocess.run([path, *arguments], check=True, capture_output=True, text=True).stdout
