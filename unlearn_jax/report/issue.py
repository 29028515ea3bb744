"""Issue the receipt of a request: what was asked, what was done, and what must now be deleted.

    unlearn-jax receipt --workdir=runs/quickstart          # the pipeline does this at its end
    unlearn-jax receipt --workdir=runs/quickstart --purge  # deletes what the receipt lists

Writes receipt.json, with the sha256 of every file of the workdir, receipt.txt, a page to print and
sign, and report.html with a section of the same. What lies outside of the workdir is listed and
never touched. `unlearn-jax verify` checks all of it.
"""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from unlearn_jax import checkpoint, cli, distributed, files, sharding
from unlearn_jax.certify import certificate
from unlearn_jax.certify.stage import params_hash
from unlearn_jax.data import lineage, splits
from unlearn_jax.registry import UserError
from unlearn_jax.report import receipt as record
from unlearn_jax.report import results_page
from unlearn_jax.report.receipt import MUST_GO, PICTURES, RELEASED
from unlearn_jax.training import lease


def write(workdir: Path) -> None:
    """Write the receipt of a finished request and, if there are results, its page.

    All processes of a job must call it; the first one writes.

    Raises:
      UserError: the original or the unlearned model is missing or damaged, there is a link in the
        workdir, or the request was purged.
    """
    record.check_open(workdir)
    cfg, run = config(workdir), _json(workdir / RELEASED / "config.json")["config"]
    original = workdir / "original"
    if not original.is_dir():
        original = Path(run["init_from"]).absolute()
    facts = told(workdir) | {"purged": None}
    facts["models"] = {"original": model(original), RELEASED: model(workdir / RELEASED)}
    if not distributed.first():
        return
    names, odd = record.walk(workdir)
    if odd:
        raise UserError(
            f"{workdir}: expected regular files, for the receipt vouches for each; {odd[0]} is a "
            "link or something else. Put the file itself there."
        )
    facts["created"], facts["parents"]["path"] = record.now(), str(original)
    facts["versions"] = certificate.versions() | {"source": certificate.code_hash()}
    run["init_from"] = original  # where it is now
    facts["delete"] = record.to_delete(names) + _elsewhere(workdir, cfg, run)
    if (workdir / "results.json").exists():
        facts["versions"] |= _json(workdir / "results.json")["versions"]
        facts["delete"] += [PICTURES] if cfg.get("report", {}).get("pictures", True) else []
        results_page.write(workdir, facts)
    record.seal(workdir, facts | {"files": record.digests(workdir, record.walk(workdir)[0])})


def told(workdir: Path) -> dict[str, Any]:
    """Return what a receipt says that follows from files that stay, so that it can be verified."""
    cfg, split = config(workdir), splits.load(workdir / RELEASED / "split.json")
    served = checkpoint.read_meta(workdir / RELEASED).get("served") or {"requests": [], "claim": ""}
    own = [of["ids"] for of in served["requests"] if of["hash"] == split.manifest["hash"]]
    past = [of for of in served["requests"] if of["hash"] != split.manifest["hash"]]
    request, named = split.manifest["request"], cfg.get("report", {}).get("names", True)
    sets = {"forget": split.forget, "retain": split.remaining, "holdout": split.audit}
    return {
        **{key: cfg["request"].get(key, "") for key in ("case", "due")},
        "asked": {
            "text": splits.describe(split),
            "kind": request["kind"],
            "sha256": request.get("sha256"),  # of the list, as it was when it was read
            "n": len(split.asked),
            "names": own[0] if own and named else None,
        },
        "parents": {
            "claim": served["claim"],
            "requests": [{"text": x["text"], "date": x["date"], "n": len(x["ids"])} for x in past],
        },
        "sets": {name: _set_hash(split, rows) for name, rows in sets.items()}
        | {"split": split.manifest["hash"]},
        "conclusions": conclusions(workdir),
    }


def _set_hash(split: splits.Split, rows: np.ndarray) -> str:
    """Hash the ids of rows, in any order."""
    keys = lineage.keys_of(split, rows) if "id_keys" in split.manifest else rows
    return hashlib.sha256(np.sort(keys).astype("<u8").tobytes()).hexdigest()


def conclusions(workdir: Path) -> list[str]:
    """Return what the audit concluded, in words."""
    if not (workdir / "audit.json").exists():
        return ["no audit: nothing is known of what is left of the images"]
    found = _json(workdir / "audit.json").get("conclusion")
    if found and files.problems(found, {"text": str}):
        raise UserError(f"{workdir / 'audit.json'}: expected a conclusion in words.")
    return [found["text"] if found else "not tested: the audit is of an earlier version"]


def model(folder: Path) -> dict[str, Any]:
    """Return {"step", "sha256"} of a finished run: a hash of its parameters, not of its files."""
    shapes, _ = checkpoint.stored(folder)
    mesh = sharding.make_mesh(data=1, fsdp=-1)
    like = sharding.abstract(shapes, sharding.params_sharding(shapes, mesh))
    params, meta = checkpoint.load_params(folder, like)
    return {"step": meta["step"], "sha256": params_hash(params)}


def _elsewhere(workdir: Path, cfg: Mapping[str, Any], run: Mapping[str, Any]) -> list[dict]:
    """List what lies outside of the workdir, which only its owner can judge."""
    data, log = cfg["data"], cfg.get("log", {}).get("to", "")
    packed = "packed images: `unlearn-jax prepare --remove` takes them out"
    places = {
        run["init_from"]: MUST_GO[0][1],
        run["reference_from"]: MUST_GO[1][1],
        cfg["compare"]["models"]: MUST_GO[1][1],
        data["path"] or data["data_dir"]: packed if data["kind"] == "records" else "the images",
        cfg["request"]["file"]: "the list",
        str(files.cache_folder()): "compiled programs and hashes of images, of all runs",
    }
    found = {str(Path(place).absolute()): why for place, why in places.items() if place}
    inside = str(workdir.absolute())
    found = {path: why for path, why in found.items() if not f"{path}/".startswith(f"{inside}/")}
    found |= {log: "a function of yours, which got pictures"} if ":" in log else {}
    sizes = {path: os.stat(path).st_size for path in found if os.path.isfile(path)}
    sizes |= {path: sum(record.walk(Path(path))[0].values()) for path in found
              if (Path(path) / checkpoint.DIRECTORY).is_dir()}  # fmt: skip
    return [{"path": path, "why": why, "yours": True, "bytes": sizes.get(path)}
            for path, why in found.items()]  # fmt: skip


def _json(path: Path, schema: Any = dict) -> Any:
    return files.read_json(path, "what a finished request has", schema=schema)


def config(workdir: Path) -> dict[str, Any]:
    """Return the config of a request: of its results if there are any, else of its run."""
    results = workdir / "results.json"
    path = results if results.exists() else workdir / RELEASED / "config.json"
    return _json(path, {"config": {"request": dict}})["config"]


def main(workdir: Path, purge: bool, yes: bool) -> None:
    """Run the command."""
    if not workdir.is_dir():
        raise UserError(f"--workdir: expected the folder of a finished request, got {workdir}.")
    with lease.take(workdir):
        if purge:
            from unlearn_jax.report import purge as deletion  # it is above this module

            deletion.run(workdir, sure=yes)
        else:
            write(workdir)
    print(record.text(record.read(workdir)))


if __name__ == "__main__":
    flags.DEFINE_bool("purge", False, "Delete what the receipt lists in the workdir.")
    flags.DEFINE_bool("yes", False, "Do not ask first.")
    cli.start(main, needs=("workdir", "purge", "yes"), example="--workdir=runs/quickstart --purge")
