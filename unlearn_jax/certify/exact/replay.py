"""Replay segments of a chain, and compare what comes out with what it says."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from unlearn_jax import checkpoint, distributed, files
from unlearn_jax.certify.exact import chain
from unlearn_jax.registry import UserError
from unlearn_jax.request import Request

# Of the distance from the recorded end of a segment to the replayed one, over the distance that the
# segment goes, where bits cannot be compared; see docs/exact.md.
TOLERANCE = 0.05


class Replayed(NamedTuple):
    """A segment, computed again."""

    slice: int  # that enters; -1: what is there before the first step
    same: bool  # bit for bit: parameters, optimizer's state, key
    elsewhere: bool  # something else had computed it: devices, versions or code
    distance: float  # 0 if it is the same; see TOLERANCE


def replay(request: Request, workdir: Path, s: int) -> Replayed:
    """Compute segment s of a workdir's chain again, from its checkpoint on.

    Args:
      request: of the workdir's rows: its stage has all of `split.train`.
      workdir: of a training by slices; it is only read.
      s: number of the segment; -1: what the first one begins with.

    Raises:
      UserError: there is no such checkpoint, it is damaged, or several processes share no folder
        of temporary files.
    """
    from unlearn_jax import train  # it is above this module

    known = chain.read(workdir)
    steps, here = known["entrances"], chain.here(request.cfg, request.mesh)
    elsewhere = any(by != here for by in known["computed"][max(s, 0)])
    with _shared_folder() as folder:
        place = folder / "run"
        if s > 0 and distributed.first():
            inside = Path(chain.FOLDER, checkpoint.DIRECTORY, str(steps[s]))
            shutil.copytree(workdir / inside, place / inside)
            files.write_sealed(place / chain.FILE, chain.head(known, s), chain.FORMAT)
        distributed.everywhere(True)  # the others wait for the copy
        train.run(request.cfg, place, request=request, until=steps[s + 1])
        same = chain.read(place)["states"][s + 1] == known["states"][s + 1]
        distance = 0.0 if same else _distance(workdir, place, steps, s)
    return Replayed(s, same, elsewhere, distance)


@contextlib.contextmanager
def _shared_folder() -> Iterator[Path]:
    """Make a temporary folder, one for all processes of a job."""
    with tempfile.TemporaryDirectory() as own:
        folder = Path(distributed.agreed(own))
        if not distributed.everywhere(folder.exists()):
            raise UserError(
                f"{folder}: expected a folder that all processes of this job see. Set TMPDIR to "
                "one that is on a shared disk."
            )
        yield folder
        distributed.everywhere(True)  # else the first removes what others read


def _distance(workdir: Path, place: Path, steps: list[int], s: int) -> float:
    """Return ‖replayed - recorded‖ / ‖recorded - begin‖; of the very beginning over its norm."""
    end = [_params(where, steps, s + 1) for where in (workdir, place)]
    begin = _params(workdir, steps, s) if s >= 0 else jax.tree.map(np.zeros_like, end[0])
    return _norm(end[0], end[1]) / max(_norm(end[0], begin), 1e-30)


def _params(workdir: Path, steps: list[int], s: int) -> Any:
    where = workdir / chain.FOLDER if s < len(steps) - 1 else workdir
    return checkpoint.load_step(where, steps[s])[0]


def _norm(a: Any, b: Any) -> float:
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    each = [
        np.linalg.norm(np.asarray(x, np.float64) - np.asarray(y, np.float64)) for x, y in leaves
    ]
    return float(np.linalg.norm(each))
