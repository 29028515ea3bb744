"""FLOPs of a traced program: its matrix products and convolutions, loops counted as they run.

Plug-ins of GPUs and TPUs count nothing. XLA's own count, on CPUs, looks at a loop's body once,
however often it runs, and after sharding it misses products that were made into loops. This one is
of the whole program on all devices together, and the same on every platform.
"""

import itertools
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import Literal


class Flops(NamedTuple):
    """A count: a multiplication and an addition are two.

    Attributes:
      total: of one call.
      bounded: loops whose number of rounds depends on the data; their most is counted.
      unknown: loops of which nothing is known; one round is counted.
    """

    total: float = 0.0
    bounded: int = 0
    unknown: int = 0

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(*(a + b for a, b in zip(self, other, strict=True)))

    def times(self, n: int) -> "Flops":
        """Return the effort of n calls."""
        return self._replace(total=n * self.total)


def of(traced: jax.stages.Traced) -> float:
    """Count one call of `jax.jit(f).trace(*args)`, as `executed` does."""
    return executed(traced.jaxpr).total


class Counted:
    """A function of `jax.jit` that counts the FLOPs of its calls, which all have equal shapes.

    Attributes:
      jitted: the function.
      flops: of all calls so far.
      each: FLOPs of one call; 0 until it is compiled.
      compile_s: seconds that tracing and compiling took.
    """

    def __init__(self, jitted: Any):
        """Count from 0; nothing is compiled yet."""
        self.jitted, self.flops, self.each, self.compile_s = jitted, 0.0, 0.0, 0.0
        self._compiled: Any = None

    @property
    def compiled(self) -> bool:
        """Tell whether it has been compiled."""
        return self._compiled is not None

    def compile(self, *args: Any) -> bool:
        """Compile for the shapes of these arguments; return whether that was still to be done."""
        if self.compiled:
            return False
        began = time.perf_counter()
        traced = self.jitted.trace(*args)
        self._compiled, self.each = traced.lower().compile(), of(traced)
        self.compile_s = time.perf_counter() - began
        return True

    def __call__(self, *args: Any) -> Any:
        """Call the function, after compiling it if this is the first call."""
        self.compile(*args)
        self.flops += self.each
        return self._compiled(*args)


def written(jaxpr: Any) -> Flops:
    """Count FLOPs of everything in a jaxpr, such as `jax.jit(f).trace(*args).jaxpr`.

    Of a `cond`, the dearest branch counts; of code for several platforms, that for any. Elementwise
    operations do not count, as is usual where model FLOPs utilisation is reported.
    """
    return _sum(_equation(eqn, written) for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns)


def executed(jaxpr: Any) -> Flops:
    """Count FLOPs that a compiler leaves to be done: equal parts once, unused parts never.

    What `jax.checkpoint` computes again counts again.
    """
    graph = _Graph()
    closed = getattr(jaxpr, "jaxpr", jaxpr)
    inputs = [graph.add(("input", i), (), Flops()) for i in range(len(closed.invars))]
    outputs = graph.follow(closed, getattr(jaxpr, "consts", ()), inputs)
    return graph.sum(outputs)


def _sum(counts: Iterable[Flops]) -> Flops:
    return sum(counts, Flops())


def _equation(eqn: Any, count: Any) -> Flops:
    """Count one equation, with `count` for the jaxprs in it."""
    name, params = eqn.primitive.name, eqn.params
    if name == "dot_general":
        return Flops(_dot(eqn))
    if name == "conv_general_dilated":
        return Flops(_convolution(eqn))
    if name == "scan":
        return count(params["jaxpr"]).times(params["length"])
    if name == "while":
        return _while(eqn, count)
    if name == "cond":
        platforms = params.get("branches_platforms") or ()
        if None in platforms:  # `lax.platform_dependent`
            return count(params["branches"][platforms.index(None)])
        return max((count(branch) for branch in params["branches"]), key=lambda f: f.total)
    if name == "shard_map":  # its body is one device's program
        devices = math.prod(params["mesh"].shape[axis] for axis in params["manual_axes"])
        return count(params["jaxpr"]).times(devices)
    return _sum(count(inner) for inner in _inner(params))


def _inner(params: dict[str, Any]) -> Iterator[Any]:
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if hasattr(getattr(item, "jaxpr", item), "eqns"):
                yield item


def _dot(eqn: Any) -> float:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    lhs = eqn.invars[0].aval.shape
    return 2.0 * math.prod(eqn.outvars[0].aval.shape) * math.prod(lhs[d] for d in contracted)


def _convolution(eqn: Any) -> float:
    """Count a convolution; what falls on padding, or on a dilated input's zeros, is no work."""
    params, spec = eqn.params, eqn.params["dimension_numbers"]
    lhs, kernel = (var.aval.shape for var in eqn.invars)
    out = eqn.outvars[0].aval.shape
    pairs = 1.0
    for i, (low, _) in enumerate(params["padding"]):
        size, dilated = lhs[spec.lhs_spec[2 + i]], params["lhs_dilation"][i]
        place = (
            np.arange(out[spec.out_spec[2 + i]])[:, None] * params["window_strides"][i]
            + np.arange(kernel[spec.rhs_spec[2 + i]]) * params["rhs_dilation"][i]
            - low
        )
        inside = (place >= 0) & (place <= (size - 1) * dilated) & (place % dilated == 0)
        pairs *= int(inside.sum())
    batch, features = (out[d] for d in spec.out_spec[:2])
    return 2.0 * batch * features * kernel[spec.rhs_spec[1]] * pairs


def _while(eqn: Any, count: Any) -> Flops:
    """Count a `fori_loop` over numbers that are not all known: from 0 or later up to its end."""
    params = eqn.params
    both = count(params["body_jaxpr"]) + count(params["cond_jaxpr"])
    if not both.total:
        return both
    cond, consts = params["cond_jaxpr"].jaxpr, params["cond_nconsts"]
    carried = eqn.invars[consts + params["body_nconsts"] :]
    values = dict(zip(cond.invars, [*eqn.invars[:consts], *carried], strict=True))
    if [e.primitive.name for e in cond.eqns] == ["lt"]:
        compared = [v if isinstance(v, Literal) else values.get(v) for v in cond.eqns[0].invars]
        start, end = (int(v.val) if isinstance(v, Literal) else None for v in compared)
        if end is not None:
            rounds = both.times(max(end - (start or 0), 0))
            return rounds if start is not None else rounds + Flops(bounded=1)
    return both + Flops(unknown=1)


class _Graph:
    """Equations as nodes; equal ones, of equal inputs, are one node."""

    CALLS = ("jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call")

    def __init__(self):
        self.nodes: list[tuple[tuple[int, ...], Flops]] = []
        self.found: dict[Any, int] = {}
        self.again = itertools.count()
        self.inside = -1  # which checkpoint

    def add(self, key: Any, inputs: tuple[int, ...], flops: Flops) -> int:
        key = (self.inside, key, inputs)
        try:
            known = self.found.get(key)
        except TypeError:  # parameters that cannot be compared
            known, key = None, ("unlike", next(self.again))
        if known is None:
            self.found[key] = known = len(self.nodes)
            self.nodes.append((inputs, flops))
        return known

    def follow(self, jaxpr: Any, consts: Sequence[Any], inputs: Sequence[int]) -> list[int]:
        """Return follow an equation: return the nodes of its outputs, from those of its inputs."""
        of = dict(zip(jaxpr.invars, inputs, strict=True))
        for var, const in zip(jaxpr.constvars, consts, strict=True):
            of[var] = self.add(("const", id(const)), (), Flops())

        def node(var: Any) -> int:
            if isinstance(var, Literal):
                return self.add(("literal", str(var.aval), repr(var.val)), (), Flops())
            return of[var]

        for eqn in jaxpr.eqns:
            args = [node(var) for var in eqn.invars]
            name, inner = eqn.primitive.name, list(_inner(eqn.params))
            if name in self.CALLS and inner:
                outs = self.follow(inner[0].jaxpr, inner[0].consts, args)
            elif name in ("checkpoint", "remat2"):
                outside, self.inside = self.inside, next(self.again)
                outs = self.follow(inner[0], (), args)
                self.inside = outside
            else:
                key = (name, tuple(eqn.params.items()))
                made = self.add(key, tuple(args), _equation(eqn, executed))
                outs = [self.add(("output", i), (made,), Flops()) for i in range(len(eqn.outvars))]
            of.update(zip(eqn.outvars, outs, strict=True))
        return [node(var) for var in jaxpr.outvars]

    def sum(self, outputs: Sequence[int]) -> Flops:
        """Sum the effort of all nodes that the outputs depend on."""
        needed, todo = set(), list(outputs)
        while todo:
            node = todo.pop()
            if node not in needed:
                needed.add(node)
                todo += self.nodes[node][0]
        return _sum(self.nodes[node][1] for node in needed)
