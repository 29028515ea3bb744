"""Attack the certified mechanism itself: self-test of its noise, and a lower bound of its epsilon.

`python -m unlearn_jax.audit epsilon` takes mechanism and arguments from certificate.json and runs
the code that a run uses, thousands of times, on the worst case that we know: starts as far apart as
the projection permits, and a gradient that drives each run away from the centre, on the side on
which it is. No model and no data are needed: the bound holds whatever they are, so it must hold
here. What was drawn, and what follows from it, is epsilon.json.

**Guarantee**: it can refute a certificate, never support it; see `audit.epsilon`. Not covered:
whether the run called this code with these arguments (`certify verify` looks at that).
"""

import dataclasses
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from unlearn_jax import files
from unlearn_jax.certify import certificate, lower_bound
from unlearn_jax.certify.bounds.arguments import probability
from unlearn_jax.registry import UserError
from unlearn_jax.training import noisy

FILE, FORMAT = "epsilon.json", "unlearn_jax.epsilon.v1"
RUNS, SIGNIFICANCE = 4000, 1e-3
ASSUMED = (
    "independent runs from two fixed starts, fresh noise in each",
    "the worst case that we know, in few dimensions; another attack may do better",
)
_SHAPES = {"a": (16, 8), "b": (16, 8), "c": (64,)}  # two alike, to see shared keys
_BEFORE_ALL_STEPS = 2**31 - 1


def make_release(
    mechanism: str, arguments: Mapping[str, Any]
) -> Callable[[Mapping[str, Any], Any], dict[str, jax.Array]]:
    """Make a function (start, secret) -> what one run of the mechanism releases; the centre is 0.

    Args:
      mechanism: of a certificate.
      arguments: of a certificate.
    """
    a = dict(arguments)
    centre = {name: jnp.zeros(shape) for name, shape in _SHAPES.items()}
    radius = a.get("init_radius") or 0.0
    initial = a["noise_std"] if mechanism == "output_perturbation" else a.get("init_noise_std")
    steps = 0 if mechanism == "output_perturbation" else int(a["steps"])
    tx = noisy.noisy_sgd(
        learning_rate=a.get("step_size", 1.0),
        noise_std=a["noise_std"],
        clip_norm_l2=a.get("clip_norm", math.inf),
        weight_decay=a.get("weight_decay", 0.0),
        model_clip_norm=a.get("model_clip_norm", math.inf),
    )

    def release(start, secret):
        x = noisy.project_to_ball(start, centre, radius) if radius else start
        if initial:
            x = noisy.gaussian_perturb(x, initial, noisy.at_step(secret, _BEFORE_ALL_STEPS))

        def step(t, x):
            # Outwards, far more than any clip norm lets through.
            side = jnp.where(x["a"][0, 0] >= 0, 1.0, -1.0)
            gradient = jax.tree.map(jnp.zeros_like, x)
            gradient["a"] = gradient["a"].at[0, 0].set(-1e4 * side)
            more = {"secret": secret, "step": t, "reference": centre}
            updates, _ = tx.update(gradient, optax.EmptyState(), x, **more)
            return optax.apply_updates(x, updates)

        return jax.lax.fori_loop(0, steps, step, x)

    return release


def jit_statistics(mechanism: str, arguments: Mapping[str, Any]) -> Callable[..., Any]:
    """Compile (start, secrets [runs, 4]) -> the attacked parameter that each run releases."""
    release = jax.jit(make_release(mechanism, arguments))

    @jax.jit
    def statistics(start, secrets):
        return jax.lax.map(lambda s: release(start, s)["a"][0, 0], secrets, batch_size=256)

    return statistics


def run(workdir: Path, *, runs: int = RUNS, significance: float = SIGNIFICANCE) -> dict[str, Any]:
    """Attack the certificate in workdir; return what is written to workdir/epsilon.json.

    {"certificate": sha256 of its file, "drawn": of `draw`, and what `judge` makes of it}.

    Args:
      workdir: of a certified run.
      runs: of each world.
      significance: of the self-test, and of the lower bound.

    Raises:
      UserError: there is no certificate, or it was altered.
    """
    path = workdir / certificate.FILE
    found = certificate.read(path)
    drawn = draw(found, runs=runs, significance=significance)
    made = {"certificate": files.file_digest(path), "drawn": drawn, **judge(found, drawn)}
    files.write_sealed(workdir / FILE, made, FORMAT)
    return made


def read(workdir: Path) -> dict[str, Any]:
    """Read what `run` wrote about the certificate that is there now; draw its conclusions again.

    Raises:
      UserError: no audit, one of another certificate, or conclusions that do not follow from what
        was drawn.
    """
    path, of = workdir / FILE, workdir / certificate.FILE
    found = certificate.read(of)
    values = files.read_sealed(path, FORMAT, "the audit of a certificate")
    if values.get("certificate") != files.file_digest(of):
        raise UserError(f"{path}: it is of another certificate than {of}.")
    try:
        again = {**values, **judge(found, values["drawn"])}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: damaged ({type(error).__name__}: {error}).") from error
    if not _agree(json.loads(json.dumps(again)), values):
        raise UserError(f"{path}: what it says does not follow from what was drawn.")
    return again


def draw(
    found: certificate.Certificate, *, runs: int, significance: float, seed: int = 0
) -> dict[str, Any]:
    """Draw {"two_worlds": counts of `epsilon.two_worlds`, "noise", "distance" of the self-test}.

    Nothing that follows from it: that is left to `judge`.

    Args:
      found: the certificate.
      runs: of each world.
      significance: of the self-test, and of the lower bound.
      seed: of the halves of the runs; the noise comes from the operating system.
    """
    statistics = jit_statistics(found.mechanism, found.arguments)
    worlds = [_start(1.0), _start(-1.0 if found.certifier == "retrain" else 0.0)]

    values = [np.asarray(statistics(start, _secrets(runs)), np.float64) for start in worlds]
    worlds = lower_bound.two_worlds(
        *values, delta=found.delta, significance=significance, seed=seed
    )
    kept = ("counts", "threshold", "n", "significance", "delta")
    test = _self_test(found, significance)
    noise = {key: value for key, value in test["noise"].items() if key != "passed"}
    return {
        "two_worlds": {key: worlds[key] for key in kept},
        "noise": noise,
        "distance": test["distance"],
    }


def judge(found: certificate.Certificate, drawn: Mapping[str, Any]) -> dict[str, Any]:
    """Judge the draws: {"self_test": {"passed", "reach"}, "bounds", "repeated": what was}.

    "bounds" is what `epsilon.compare` returns.

    Args:
      found: the certificate.
      drawn: of `draw`, or read from a file and not to be trusted.

    Raises:
      UserError: counts that no audit of this certificate has.
    """
    worlds, significance = drawn["two_worlds"], drawn["two_worlds"]["significance"]
    probability(significance=significance)
    of_each = [n - n // 2 for n in worlds["n"]]
    for tp, p, fp, n in worlds["counts"].values():
        if sorted((p, n)) != sorted(of_each) or not (0 <= tp <= p and 0 <= fp <= n):
            raise UserError(f"expected counts of {worlds['n']} runs, got {worlds['counts']}")
    bounds = lower_bound.lower_bounds(
        worlds["counts"], delta=found.delta, significance=significance
    )
    reach = _reach(found)
    passed = (
        lower_bound.passes(drawn["noise"]["p_values"], significance) and drawn["distance"] <= reach
    )
    return {
        "self_test": {"passed": passed, "reach": reach},
        "bounds": lower_bound.compare(dataclasses.asdict(found), {**worlds, **bounds}, ASSUMED),
        "repeated": _repeated(found),
    }


def _repeated(found: certificate.Certificate) -> str:
    size = sum(math.prod(shape) for shape in _SHAPES.values())
    steps = f"its {found.steps} noised steps" if found.steps else "its projection and noise"
    starts = "one far outside of the ball, one at its centre"
    if found.certifier == "retrain":
        starts = "far outside of the ball on opposite sides"
    return (
        f"the mechanism alone, {steps}, by this package's code with the certificate's arguments: "
        f"{size} parameters, two starts, {starts}, a gradient that points outwards; no model and "
        "no data"
    )


def _reach(found: certificate.Certificate) -> float:
    """Return how far from the centre one step may end, before its noise."""
    a = found.arguments
    return a.get("model_clip_norm") or (
        a["init_radius"] + a.get("step_size", 0) * a.get("clip_norm", 0)
    )


def _self_test(found: certificate.Certificate, significance: float) -> dict[str, Any]:
    """Test one step, or the release of a mechanism that adds noise once, with and without noise."""
    arguments = dict(found.arguments) | ({"steps": 1} if found.steps else {})
    if found.mechanism == "model_clipping":
        arguments |= {"init_noise_std": None}
    secrets = _secrets(6)

    releases = {
        std: jax.jit(make_release(found.mechanism, arguments | {"noise_std": std}))
        for std in (0.0, found.noise_std)
    }

    def mechanism(step, std):
        return releases[std](_start(1.0), secrets[step])

    centre = {name: np.zeros(shape) for name, shape in _SHAPES.items()}
    return lower_bound.mechanism_self_test(
        mechanism, centre, noise_std=found.noise_std, reach=_reach(found), significance=significance
    )


def _start(side: float) -> dict[str, jax.Array]:
    """Return a start far outside of any ball, on one axis."""
    start = {name: jnp.zeros(shape) for name, shape in _SHAPES.items()}
    return start | {"a": start["a"].at[0, 0].set(1e4 * side)}


def _secrets(runs: int) -> jax.Array:
    """Return keys [runs, 4], from one secret of the operating system."""
    secret = noisy.secret_key(os.urandom(32))
    return jax.vmap(lambda run: noisy.at_step(secret, run))(jnp.arange(runs))


def _agree(a: Any, b: Any) -> bool:
    """Tell whether records are equal, but for the rounding of another version of scipy."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_agree(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_agree, a, b))
    if type(a) is type(b) is float:
        return math.isclose(a, b, rel_tol=1e-9)
    return type(a) is type(b) and a == b
