"""What a workdir has: configs, splits, leases, records, certificates, checkpoints."""

import dataclasses
import json
import shutil
import tarfile
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.helpers import sets, tiny, wide
from tools.fuzz.format import Format
from tools.fuzz.mutate import BYTES, JSON, LINES, Tree, dumped, sealed
from unlearn_jax import checkpoint, complete, files, models, request
from unlearn_jax.certify import attack, certificate, public, stage
from unlearn_jax.certify import verify as certified
from unlearn_jax.certify.exact import chain
from unlearn_jax.certify.exact import verify as exact
from unlearn_jax.config import identity
from unlearn_jax.config.validation import validate
from unlearn_jax.convert import __main__ as conversions
from unlearn_jax.data import lineage, splits
from unlearn_jax.registry import of_record
from unlearn_jax.report import issue, receipt
from unlearn_jax.report import verify as receipts
from unlearn_jax.training import lease, start

GOLDEN = Path(__file__).resolve().parents[2] / "tests/golden/certified.tar.xz"
KIND = "unlearn_jax.fuzz.v1"
SEALED = sealed(KIND, files.sealed)
SPLIT = splits.resolve(sets.SOURCE, request=sets.CATS, retain=sets.COMPLEMENT, holdout=sets.TEST,
                       seed=0)  # fmt: skip


# ---- sealed records ----


def _records(made: Path) -> None:
    files.write_sealed(
        made / "a/record.json", {"a": 1, "b": [{"c": "x"}, 2.5]}, "unlearn_jax.fuzz.v1"
    )
    states = [{"params": "0" * 64, "opt": "1" * 64}] * 4
    values = {"config": "c" * 64, "entrances": [0, 3, 6, 9], "states": states,
              "slices": [{"n": 4, "sha256": "2" * 64}] * 3, "computed": [[{"platform": "cpu"}]] * 3,
              "links": []}  # fmt: skip
    for s in range(3):
        values["links"].append(chain.link(values, s))
    files.write_sealed(made / "b" / chain.FILE, values, chain.FORMAT)
    _receipt(made / "c")


def _receipt(folder: Path) -> None:
    (folder / "unlearned").mkdir(parents=True)
    (folder / "unlearned/config.json").write_text("{}")
    asked = {"text": "Forget 3 images.", "kind": "ids", "sha256": "0" * 64, "n": 3, "names": ["a"]}
    model = {"step": 3, "sha256": "1" * 64}
    parents = {"path": "original", "claim": "", "requests": [{"text": "x", "date": "y", "n": 2}]}
    values = {"case": "C-17", "due": "", "created": receipt.now(), "conclusions": ["none"],
              "asked": asked, "parents": parents, "models": {"original": model, "unlearned": model},
              "sets": {"forget": "2" * 64}, "versions": {"python": "3"}, "purged": None,
              "files": receipt.digests(folder, receipt.walk(folder)[0]),
              "delete": [{"path": "original", "why": "w", "yours": False, "bytes": 7}]}  # fmt: skip
    receipt.seal(folder, values)


def _chain(folder: Path) -> Any:
    values = chain.read(folder)
    chain.unchanged(values, values)
    return [chain.link(chain.head(values, s + 1), s) for s in range(len(values["slices"]))]


def _differences(folder: Path) -> Any:
    known = receipt.read(folder)
    return receipts._differences(folder, known), receipt.rows(known)


# ---- config.json, conversion.json ----


def _configs(made: Path) -> None:
    for name, config in (("a", tiny.get_config()), ("b", wide.get_config())):
        config.data.slices.count = 3 if name == "b" else 0
        identity.claim(made / name, config, rows=SPLIT.manifest["hash"])
        splits.save(SPLIT, made / name / "split.json")
        shutil.copytree(made / name, made / name / "unlearned")
    mae = models.MODELS["mae"](image_size=16, patch=4, dim=32, depth=1, heads=2, decoder_dim=16,
                               decoder_depth=1, decoder_heads=2)  # fmt: skip
    said = {"format": 1, "family": "mae", "model": dataclasses.asdict(mae), "unsaid": ["heads"]}
    files.write_json(made / "c/conversion.json", said)


def _relevant(tree: Tree) -> None:
    """Make both parts of config.json agree again."""
    recorded = json.loads(tree["config.json"])
    said = identity.ConfigDict(identity.tuples(recorded["config"]))
    again = identity.relevant(said, rows=recorded["relevant"]["rows"])
    tree["config.json"] = dumped({"config": recorded["config"], "relevant": again})


@of_record()
def _config(folder: Path) -> Any:
    cfg, _ = identity.of_run(folder)
    validate(cfg)
    return models.of(cfg)


def _fields(folder: Path) -> Any:
    return start._check_fields(SimpleNamespace(heads=2, image_size=16), folder)


# ---- split.json ----


def _splits(made: Path) -> None:
    more = splits.resolve(sets.SOURCE, request={"kind": "random", "fraction": 0.2, "seed": 1},
                          retain=sets.COMPLEMENT, holdout=sets.RESERVE, seed=0,
                          poison={"fraction": 0.25, "seed": 0, "jitter": 0.5})  # fmt: skip
    for name, split in (("a", SPLIT), ("b", more)):
        (made / name).mkdir()
        splits.save(split, made / name / "split.json")
    old = {key: value for key, value in SPLIT.manifest.items() if key != "id_keys"}
    old |= {"format": splits.OLD_FORMAT, "sets": old["sets"] | {"holdout": [1]}}
    files.write_json(made / "c/split.json", old | {"hash": splits._hash(old)})


def _seal_split(tree: Tree) -> None:
    values = json.loads(tree["split.json"])
    tree["split.json"] = dumped(values | {"hash": splits._hash(values)})


def _split(folder: Path) -> Any:
    split = splits.load(folder / "split.json")
    said = [splits.describe(split), splits.describe_poison(split), split.asked, split.served]
    return said, issue._set_hash(split, split.remaining)


# ---- lease.json ----


def _leases(made: Path) -> None:
    (made / "a").mkdir()
    held = lease.Held(lease.Holder("host", "boot 1", 7, "123"), "owner", 1.7e9, 1.7e9)
    (made / "a" / lease.FILE).write_text(json.dumps(held))


class _Clock:
    """A clock that jumps."""

    now = 1.8e9

    def time(self) -> float:
        return self.now

    monotonic = time

    def sleep(self, seconds: float) -> None:
        self.now += 30 * seconds


def _lease(folder: Path) -> None:
    lease.Lease(folder, lease.Holder("other", "boot 2", 8, "1"), _Clock()).give_back()


def _held(folder: Path) -> Any:
    if found := lease._read(folder / lease.FILE):
        return lease._in_use(folder, found)
    return None


# ---- a certified run, checkpoints ----


def _golden(made: Path) -> None:
    models.MODELS["wide"] = wide.Wide
    with tempfile.TemporaryDirectory() as whole, tarfile.open(GOLDEN) as tar:
        tar.extractall(whole, filter="data")
        shutil.copytree(Path(whole) / "certified", made / "a")
    found = certificate.read(made / "a/noisy/certificate.json")
    audit = json.loads(json.dumps(attack.draw(found, runs=40, significance=0.05)))
    of = {"certificate": files.file_digest(made / "a/noisy/certificate.json"), "drawn": audit}
    files.write_sealed(
        made / "a/noisy" / attack.FILE, of | attack.judge(found, audit), attack.FORMAT
    )
    for name in "bcdefghijklmno":  # without the parameters, of which reading takes most of the time
        shutil.copytree(made / "a", made / name)
        for folder in (*(made / name).rglob("d"), *(made / name).rglob("ocdbt.process_0")):
            shutil.rmtree(folder, ignore_errors=True)


def _seal_run(tree: Tree) -> None:
    """Write into the certificate what the files are now."""
    values = json.loads(tree["noisy/certificate.json"])
    for key, name in (("config", "config.json"), ("split", "split.json"),
                      ("metrics", "metrics.jsonl")):  # fmt: skip
        values["hashes"][key] = files.hashlib.sha256(tree[f"noisy/{name}"]).hexdigest()
    tree["noisy/certificate.json"] = SEALED.close(values)
    values = json.loads(tree[f"noisy/{attack.FILE}"])
    content = tree["noisy/certificate.json"]
    values["certificate"] = files.hashlib.sha256(content).hexdigest()
    tree[f"noisy/{attack.FILE}"] = SEALED.close(values)


def _verified(folder: Path) -> str:
    run = folder / "noisy"
    return certified.report(certified.verify(run, folder / "original"), 100)


def _checkpoints(made: Path) -> None:
    with tempfile.TemporaryDirectory() as whole, tarfile.open(GOLDEN) as tar:
        tar.extractall(whole, filter="data")
        shutil.copytree(Path(whole) / "certified/noisy", made / "a")
    for name in ("certificate.json", "metrics.jsonl"):
        (made / "a" / name).unlink()


def _seal_meta(tree: Tree) -> None:
    for path in tree:
        if path.endswith("meta/metadata"):
            values = json.loads(tree[path])
            values.pop("sha256", None)
            tree[path] = json.dumps(values | {"sha256": files.digest(values)}).encode()


def _loaded(folder: Path) -> Any:
    like, meta = checkpoint.stored(folder)
    return checkpoint.load_params(folder, like), meta


def _past(folder: Path) -> Any:
    return checkpoint.is_done(folder), request._of_old_version(folder)


FORMATS = {
    "sealed": Format(
        _records,
        {
            "read_sealed": lambda p: files.read_sealed(p / "record.json", KIND, "a record"),
            "chain": _chain,
            "receipt": lambda p: receipt.text(receipt.read(p)),
            "differences": _differences,
            "open": receipt.check_open,
        },
        {"*.json": SEALED, "receipt.txt": BYTES},
        modules=("files.py", "report/receipt.py"),
    ),
    "config": Format(
        _configs,
        {
            "of_run": _config,
            "claim": lambda p: identity.claim(p, tiny.get_config(), rows=SPLIT.manifest["hash"]),
            "load_model": complete._described,
            "issue": issue.config,
            "exact": lambda p: exact.of_model(p) or request._of_old_version(p),
            "public": lambda p: public.check(p, SPLIT),
            "conversion": lambda p: conversions._model("mae", p),
            "fields": _fields,
        },
        {"config.json": JSON, "conversion.json": JSON, "unlearned/config.json": JSON},
        seal=_relevant,
        modules=tuple(f"config/{x}.py" for x in ("identity", "validation", "ranges", "certified")),
    ),
    "split": Format(
        _splits,
        {
            "load": _split,
            "of source": lambda p: splits.load(p / "split.json", sets.SOURCE),
            "lineage": lambda p: [lineage.check_model(SPLIT, p, role)
                                  for role in ("original", "retrained", "reference")],
        },
        {"split.json": JSON},
        seal=_seal_split,
        modules=("data/splits.py", "data/lineage.py"),
    ),
    "lease": Format(
        _leases, {"take": _lease, "in use": _held}, {"*": JSON}, modules=("training/lease.py",)
    ),
    "certificate": Format(
        _golden,
        {
            "verify": _verified,
            "attack": lambda p: attack.read(p / "noisy"),
            "clipped": lambda p: stage.clipping_text(stage.clipped_share(p / "noisy")),
        },
        {
            "noisy/certificate.json": SEALED,
            "noisy/epsilon.json": SEALED,
            "noisy/config.json": JSON,
            "noisy/metrics.jsonl": LINES,
        },
        seal=_seal_run,
        modules=("certify/verify.py", "certify/certificate.py"),
    ),
    "checkpoint": Format(
        _checkpoints,
        {"meta": checkpoint.read_meta, "load": _loaded, "past": _past},
        {"*/meta/metadata": JSON, "*/params/*": BYTES, "*/params/_METADATA": JSON,
         "*/_CHECKPOINT_METADATA": JSON, "config.json": JSON},
        seal=_seal_meta,
        modules=("checkpoint.py",),
    ),
}  # fmt: skip
