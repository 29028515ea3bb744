"""A request: a config resolved, which every command does before its own work.

    python -m unlearn_jax.request --config=configs/quickstart.py --out=runs/request

shows what a request means before anything is trained, see `report.preview`.
"""

import runpy
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

from unlearn_jax import checkpoint, data, distributed, files, models, sharding
from unlearn_jax.config.validation import validate
from unlearn_jax.data import served, splits
from unlearn_jax.data.splits import Split
from unlearn_jax.models import Model, Params
from unlearn_jax.registry import UserError, unknown


class Request:
    """A config resolved: which images go and which stay, the model, the devices.

    Attributes:
      cfg: the config, which has been validated.
      mesh: of the devices.
      source: all images.
      split: which of them are forgotten, retained, held out.
      model: the architecture; parameters are apart from it.

    >>> import unlearn_jax as uj
    >>> request = uj.Request(uj.load_config("quickstart"))
    >>> print(str(request)[:59])
    Forget 250 of 2,500 training images of cifar10_sample/1.0.0
    >>> request.batch("forget", n=2)["image"].shape
    (2, 32, 32, 3)
    >>> request.map(lambda batch: batch["image"].max((1, 2, 3)), request.split.forget).shape
    (250,)
    """

    def __init__(
        self,
        cfg: ConfigDict,
        workdir: Path | None = None,
        *,
        siblings: bool = False,
        model: Model | None = None,
        split: Split | None = None,
    ):
        """Resolve a config, and print what was understood of it.

        Args:
          cfg: the config.
          workdir: of the run, or of the request; one that was begun goes on with the past that it
            began with, whatever else was forgotten in the meantime.
          siblings: the workdir is that of one stage, and other stages of the request are beside it.
          model: an architecture to use instead of the config's.
          split: sets of the config's data that were resolved before.

        Raises:
          UserError: the config, the mesh, the data or the request are not what they must be.
        """
        validate(cfg)
        self.cfg, self.mesh = cfg, sharding.make_mesh(**cfg.mesh)
        if split:
            self.source, self.split = data.open_data(cfg)[0], split
        else:
            self.source, self.split = load(cfg, workdir, siblings)
        for line in self.split.said:
            _say(line)
        self.model: Model = model or models.of(cfg)

    def __str__(self) -> str:
        """Say in a sentence what is forgotten."""
        return splits.describe(self.split)

    def like(self) -> Params:
        """Return the model's parameters as ShapeDtypeStructs with their shardings."""
        shapes = jax.eval_shape(self.model.init, jax.random.key(0))
        shardings = sharding.params_sharding(shapes, self.mesh, **self.cfg.sharding)
        return sharding.abstract(shapes, shardings)

    def batches(
        self,
        rows: Int[np.ndarray, "_"],
        *,
        batch_size: int = 0,
        seed: int | None = None,
        is_forget: bool = False,
    ) -> Iterator[dict[str, np.ndarray]]:
        """Yield this process's part of batches of these rows, once and in order.

        Args:
          rows: of the source.
          batch_size: rows over all devices; 0: the config's.
          seed: of random masks; None: the config's.
          is_forget: what batches say of their rows.
        """
        size, loading = batch_size or self.cfg.batch_size, self.cfg.data
        return data.make_eval(
            self.source,
            rows,
            batch_size=size,
            task=self.cfg.task.to_dict(),
            seed=self.cfg.seed if seed is None else seed,
            is_forget=is_forget,
            places=sharding.local_rows(size, self.mesh),
            num_threads=loading.num_threads,
            prefetch=loading.prefetch,
        )

    def map(
        self,
        function: Callable[..., Any],
        rows: Int[np.ndarray, "_"],
        *args: Any,
        edit: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]] = lambda batch: batch,
        **options: Any,
    ) -> Any:
        """Return function(*args, batch) of all these rows, on the host, in their order.

        Args:
          function: compiled, such as by `sharding.jit_rows`; its outputs are arrays [b …].
          rows: of the source.
          args: what the function gets before each batch.
          edit: changes a batch on the host before it is used.
          options: of `batches`.
        """
        found = []
        for batch in self.batches(rows, **options):
            values = function(*args, sharding.global_batch(edit(batch), self.mesh))
            found.append(distributed.fetch(values))
        # The last batch is filled up with copies of the last row.
        return jax.tree.map(lambda *parts: np.concatenate(parts)[: len(rows)], *found)

    def batch(self, name: str, n: int = 8) -> dict[str, np.ndarray]:
        """Return n images of a set as a model gets them, always the same ones.

        Args:
          name: "forget", "retain" (what remains, all of it) or "holdout" (its audit part).
          n: at most so many.

        Returns:
          {"image" [n h w 3] float32 in [-1, 1], "mask" [n h w 1], "label", "index" [n], …}.

        Raises:
          UserError: no such set, or an empty one.
        """
        sets = {"forget": "forget", "retain": "remaining", "holdout": "audit"}
        if name not in sets:
            raise UserError(f"request.batch: {unknown(name, sets)}.")
        rows = np.random.default_rng(0).permutation(getattr(self.split, sets[name]))[:n]
        if not len(rows):
            raise UserError(f"request.batch: the set {name!r} of this request is empty.")
        size = -(-len(rows) // self.mesh.size) * self.mesh.size
        task = self.cfg.task.to_dict()
        batches = data.make_eval(
            self.source, np.sort(rows), batch_size=size, task=task, seed=self.cfg.seed
        )
        return {key: values[: len(rows)] for key, values in next(iter(batches)).items()}

    # ---- the commands, for Python: they are above this module, and imported when asked for

    def train(
        self, stage: str, workdir: Path | str, start: Any = None, reference: Any = None
    ) -> Any:
        """Train a stage into a workdir, resuming what is there; return its model.

        Args:
          stage: "original", "unlearned", "retrained", or another one of the config.
          workdir: of this run.
          start: a model, or its workdir, that the stage starts from: `init_from`.
          reference: likewise `reference_from`.

        Returns:
          The `complete.Completer` of the finished run.
        """
        from unlearn_jax import complete, train

        cfg = self.cfg.copy_and_resolve_references()
        cfg.stage = stage
        for key, given in (("init_from", start), ("reference_from", reference)):
            if given is not None:
                cfg[key] = str(getattr(given, "workdir", given))
        train.run(cfg, Path(workdir))
        return complete.load_model(workdir)

    def audit(self, workdir: Path | str) -> dict[str, Any]:
        """Audit the models in workdir/{original,unlearned,retrained}, see `audit.run.run`."""
        from unlearn_jax.audit import run

        return run.run(self.cfg, Path(workdir))

    def evaluate(self, workdir: Path | str) -> dict[str, Any]:
        """Measure these models on every set, see `evaluate.results.run`."""
        from unlearn_jax.evaluate import results

        return results.run(self.cfg, Path(workdir))

    def report(self, workdir: Path | str) -> Path:
        """Write workdir/report.html, of what was audited and evaluated there; return its path."""
        from unlearn_jax.report import results_page

        return results_page.write(Path(workdir))

    def pipeline(self, workdir: Path | str) -> dict[str, Any]:
        """Do all of it, from training to the report; return the results, see `pipeline.run`."""
        from unlearn_jax import pipeline

        return pipeline.run(self.cfg, Path(workdir))

    def compare(self, workdir: Path | str) -> dict[str, Any]:
        """Compare the config's methods over its seeds, see `compare.run`."""
        from unlearn_jax import compare

        return compare.run(self.cfg, Path(workdir))

    def entry(self) -> served.Entry:
        """Return this request as models and data remember it."""
        pixels = data.open_data(self.cfg)[1].pixels if distributed.first() else None
        hash, text = self.split.manifest["hash"], splits.describe(self.split)
        policy = self.cfg.request.copies
        return served.entry(hash, text, self.source, self.split.asked, pixels, policy)


class Past(NamedTuple):
    """What a model has forgotten before, and who says so if the model itself does not."""

    requests: list[served.Entry]
    claim: str


def load(
    cfg: ConfigDict, workdir: Path | None = None, siblings: bool = False
) -> tuple[data.Source, Split]:
    """Return the source and the split of a config, as a `Request` has them."""
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
            raise UserError(
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
      UserError: a model that does not say, without request.served="none", or with it although it
        says otherwise.
    """
    claimed, scratch = cfg.request.served, cfg.stages[cfg.stage].scratch
    if cfg.init_from and not scratch and claimed not in ("", "none"):
        raise UserError(
            f"request.served: the model is that of config.init_from, {cfg.init_from}, which says "
            f"itself what it has served; got {claimed!r}, too. Leave one out."
        )
    named = "" if claimed == "none" else claimed
    folder = (scratch and named) or cfg.init_from or named
    if not folder:
        return None
    found = checkpoint.read_meta(folder).get("served")
    if found is None:
        found = _of_old_version(Path(folder))
    if claimed == "none" and found and found["requests"]:
        raise UserError(
            f'request.served is "none", but the model in {folder} has served '
            f'{len(found["requests"])} request(s). Set request.served="".'
        )
    if found:
        return Past(found["requests"], found["claim"])
    if claimed == "none":
        return Past([], 'config.request.served="none"')
    raise UserError(
        f"request.served: the model in {folder} does not say which requests it has served, so "
        'images that it has forgotten could be taught to it again. Set request.served="none" if '
        "there were none."
    )


def _of_old_version(folder: Path) -> dict | None:
    """Return the past of a model from scratch of an earlier version: there was none."""
    path = folder / "config.json"
    if not (folder / "split.json").exists() or not path.exists():
        return None
    with files.of_others(path, "the record of a run"):
        config = files.read_json(path, "the record of a run")["config"]
        stage = config["stages"][config["stage"]]
        if stage["scratch"] and stage["rows"] == "train" and not config["init_from"]:
            return {"requests": [], "claim": ""}
    return None


def _begun(workdir: Path, siblings: bool) -> list[dict]:
    """Return the manifests of runs of the request that are there, this one's first."""
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
    """Return where the original is: cfg.init_from if that is given, else workdir/original."""
    return Path(cfg.init_from) if cfg.init_from else workdir / "original"


if __name__ == "__main__":
    runpy.run_module("unlearn_jax.report.preview", run_name="__main__", alter_sys=True)
