"""What a compiled program moves: bytes to and from memory, and between devices.

Read from the text of the optimised program of one device, because XLA's own analysis counts the
body of a loop once, and fast on-chip memory as if it were HBM.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

KINDS = (
    *("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute"),
    *("collective-broadcast", "ragged-all-to-all"),
)
_FREE = (  # no data moves
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "partition-id"),
    *("replica-id", "after-all", "opt-barrier", "domain", "add-dependency"),
)
_BITS = {"pred": 8, "bf16": 16, "token": 0, "opaque": 0}  # of others, the number in their name
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\](?:\{([^}]*)\})?")
_NAME = re.compile(r"%([\w.\-]+)")


class Array(NamedTuple):
    """One array of an instruction's result."""

    bytes: float
    in_hbm: bool  # TPU: not in VMEM, SMEM, …


class Instruction(NamedTuple):
    """One line of the text."""

    name: str
    arrays: tuple[Array, ...]
    opcode: str
    operands: tuple[str, ...]
    rest: str  # attributes; of a constant or parameter, its value or number

    def attribute(self, name: str) -> str | None:
        """Find the computation that an instruction names by `name=%…`."""
        found = re.search(rf"\b{name}=%?([\w.\-]+)", self.rest)
        return found and found.group(1)


BETWEEN = "between slices"


class Moved(NamedTuple):
    """What one device moves in one call.

    Attributes:
      hbm_bytes: read and written, logical sizes: tiles may be padded.
      collectives: by kind {"count", "bytes", "wire_bytes"}: calls, the size of their results (of
        their operands for reduce-scatter), and what a device must send at least.
      unknown_loops: of which one round was counted.
    """

    hbm_bytes: float
    collectives: dict[str, dict[str, float]]
    unknown_loops: int

    @property
    def wire_bytes(self) -> float:
        """Count the bytes sent, of all kinds but `BETWEEN`."""
        return sum(of["wire_bytes"] for kind, of in self.collectives.items() if kind != BETWEEN)

    @property
    def slice_bytes(self) -> float:
        """Count the bytes sent to other slices."""
        return self.collectives.get(BETWEEN, {}).get("wire_bytes", 0.0)


def moved(text: str) -> Moved:
    """Count what a program moves, from `compiled.as_text()`."""
    return _Reader(text).read()


def parse(text: str) -> tuple[dict[str, dict[str, Instruction]], str]:
    """Parse the text to (computations, the name of the entry).

    Computations: name -> instruction by name, in order.
    """
    computations: dict[str, dict[str, Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if line.startswith(("%", "ENTRY")) and line.endswith("{"):
            name = _NAME.search(line).group(1) if "%" in line else line.split()[1]
            entry = name if line.startswith("ENTRY") else entry
            current = computations.setdefault(name, {})
        elif line.startswith("}"):
            current = None
        elif current is not None and " = " in line:
            found = _instruction(line)
            current[found.name] = found
    return computations, entry


def _instruction(line: str) -> Instruction:
    name, _, right = line.strip().removeprefix("ROOT ").partition(" = ")
    end = _closing(right, 0) + 1 if right.startswith("(") else right.index(" ")
    opcode, _, tail = right[end:].strip().partition("(")
    close = _closing("(" + tail, 0)
    inside, rest = tail[: close - 1], tail[close:]
    named = tuple(_NAME.findall(inside)) if opcode not in ("constant", "parameter") else ()
    return Instruction(name.lstrip("%"), _arrays(right[:end]), opcode, named,
                       rest if named else f"{inside} {rest}")  # fmt: skip


def _closing(text: str, start: int) -> int:
    depth = 0
    for place in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if not depth:
            return place
    return len(text)


def _arrays(shape: str) -> tuple[Array, ...]:
    return tuple(_array(*found) for found in _ARRAY.findall(shape))


def _array(dtype: str, dims: str, layout: str) -> Array:
    size = math.prod(int(n) for n in dims.split(",") if n)
    return Array(size * _bits(dtype) / 8, not re.search(r"S\([1-9]", layout))


def _bits(dtype: str) -> int:
    if dtype in _BITS:
        return _BITS[dtype]
    return int(re.search(r"\d+", dtype).group())


def group_size(rest: str, devices: int) -> int:
    """Count the devices in one group of a collective, from its attributes.

    `replica_groups` is written as lists of numbers, as an iota `[groups,size]<=[…]` or as axes of
    a mesh.
    """
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", rest):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", found.group(1)))
        chosen = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", found.group(2))
        return math.prod(int(part or sizes[axis]) for axis, part in chosen)
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]", rest):
        return int(found.group(1))
    if found := re.search(r"replica_groups=\{\{([\d,]*)\}", rest):
        return len(found.group(1).split(","))
    return devices


class _Reader:
    """Walks through the computations that run, with the number of times each does."""

    def __init__(self, text: str):
        self.computations, self.entry = parse(text)
        header = text.partition("\n")[0]
        counts = re.findall(r"(?:num_partitions|replica_count)=(\d+)", header)
        self.devices = math.prod(int(n) for n in counts)
        self.hbm_bytes, self.unknown_loops = 0.0, 0
        self.collectives: dict[str, dict[str, float]] = {}

    def read(self) -> Moved:
        self._walk(self.entry, 1)
        return Moved(self.hbm_bytes, self.collectives, self.unknown_loops)

    def _walk(self, name: str, times: float) -> None:
        computation = self.computations[name]
        for found in computation.values():
            if found.opcode == "while":
                self._walk(found.attribute("body"), times * self._trips(found, computation))
            elif found.opcode == "call":
                self._walk(found.attribute("to_apply"), times)
            elif found.opcode == "conditional":
                for branch in self._branches(found):
                    self._walk(branch, times)
            else:
                self.hbm_bytes += times * self._traffic(found, computation)
                self._collective(found, computation, times)

    def _branches(self, found: Instruction) -> list[str]:
        listed = re.search(r"branch_computations=\{([^}]*)\}", found.rest)
        names = _NAME.findall(listed.group(1)) if listed else []
        pair = [found.attribute(f"{which}_computation") for which in ("true", "false")]
        return names or [name for name in pair if name]

    # ---- loops -----------------------------------------------------------------------------------
    def _trips(self, loop: Instruction, computation: dict[str, Instruction]) -> int:
        """Count the rounds of a loop: as XLA says, or from the condition "counter < constant"."""
        if known := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.rest):
            return int(known.group(1))
        condition = self.computations[loop.attribute("condition")]
        last = list(condition.values())[-1]
        places = [self._resolve(name, condition) for name in last.operands]
        ends = [int(v.rest.split()[0]) for v in places if v and v.opcode == "constant"]
        counters = [v for v in places if v and v.opcode == "get-tuple-element"]
        if "direction=LT" not in last.rest or len(ends) != 1 or len(counters) != 1:
            self.unknown_loops += 1
            return 1
        index = int(re.search(r"index=(\d+)", counters[0].rest).group(1))
        init = computation.get(loop.operands[0])
        start = None
        if init is not None and init.opcode == "tuple":
            start = self._resolve(init.operands[index], computation)
        first = int(start.rest.split()[0]) if start and start.opcode == "constant" else 0
        return max(ends[0] - first, 0)

    def _resolve(self, name: str, computation: dict[str, Instruction]) -> Instruction | None:
        found = computation.get(name)
        while found and found.opcode in ("copy", "bitcast", "convert", "copy-done", "copy-start"):
            found = computation.get(found.operands[0])
        return found

    # ---- memory ----------------------------------------------------------------------------------
    def _traffic(self, found: Instruction, computation: dict[str, Instruction]) -> float:
        if found.opcode in _FREE or "AllocateBuffer" in found.rest:
            return 0.0
        operands = [computation[name].arrays for name in found.operands if name in computation]
        if found.opcode.endswith("-done"):
            return 0.0
        if found.opcode in ("copy-start", "slice-start"):  # (to, from, …) or ((from), to, …)
            first, second = found.arrays[:2]
            size = min(first.bytes, second.bytes)
            return size * (first.in_hbm + second.in_hbm)
        if found.opcode in ("send", "recv"):
            return _hbm(found.arrays[:1])
        if found.opcode in ("dynamic-slice", "slice", "gather"):
            return 2 * _hbm(found.arrays)
        if found.opcode == "dynamic-update-slice":
            return 2 * _hbm(operands[1])
        if found.opcode == "fusion":
            return self._fusion(found, operands)
        results = found.arrays[1:] if found.opcode.endswith("-start") else found.arrays
        return _hbm(results) + sum(map(_hbm, operands))

    def _fusion(self, found: Instruction, operands: list[tuple[Array, ...]]) -> float:
        """Count a fusion: it reads its operands, or slices of them, and writes results or parts."""
        inner = self.computations[found.attribute("calls")]
        aliased = re.search(r"output_to_operand_aliasing=\{(.*?\})\}", found.rest)
        pairs = re.findall(r"\{([\d,]*)\}: \((\d+)", aliased.group(1)) if aliased else []
        passed_in = {int(operand) for _, operand in pairs}
        passed_out = {int(place or 0) for place, _ in pairs}
        sources = {name: int(i.rest.split()[0]) for name, i in inner.items()
                   if i.opcode == "parameter"}  # fmt: skip
        users: dict[int, list[Instruction]] = {}
        for user in inner.values():
            for operand in user.operands[:1] if user.opcode in _SLICING else user.operands:
                origin = self._resolve(operand, inner)
                if origin and origin.name in sources:
                    users.setdefault(sources[origin.name], []).append(user)
        total = 0.0
        for number, arrays in enumerate(operands):
            if number in passed_in:
                continue
            uses = [u for u in users.get(number, []) if u.opcode not in _THROUGH]
            if uses and all(u.opcode in _SLICING for u in uses):
                read = sum(_size(u.arrays) for u in uses if u.opcode != "dynamic-update-slice")
                total += read * all(a.in_hbm for a in arrays)
            else:
                total += _hbm(arrays)
        root = list(inner.values())[-1]
        roots = root.operands if root.opcode == "tuple" else (root.name,)
        for place, array in enumerate(found.arrays):
            if place in passed_out or not array.in_hbm:
                continue
            made = self._resolve(roots[place], inner) if place < len(roots) else None
            if made and made.opcode == "dynamic-update-slice":
                update = inner.get(made.operands[1])
                total += _size(update.arrays) if update else 0.0
            else:
                total += array.bytes
        return total

    # ---- collectives -----------------------------------------------------------------------------
    def _collective(
        self, found: Instruction, computation: dict[str, Instruction], times: float
    ) -> None:
        for one, around, inside in self._inside(found, computation):
            kind, result = one.opcode.removesuffix("-start"), one.arrays
            if kind == "send" and "xla_megascale" in one.rest:
                self._record(BETWEEN, times, result[0].bytes, 1)
            if kind not in KINDS:
                continue
            operands = [a for name in one.operands if name in around for a in around[name].arrays]
            if one.opcode.endswith("-start") and kind != "all-reduce":
                result = result[len(operands) : 2 * len(operands)]
            if "all-reduce-scatter" in inside:  # how a TPU writes it: the slice is in the fusion
                kind = "reduce-scatter"
            n = group_size(one.rest, self.devices)
            size = _size(operands) if kind == "reduce-scatter" else _size(result)
            factor = {"all-reduce": 2 * (n - 1) / n, "collective-permute": 1}.get(kind, (n - 1) / n)
            self._record(kind, times, size, factor)

    def _record(self, kind: str, times: float, size: float, factor: float) -> None:
        record = self.collectives.setdefault(kind, {"count": 0, "bytes": 0.0, "wire_bytes": 0.0})
        for key, value in (("count", 1), ("bytes", size), ("wire_bytes", size * factor)):
            record[key] += times * value

    def _inside(
        self, found: Instruction, computation: dict[str, Instruction]
    ) -> Iterator[tuple[Instruction, dict[str, Instruction], str]]:
        """List the instruction, or those of the fusion or asynchronous call that it is."""
        called = found.attribute("calls")
        if not called or called not in self.computations:
            yield found, computation, ""
            return
        inner = self.computations[called]
        # A TPU repeats an asynchronous collective in the fusions that it overlaps with.
        repeats = called.startswith("async_collective_fusion") or any(
            "AsyncCollectiveDone" in i.rest for i in inner.values()
        )
        if not repeats:
            for one in inner.values():
                yield one, inner, called


_SLICING = ("dynamic-slice", "slice", "gather", "dynamic-update-slice")
_THROUGH = ("bitcast", "copy", "convert", "tuple")


def _size(arrays: tuple[Array, ...] | list[Array]) -> float:
    return float(np.sum([a.bytes for a in arrays]))


def _hbm(arrays: tuple[Array, ...] | list[Array]) -> float:
    return float(np.sum([a.bytes for a in arrays if a.in_hbm]))
