"""The receipt: complete, bound to every file; what must go goes, and nothing else."""

import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import made_request, wide
from tests.helpers.pages import Page, assert_self_contained
from unlearn_jax import complete, files, pipeline, train
from unlearn_jax.certify import certificate
from unlearn_jax.config import identity
from unlearn_jax.config.validation import validate
from unlearn_jax.data import splits
from unlearn_jax.models import MODELS
from unlearn_jax.registry import UserError
from unlearn_jax.report import issue, purge, receipt, results_page, verify

PHASES = ("decouple", "noisy", "retain")


@pytest.fixture(scope="module", autouse=True)
def _wide_is_a_model():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "wide", wide.Wide)
        yield


def results_of(root, cfg, tmp):
    """The files of an evaluation and an audit, made by hand, of this config."""
    results = made_request.make_results() | {"config": json.loads(identity.to_json(cfg))}
    made = made_request.make_workdir(tmp, results, rows=2)
    for name in ("results.json", "examples.npz", "grids.npz"):
        shutil.copy(made / name, root / name)
    files.write_json(root / "audit.json", {"conclusion": {"text": "Refuted by <b> (n = 60)."}})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished request with a certificate and its receipt."""
    root = tmp_path_factory.mktemp("made") / "run"
    cfg = wide.get_config()
    cfg.request.case, cfg.request.due = "C-17 <b>", "2026-12-31"
    train.run(cfg, root / "original")
    train.run(wide.certified(cfg, root / "original", PHASES), root / "unlearned")
    for name in ("retrained", "shadow1"):
        shutil.copytree(root / "original", root / name)
    (root / "unlearned" / "tensorboard").mkdir()
    (root / "unlearned" / "tensorboard" / "events").write_bytes(b"pictures")
    results_of(root, cfg, tmp_path_factory.mktemp("results") / "run")
    issue.write(root)
    return root


@pytest.fixture(scope="module")
def purged(made, tmp_path_factory):
    """The same, once what must go is gone."""
    root = tmp_path_factory.mktemp("purged") / "run"
    shutil.copytree(made, root)
    purge.run(root, sure=True)
    return root


@pytest.fixture
def copy(made, tmp_path):
    return shutil.copytree(made, tmp_path / "run")


@pytest.fixture
def handed(purged, tmp_path):
    """A purged copy, to tamper with."""
    return shutil.copytree(purged, tmp_path / "run")


def contents(root):
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def reseal(root, change=lambda values: None, rehash=()):
    """The receipt with other values and a sha256 that fits, as a forger would make it."""
    values = receipt.read(root)
    values["files"] |= receipt.digests(root, rehash)
    change(values)
    receipt.seal(root, values)


# ---- what it says


@pytest.mark.long
def test_it_says_what_was_asked_and_binds_it_to_the_models(made):
    said, split = receipt.read(made), splits.load(made / "unlearned" / "split.json")
    assert said["case"] == "C-17 <b>" and said["due"] == "2026-12-31" and not said["purged"]
    assert said["asked"]["n"] == 250 == len(set(said["asked"]["names"]))
    assert said["sets"]["split"] == split.manifest["hash"] and len(set(said["sets"].values())) == 4
    found = certificate.read(made / "unlearned" / certificate.FILE).hashes
    hashes = {name: of["sha256"] for name, of in said["models"].items()}
    assert hashes == {"original": found["original"], "unlearned": found["released"]}
    assert said["conclusions"] == ["Refuted by <b> (n = 60)."]
    assert {"unlearn_jax", "jax", "python", "source"} <= set(said["versions"])
    files_there = contents(made).keys() - {receipt.FILE, receipt.TEXT}
    assert said["files"].keys() == files_there
    text = (made / receipt.TEXT).read_text()
    seal = json.loads((made / receipt.FILE).read_text())["sha256"]
    for part in ("C-17 <b>", "2026-12-31", seal, hashes["unlearned"], "Name ____", "not yet"):
        assert part in text


def test_the_list_of_what_must_go_is_complete_and_has_reasons_and_sizes(made):
    entries = {of["path"]: of for of in receipt.read(made)["delete"]}
    inside = {path for path, of in entries.items() if not of["yours"]}
    step = max(map(int, os.listdir(made / "unlearned" / "checkpoints")))
    own = {f"checkpoints/{step}/opt", "tensorboard"}
    assert inside == {f"unlearned/{name}" for name in own} | {
        "original", "retrained", "shadow1", "grids.npz", "report.html"
    }  # fmt: skip
    size = sum(p.stat().st_size for p in (made / "original").rglob("*") if p.is_file())
    assert entries["original"]["bytes"] == size and all(of["why"] for of in entries.values())
    assert str(files.cache_folder()) in entries.keys() - inside


def test_what_lies_outside_is_yours_to_delete(made, tmp_path):
    root = tmp_path / "run"
    shutil.copytree(made / "unlearned", root / "unlearned")
    photos, names = tmp_path / "photos", tmp_path / "names.txt"
    names.write_text("cat/1.png")
    (root / "unlearned" / certificate.FILE).unlink()
    saved = root / "unlearned" / "checkpoints"
    shutil.copytree(next(saved.iterdir()), saved / "4")  # without noise, older ones are kept
    path = root / "unlearned" / "config.json"
    recorded = json.loads(path.read_text())
    recorded["config"]["init_from"] = str(made / "original")
    recorded["config"]["data"] |= {"kind": "folder", "path": str(photos)}
    recorded["config"]["request"]["file"] = str(names)
    files.write_json(path, recorded)
    issue.write(root)
    said = receipt.read(root)
    assert (
        said["parents"]["path"] == str(made / "original")
        and said["conclusions"][0][:8] == "no audit"
    )
    yours = {of["path"]: of["bytes"] for of in said["delete"] if of["yours"]}
    assert yours[str(photos)] is None and yours[str(names)] == 9
    assert yours[str(made / "original")] > 10_000
    purge.run(root, sure=True)
    assert names.exists() and (made / "original" / "checkpoints").exists()
    assert len(os.listdir(saved)) == 1 and not (saved / "4").exists()
    verify.verify(root)


def test_the_page_has_it_and_is_the_same_when_written_again(made):
    page = Page(made / receipt.PAGE)
    assert_self_contained(page)
    assert "receipt" in page.values("id") and "C-17 <b>" in page.text and "<b>C" not in page.html
    before = page.html
    results_page.write(made)
    assert (made / receipt.PAGE).read_text() == before


def test_an_audit_of_an_earlier_version_concludes_nothing(tmp_path):
    files.write_json(tmp_path / "audit.json", {"verdicts": {"ood": {"word": "unlearned"}}})
    assert issue.conclusions(tmp_path) == ["not tested: the audit is of an earlier version"]


@pytest.mark.parametrize("shown", [True, False])
def test_names_and_pictures_can_be_left_out(copy, shown):
    results = json.loads((copy / "results.json").read_text())
    ids = receipt.read(copy)["asked"]["names"]
    results["config"]["report"] = {"names": shown, "pictures": shown}
    results |= {"limits": [], "past": {"requests": [], "claim": ""}}
    results["copies"] = {"exact": None, "near": [[*ids[:2], 3]]}
    files.write_json(copy / "results.json", results)
    if not shown:
        (copy / "grids.npz").unlink()  # is not needed
    issue.write(copy)
    page = Page(copy / receipt.PAGE)
    assert ("img" in page.tags) == shown == ("images" in page.values("id"))
    for name in (receipt.PAGE, receipt.FILE, receipt.TEXT):
        assert any(id in (copy / name).read_text() for id in ids) == shown


def test_a_day_that_there_is_not_is_refused_and_keys_of_the_receipt_change_no_run():
    cfg = wide.get_config()
    before = identity.relevant(cfg)
    cfg.request.update({"case": "C-17", "due": "2026-02-30"})
    cfg.report.names = False
    assert identity.relevant(cfg) == before
    with pytest.raises(UserError, match="request.due: expected a day as 2026-12-31.*'2026-02-30'"):
        validate(cfg)
    cfg.request.due = "2028-02-29"
    validate(cfg)


def test_the_unlearned_model_does_not_go_on_with_the_originals_optimizer(made, tmp_path):
    """Without that optimizer's state the same comes out, bit for bit; with Adam, it would not."""
    found = []
    for name in ("with", "without"):
        shutil.copytree(made / "original", tmp_path / name)
        if name == "without":
            shutil.rmtree(next((tmp_path / name / "checkpoints").glob("*/opt")))
        cfg = wide.certified(wide.get_config(), tmp_path / name, ("retain",), delta=0.0)
        train.run(cfg, tmp_path / f"{name}-unlearned")
        found.append(issue.model(tmp_path / f"{name}-unlearned"))
    assert found[0] == found[1] != issue.model(made / "original")


# ---- what goes


def test_a_purge_deletes_what_is_listed_and_nothing_else(made, purged, capsys):
    before, after = contents(made), contents(purged)
    entries = receipt.read(made)["delete"]
    assert before.keys() - after.keys() == {
        name for name in before if receipt.under(name, entries) and name != receipt.PAGE
    }
    assert not after.keys() - before.keys()
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {receipt.FILE, receipt.TEXT, receipt.PAGE}
    assert not (purged / "original").exists() and not (purged / "unlearned/tensorboard").exists()
    assert "img" not in Page(purged / receipt.PAGE).tags
    said = receipt.read(purged)["purged"]
    gone = before.keys() - after.keys()
    assert said["files"] == len(gone) and said["bytes"] == sum(len(before[name]) for name in gone)
    assert f"at {said['time']}" in (purged / receipt.TEXT).read_text()


def test_the_released_model_is_there_after_a_purge_and_its_certificate_verifies(made, purged):
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    a, b = (complete.load_model(root / "unlearned").complete(image) for root in (made, purged))
    assert (a == b).all()
    (purged / "lease.json").touch()  # of a job that looks on
    assert verify.verify(purged) == receipt.read(purged)
    (purged / "lease.json").unlink()


def test_nothing_goes_before_the_words_are_typed(copy, monkeypatch):
    before = contents(copy)

    def nobody(prompt):
        raise EOFError

    for answer in (lambda prompt: "yes", nobody):
        monkeypatch.setattr("builtins.input", answer)
        with pytest.raises(UserError, match="nothing was deleted. --yes does not ask"):
            purge.run(copy)
    assert contents(copy) == before
    monkeypatch.setattr("builtins.input", lambda prompt: prompt.split("'")[1])
    purge.run(copy)
    verify.verify(copy)


def test_an_interrupted_purge_goes_on(copy, monkeypatch):
    unlink, calls = Path.unlink, []

    def fails_once(path, **options):
        calls.append(path)
        if len(calls) == 30:
            raise PermissionError(f"{path}")
        unlink(path, **options)

    monkeypatch.setattr(Path, "unlink", fails_once)
    with pytest.raises(OSError):
        purge.run(copy, sure=True)
    assert not receipt.read(copy)["purged"]
    with pytest.raises(UserError, match="still there, must be deleted"):
        verify.verify(copy)
    purge.run(copy, sure=True)
    assert verify.verify(copy)["purged"]["files"] > 50


def test_a_purge_follows_no_link_and_leaves_what_came_later(copy, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.png").write_bytes(b"1")
    (copy / "original" / "link").symlink_to(tmp_path / "mine")
    (copy / "original" / "notes.txt").write_text("mine")
    purge.run(copy, sure=True)
    assert (tmp_path / "mine" / "photo.png").exists()
    assert {p.name for p in (copy / "original").iterdir()} == {"link", "notes.txt"}
    with pytest.raises(UserError) as refused:
        verify.verify(copy)
    assert "original/link: a link" in str(refused.value)
    assert "original: still there, must be deleted (1 files)" in str(refused.value)


@pytest.mark.parametrize("path", ["unlearned/checkpoints", "unlearned", "results.json"])
def test_a_receipt_that_lists_what_must_stay_deletes_nothing(copy, path):
    entry = {"path": path, "why": "", "yours": False, "bytes": 1}
    reseal(copy, lambda values: values["delete"].append(entry))
    before = contents(copy)
    with pytest.raises(UserError, match="which must stay: altered"):
        purge.run(copy, sure=True)
    assert contents(copy) == before


def test_nothing_is_deleted_beside_another_model(copy):
    reseal(copy, lambda values: values["models"]["unlearned"].update(step=4))
    with pytest.raises(UserError, match="is not the model of the receipt: nothing is deleted"):
        purge.run(copy, sure=True)
    assert (copy / "original").exists()


def test_a_purged_request_does_not_go_on(purged):
    before = contents(purged)
    for go_on in (
        lambda: pipeline.run(wide.get_config(), purged),
        lambda: issue.write(purged),
        lambda: results_page.write(purged),
        lambda: purge.run(purged, sure=True),
    ):
        with pytest.raises(UserError, match="it was purged at"):
            go_on()
    assert contents(purged) == before


# ---- what is found


def test_what_had_to_be_deleted_is_named(copy):
    with pytest.raises(UserError) as refused:
        verify.verify(copy)
    lines = str(refused.value).splitlines()[1:]
    inside = [of["path"] for of in receipt.read(copy)["delete"] if not of["yours"]]
    assert [line.split(":")[0].strip() for line in lines] == inside
    assert all("still there, must be deleted" in line for line in lines)
    assert type(refused.value) is UserError  # nothing is damaged


def _empty_metrics(root):
    unlearned = root / "unlearned"
    (unlearned / "metrics.jsonl").write_text("")
    values = files.read_sealed(unlearned / certificate.FILE, certificate.FORMAT, "")
    values["hashes"]["metrics"] = files.file_digest(unlearned / "metrics.jsonl")
    files.write_sealed(unlearned / certificate.FILE, values, certificate.FORMAT)


def _parameters(root):
    return max((root / "unlearned").rglob("params/**/*"), key=lambda p: p.stat().st_size)


def _flip(root):
    path = _parameters(root)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _elsewhere(root, name, folder=False):
    target = root.parent / "elsewhere"
    (root / name).rename(target)
    (root / name).symlink_to(target, target_is_directory=folder)


def _fifo(root, name):
    (root / name).unlink()
    os.mkfifo(root / name)


def _certify(root, **changes):
    path = root / "unlearned" / certificate.FILE
    values = files.read_sealed(path, certificate.FORMAT, "")
    values |= {k: values[k] | v if isinstance(v, dict) else v for k, v in changes.items()}
    files.write_sealed(path, values, certificate.FORMAT)
    reseal(root, rehash=[f"unlearned/{certificate.FILE}"])


def _edit(root, name, old, new):
    text = (root / name).read_text()
    assert old in text
    (root / name).write_text(text.replace(old, new, 1))


def _set(**changes):
    return lambda root: reseal(root, lambda values: values.update(changes))


def _inner(section, **changes):
    return lambda root: reseal(root, lambda values: values[section].update(changes))


def _raw(text):
    return lambda root: (root / receipt.FILE).write_text(text)


TAMPERED = {
    "metrics emptied, certificate resealed": (_empty_metrics, "unlearned/metrics.jsonl: 0 bytes"),
    "a bit of the parameters": (_flip, "its sha256 is not that of the receipt"),
    "a file missing": (lambda r: (r / "audit.json").unlink(), "audit.json: missing"),
    "a newer checkpoint": (
        lambda r: shutil.copytree(_parameters(r).parents[2], r / "unlearned/checkpoints/99/params"),
        "unlearned/checkpoints/99.*not on the receipt",
    ),
    "a file is a link": (
        lambda r: _elsewhere(r, "unlearned/split.json"),
        "unlearned/split.json: a link, or no regular file",
    ),
    "a folder is a link": (
        lambda r: _elsewhere(r, "unlearned/checkpoints", True),
        "unlearned/checkpoints: a link, or no regular file",
    ),
    "a pipe": (lambda r: _fifo(r, "results.json"), "results.json: a link, or no regular file"),
    "a pipe as page": (lambda r: _fifo(r, receipt.TEXT), "receipt.txt: a link, or no"),
    "a pipe as receipt": (lambda r: _fifo(r, receipt.FILE), "expected a regular file"),
    "a link as receipt": (
        lambda r: _elsewhere(r, receipt.FILE),
        "expected a regular file of at most 64 MiB",
    ),
    "the page to sign": (
        lambda r: _edit(r, receipt.TEXT, "2026-12-31", "2027-12-31"),
        "receipt.txt: not that of this receipt",
    ),
    "a byte of the receipt": (
        lambda r: _edit(r, receipt.FILE, "2026-12-31", "2027-12-31"),
        "altered after it was written",
    ),
    "no JSON": (_raw('{"format": '), "expected a receipt"),
    "a list": (_raw("[]"), "expected a receipt"),
    "nested": (_raw("[" * 10**5), "expected a receipt"),
    "not a number": (
        _raw(json.dumps({"format": receipt.FORMAT, "sha256": "", "x": float("nan")})),
        "expected a receipt",
    ),
    "of other types": (_set(files=[1], conclusions="all well"), "is no receipt"),
    "another due day": (_set(due="2027-12-31"), "due is not what the files say"),
    "another conclusion": (_set(conclusions=["forgotten"]), "conclusions is not what the files"),
    "another number": (_inner("asked", n=3), "asked is not what the files say"),
    "another list": (_inner("asked", sha256="0" * 64), "asked is not what the files say"),
    "another set": (_inner("sets", forget="0" * 64), "sets is not what the files say"),
    "another model": (
        _inner("models", unlearned={"step": 11, "sha256": "0" * 64}),
        "models is not what the files say",
    ),
    "another original": (
        _inner("models", original={"step": 6, "sha256": "0" * 64}),
        "certificate: hashes.original",
    ),
    "a path out": (
        _inner("files", **{"../elsewhere/secret": {"bytes": 10**400, "sha256": ""}}),
        "../elsewhere/secret: missing",
    ),
    "another epsilon": (lambda r: _certify(r, epsilon=0.5), "certificate: epsilon: expected"),
    "endless steps": (
        lambda r: _certify(r, arguments={"steps": 10**9}, accountant="reflection"),
        "at most 10,000 steps, got",
    ),
    "endless delta": (lambda r: _certify(r, delta=1e-310), "a delta from 1e-300"),
    "an audit that says otherwise": (
        lambda r: (
            files.write_json(r / "audit.json", {"conclusion": {"text": "Still known."}}),
            reseal(r, rehash=["audit.json"]),
        ),
        "conclusions is not what the files say",
    ),
    "the original is back": (
        lambda r: shutil.copytree(r / "unlearned", r / "original"),
        "original: still there",
    ),
    "the original need not go": (
        lambda r: (
            shutil.copytree(r / "unlearned", r / "original"),
            reseal(
                r,
                lambda values: values.update(
                    delete=[], files=receipt.digests(r, receipt.walk(r)[0])
                ),
            ),
        ),
        "original: still there",
    ),
}


@pytest.mark.parametrize("kind", TAMPERED)
def test_what_was_tampered_with_is_refused(handed, kind):
    tamper, message = TAMPERED[kind]
    tamper(handed)
    began = time.monotonic()
    with pytest.raises(UserError, match=message):
        verify.verify(handed)
    assert time.monotonic() - began < 20


def test_a_config_of_others_imports_nothing(handed, tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.syspath_prepend(str(tmp_path))
    path = handed / "unlearned" / "config.json"
    recorded = json.loads(path.read_text())
    recorded["config"]["audit"]["own"] = ["evil:run"]  # a key that no hash of the run has
    files.write_json(path, recorded)
    values = files.read_sealed(handed / "unlearned" / certificate.FILE, certificate.FORMAT, "")
    values["hashes"]["config"] = files.file_digest(path)
    files.write_sealed(handed / "unlearned" / certificate.FILE, values, certificate.FORMAT)
    reseal(handed, rehash=["unlearned/config.json", f"unlearned/{certificate.FILE}"])
    with pytest.raises(UserError, match="no record may import a module"):
        verify.verify(handed)
    assert not (tmp_path / "ran").exists()


def test_a_folder_without_a_receipt_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match="unlearn-jax certify verify"):
        verify.verify(tmp_path)
