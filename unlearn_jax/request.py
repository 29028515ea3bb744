"""What every binary makes of a config before it does its own work."""

import json
import runpy
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from unlearn_jax import checkpoint, data, distributed, models, sharding
from unlearn_jax.data import served, splits
from unlearn_jax.data.splits import Split
from unlearn_jax.models import Model, Params


class Setup(NamedTuple):
    """A config resolved: devices, images, the request's rows, the architecture."""

    cfg: ConfigDict
    mesh: Mesh
    source: data.Source
    split: Split
    model: Model

    def like(self) -> Params:
        """The model's parameters as ShapeDtypeStructs with their shardings."""
        shapes = jax.eval_shape(self.model.init, jax.random.key(0))
        shardings = sharding.params_sharding(shapes, self.mesh, **self.cfg.sharding)
        return sharding.abstract(shapes, shardings)

    def entry(self) -> served.Entry:
        """This request as models and data remember it."""
        pixels = data.open_data(self.cfg)[1].pixels if distributed.first() else None
        hash, text = self.split.manifest["hash"], splits.describe(self.split)
        policy = self.cfg.request.copies
        return served.entry(hash, text, self.source, self.split.asked, pixels, policy)


class Past(NamedTuple):
    """What a model has forgotten before, and who says so if the model itself does not."""

    requests: list[served.Entry]
    claim: str


def resolve(cfg: ConfigDict, workdir: Path | None = None, siblings: bool = False) -> Setup:
    """Return the setup of a config that has been validated, and print what was understood.

    Args:
      cfg: the config.
      workdir: of the run, or of the request; one that was begun goes on with the past that it began
        with, whatever else was forgotten in the meantime.
      siblings: the workdir is that of one stage, and other stages of the request are beside it.

    Raises:
      ValueError: the mesh, the data or the request are not what they must be.
    """
    mesh = sharding.make_mesh(**cfg.mesh)
    source, split = load(cfg, workdir, siblings)
    for line in split.said:
        _say(line)
    return Setup(cfg, mesh, source, split, models.build(**cfg.model.to_dict()))


def load(
    cfg: ConfigDict, workdir: Path | None = None, siblings: bool = False
) -> tuple[data.Source, Split]:
    """Return the source and the split of a config, as `resolve` does."""
    past, beside = past_of(cfg), data.beside(cfg)

    def known(hashes):
        entries = [of for of in beside if hashes is None or of["hash"] in hashes]
        if past is None:
            return data.load(cfg, entries)
        ours = {of["hash"] for of in past.requests}
        return data.load(cfg, past.requests, [of for of in entries if of["hash"] not in ours])

    for began in _begun(workdir, siblings) if workdir else ():
        try:
            source, split = known({of["hash"] for of in began["served"] + began["apart"]})
        except ValueError:  # of another request; if it is ours, it is raised again below
            continue
        if split.manifest["asked"] != began["asked"]:
            continue
        before, now = ({of["hash"] for of in m["served"]} for m in (began, split.manifest))
        if before == now:
            return source, split
        if past is None:  # with a model it is another request, of what that one has left
            raise ValueError(
                f"The runs of this request in or beside {workdir} leave out the images of "
                f"{len(before)} earlier request(s), this one would leave out those of {len(now)}. "
                "Give the same config.init_from as they had or, for a stage from scratch, that "
                "model as config.request.served."
            )
    return known(None)


def entries_of(cfg: ConfigDict, split: Split) -> list[served.Entry]:
    """Return the entries of the requests that a split leaves out as served."""
    past = past_of(cfg)
    hashes = {of["hash"] for of in split.manifest["served"]}
    known = served.union(past.requests if past else (), data.beside(cfg))
    return [of for of in known if of["hash"] in hashes]


def past_of(cfg: ConfigDict) -> Past | None:
    """Return the requests that the model of a config has served; None if there is no model yet.

    The model is that of init_from or, for a stage from scratch, of `request.served`. Its
    checkpoints say it; so does the split.json of a model trained by an earlier version.

    Raises:
      ValueError: a model that does not say, without request.served="none", or with it although it
        says otherwise.
    """
    claimed = cfg.request.served
    if cfg.init_from and claimed not in ("", "none"):
        raise ValueError(
            f"request.served: the model is that of config.init_from, {cfg.init_from}, which says "
            f"itself what it has served; got {claimed!r}, too. Leave one out."
        )
    folder = cfg.init_from or ("" if claimed == "none" else claimed)
    if not folder:
        return None
    found = checkpoint.read_meta(folder).get("served")
    if found is None:
        found = _of_old_version(Path(folder))
    if claimed == "none" and found and found["requests"]:
        raise ValueError(
            f'request.served is "none", but the model in {folder} has served '
            f'{len(found["requests"])} request(s). Set request.served="".'
        )
    if found:
        return Past(found["requests"], found["claim"])
    if claimed == "none":
        return Past([], 'config.request.served="none"')
    raise ValueError(
        f"request.served: the model in {folder} does not say which requests it has served, so "
        'images that it has forgotten could be taught to it again. Set request.served="none" if '
        "there were none."
    )


def _of_old_version(folder: Path) -> dict | None:
    """The past of a model from scratch of an earlier version: there was none."""
    path = folder / "config.json"
    if not (folder / "split.json").exists() or not path.exists():
        return None
    config = json.loads(path.read_text("utf-8"))["config"]
    stage = config["stages"][config["stage"]]
    if stage["scratch"] and stage["rows"] == "train" and not config["init_from"]:
        return {"requests": [], "claim": ""}
    return None


def _begun(workdir: Path, siblings: bool) -> list[dict]:
    """The manifests of runs of the request that are there, this one's first."""
    folders = [workdir, workdir / "unlearned", workdir / "original"]
    folders += [workdir.parent / name for name in ("unlearned", "original") if siblings]
    paths = [folder / "split.json" for folder in folders]
    found = [splits.load(path).manifest for path in paths if path.exists()]
    found = [m for m in found if "apart" in m]
    return list({m["hash"]: m for m in found}.values())


@cache  # once, although every stage resolves the request
def _say(line: str) -> None:
    if distributed.first():
        print(line, file=sys.stderr)


def original_workdir(cfg: ConfigDict, workdir: Path) -> Path:
    """Where the trained original is: cfg.init_from if that is given, else workdir/original."""
    return Path(cfg.init_from) if cfg.init_from else workdir / "original"


if __name__ == "__main__":
    runpy.run_module("unlearn_jax.report.preview", run_name="__main__", alter_sys=True)
