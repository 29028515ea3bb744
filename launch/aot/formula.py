"""Facts that need no compiler: parameters, state per chip, arithmetic per image, gradient bytes."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from launch.aot import programs
from launch.aot.chips import GIB, TPUS

WAYS = (1, 16, 256)  # over how many chips the parameters are sharded


def load(path: str) -> ConfigDict:
    """Load the config in a file of the repository."""
    return importlib.import_module(".".join(Path(path).with_suffix("").parts)).get_config()


def facts(cfg: ConfigDict) -> dict[str, Any]:
    """Compute {"parameters", "trained", "state_bytes": by sharding, "flops", "model_flops"}.

    The state is the parameters that are trained, the optimizer's, and all of the frozen original's;
    FLOPs are of a step and one image.
    """
    phase, _ = programs.phase_of(cfg)
    state = {}
    for ways in WAYS:
        step = programs.step(cfg, _mesh(ways), phase=phase, rows=2 * ways)
        state[ways] = sum(map(programs.bytes_per_device, step.args[:2]))
    mesh, rows = _mesh(1), 8  # half of them are to forget
    executed = programs.step(cfg, mesh, phase=phase, rows=rows)
    model = programs.step(cfg, mesh, phase=phase, rows=rows, remat=False)
    state_like, target = executed.args[:2]
    return {
        "parameters": programs.parameters(target or state_like.params),
        "trained": programs.parameters(state_like.params),
        "state_bytes": state,
        "flops": executed.flops().total / rows,
        "model_flops": model.flops().total / rows,
    }


def _mesh(ways: int) -> Mesh:
    """Make a mesh of one device many times: it is only asked for shapes."""
    devices = np.empty((1, ways), object)
    devices[...] = jax.devices()[0]
    return Mesh(devices, programs.AXES)


def table(found: Mapping[str, dict[str, Any]]) -> str:
    """Write Markdown of `facts` by title."""
    head = ["model", "parameters (M)", "trained (M)", "TFLOP per image", "without recomputation"]
    head += [f"state GiB, {ways} way{'s' * (ways > 1)}" for ways in WAYS]
    head += [f"images/s per {name}, at most" for name in TPUS]
    lines = [head, ["---"] + ["---:"] * (len(head) - 1)]
    for title, f in found.items():
        numbers = [f"{f['parameters'] / 1e6:.1f}", f"{f['trained'] / 1e6:.1f}"]
        numbers += [f"{f['flops'] / 1e12:.3f}", f"{f['model_flops'] / 1e12:.3f}"]
        numbers += [f"{f['state_bytes'][ways] / GIB:.2f}" for ways in WAYS]
        numbers += [f"{chip.peak_flops / f['flops']:,.0f}" for chip in TPUS.values()]
        lines.append([title, *numbers])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
