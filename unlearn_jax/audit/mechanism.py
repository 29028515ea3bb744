"""Attacks the certified mechanism itself: self-test of its noise, and both bounds of its epsilon.

    python -m unlearn_jax.audit.mechanism --workdir=runs/certified/unlearned

Takes mechanism and arguments from certificate.json and runs the code that a run uses, thousands of
times, on the worst case that we know: starts as far apart as the projection permits, and a gradient
that drives each run away from the centre, on the side on which it is. No model and no data are
needed: the bound holds whatever they are, so it must hold here.

**Guarantee**: it can refute a certificate, never support it; see `audit.epsilon`. Not covered:
whether the run called this code with these arguments (`certify verify` looks at that).
"""

import dataclasses
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

from unlearn_jax import cli
from unlearn_jax.audit import epsilon
from unlearn_jax.certify import certificate, noisy

ASSUMED = (
    "independent runs from two fixed starts, fresh noise in each",
    "the worst case that we know, in few dimensions; another attack may do better",
)
_SHAPES = {"a": (16, 8), "b": (16, 8), "c": (64,)}  # two alike, to see shared keys
_BEFORE_ALL_STEPS = 2**31 - 1


def make_release(
    mechanism: str, arguments: Mapping[str, Any]
) -> Callable[[Mapping[str, Any], Any], dict[str, jax.Array]]:
    """A function (start, secret) -> what one run of the mechanism releases; the centre is 0.

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


def audit(
    found: certificate.Certificate, *, runs: int, significance: float, seed: int = 0
) -> dict[str, Any]:
    """{"self_test": of `epsilon.mechanism_self_test`, "bounds": of `epsilon.compare`}.

    Args:
      found: the certificate.
      runs: of each world.
      significance: of the self-test, and of the lower bound.
      seed: of the halves of the runs; the noise comes from the operating system.
    """
    release = jax.jit(make_release(found.mechanism, found.arguments))
    worlds = [_start(1.0), _start(-1.0 if found.certifier == "retrain" else 0.0)]

    @jax.jit
    def statistics(start, secrets):
        return jax.lax.map(lambda s: release(start, s)["a"][0, 0], secrets, batch_size=256)

    values = [np.asarray(statistics(start, _secrets(runs)), np.float64) for start in worlds]
    bounds = epsilon.two_worlds(*values, delta=found.delta, significance=significance, seed=seed)
    compared = epsilon.compare(dataclasses.asdict(found), bounds, ASSUMED)
    return {"self_test": _self_test(found, significance), "bounds": compared}


def _self_test(found: certificate.Certificate, significance: float) -> dict[str, Any]:
    """Of one step (of noise that is added once: of that), with and without noise."""
    arguments = dict(found.arguments) | ({"steps": 1} if found.steps else {})
    if found.mechanism == "model_clipping":
        arguments |= {"init_noise_std": None}
    reach = arguments.get("model_clip_norm") or (
        arguments["init_radius"] + arguments.get("step_size", 0) * arguments.get("clip_norm", 0)
    )
    secrets = _secrets(6)

    releases = {
        std: jax.jit(make_release(found.mechanism, arguments | {"noise_std": std}))
        for std in (0.0, found.noise_std)
    }

    def mechanism(step, std):
        return releases[std](_start(1.0), secrets[step])

    centre = {name: np.zeros(shape) for name, shape in _SHAPES.items()}
    return epsilon.mechanism_self_test(
        mechanism, centre, noise_std=found.noise_std, reach=reach, significance=significance
    )


def _start(side: float) -> dict[str, jax.Array]:
    """Far outside of any ball, on one axis."""
    start = {name: jnp.zeros(shape) for name, shape in _SHAPES.items()}
    return start | {"a": start["a"].at[0, 0].set(1e4 * side)}


def _secrets(runs: int) -> jax.Array:
    """Keys [runs, 4], from one secret of the operating system."""
    secret = noisy.secret_key(os.urandom(32))
    return jax.vmap(lambda run: noisy.at_step(secret, run))(jnp.arange(runs))


def main(workdir: Path) -> None:
    """The binary."""
    found = certificate.read(workdir / certificate.FILE)
    result = audit(found, runs=flags.FLAGS.runs, significance=flags.FLAGS.significance)
    test, bounds = result["self_test"], result["bounds"]
    noise = test["noise"]
    print(
        f"self-test: {'passed' if test['passed'] else 'FAILED'}; noise {noise['value']:.4f} of "
        f"what it should be ({noise['ci_low']:.4f} to {noise['ci_high']:.4f}, n = {noise['n']}), "
        f"noiseless output {test['distance']:.6g} from the centre, allowed {test['reach']:.6g}"
    )
    print(bounds["text"])
    for kind, words in bounds["assumptions"].items():
        print(f"Assumed by the {kind} bound:", *[f"- {text}" for text in words], sep="\n")
    if bounds["refuted"] or not test["passed"]:
        raise ValueError("the mechanism is not what the certificate says, see above.")


if __name__ == "__main__":
    flags.DEFINE_integer("runs", 4000, "Runs of the mechanism from each of the two starts.")
    flags.DEFINE_float("significance", 0.01, "Of the self-test, and of the lower bound.")
    cli.start(main, needs=("workdir",), example="--workdir=runs/certified/unlearned")
