"""Images that are taken out of prepared records for good."""

import json
import subprocess
import sys

import numpy as np
import pytest

from tests.helpers import binaries
from tests.helpers.files import WNIDS, contents, imagenet, opened, put, run
from unlearn_jax.data import copies, records, removal, served
from unlearn_jax.data.served import FORMAT
from unlearn_jax.files import file_digest

# In the first and third shard of five images, and in one of validation; as written in lists.
GONE = (
    f"train/{WNIDS[0]}/{WNIDS[0]}_2.JPEG",
    f"train/{WNIDS[2]}/{WNIDS[2]}_0.JPEG",
    f"val/{WNIDS[1]}/ILSVRC2012_val_00000001.JPEG",
)
KILLS = """
import os, shutil, signal, sys
from pathlib import Path
from unlearn_jax.data import removal

def killing(real, after, left):
    def change(*args, **kwargs):
        left[0] -= 1
        if not left[0] and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*args, **kwargs)
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return change

whole, names, work = map(Path, sys.argv[1:])
status, at = 1, 0
while status:
    at += 1
    out = work / f"out{at}"
    shutil.copytree(whole, out)
    child = os.fork()
    if not child:
        left = [(at + 1) // 2]
        for name in ("replace", "unlink"):
            setattr(Path, name, killing(getattr(Path, name), at % 2, left))
        os.fsync = killing(os.fsync, at % 2, left)
        removal.remove(out, str(names))
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL), status
shutil.rmtree(out)
"""


@pytest.fixture
def out(tmp_path):
    imagenet(tmp_path / "raw", per_class=5)
    put(tmp_path / "raw" / "train" / WNIDS[1] / "bad.JPEG", b"bad")
    run(tmp_path / "raw", tmp_path / "out")
    listed(tmp_path, *GONE)
    return tmp_path / "out"


def listed(tmp_path, *lines, file="list.txt"):
    (tmp_path / file).write_text("\n".join(lines) + "\n")
    return str(tmp_path / file)


def pixels(out):
    """Class and pixels of every image by id, in the order of the rows."""
    source = opened(out)
    images = [source.original(row).tolist() for row in range(len(source))]
    classes = [source.class_names[label] for label in source.labels]
    return dict(zip(source.ids, zip(classes, images, strict=True), strict=True))


def without(before, gone=GONE):
    return {id: of_id for id, of_id in before.items() if id not in gone}


def holding(out, raw, ids=GONE):
    """The files with the bytes of one of the images, whole or the second half."""
    halves = [(raw / id).read_bytes() for id in ids]
    halves = [data[len(data) // 2 :] for data in halves]
    return {name for name, data in contents(out).items() if any(half in data for half in halves)}


def test_the_images_are_gone_and_all_others_are_as_before(tmp_path, out):
    before, files = pixels(out), contents(out)
    assert len(holding(out, tmp_path / "raw")) == 3
    plan = records.read_manifest(out)["plan"]
    path = listed(tmp_path, f"/mnt/imagenet/{GONE[0]}", "", GONE[1], GONE[2], GONE[0])
    manifest, count = removal.remove(out, path)
    assert count == 3 and manifest == records.read_manifest(out) and manifest["plan"] == plan
    digest = file_digest(tmp_path / "list.txt")
    assert manifest["removed"] == [{"list": "list.txt", "sha256": digest, "n": 3}]
    after = pixels(out)
    assert after == without(before) and list(after) == list(without(before))
    assert not holding(out, tmp_path / "raw")
    shards = [shard for split in manifest["splits"].values() for shard in split["shards"]]
    records.check_shards(out, shards, contents=True)
    assert [shard["count"] for shard in shards] == [4, 4, 4, 1, 4, 1]
    names = {shard["file"] for shard in shards}
    assert set(contents(out)) == names | {
        "manifest.json", "index.1.gz", "quarantine.csv", "copies.npz",
    }  # fmt: skip
    same = names & set(files)
    assert len(same) == 3 and all((out / name).read_bytes() == files[name] for name in same)


def test_hashes_go_with_the_images(tmp_path, out):
    removal.remove(out, str(tmp_path / "list.txt"))
    source = opened(out)
    found = copies.load(out / copies.FILE, source.ids)
    for kept, new in zip(found, copies.hash_source(source), strict=True):
        np.testing.assert_array_equal(kept, new)


@pytest.mark.parametrize("damage", [lambda f: f.unlink(), lambda f: f.write_bytes(b"x")])
def test_records_without_hashes_stay_so(tmp_path, out, damage):
    before = pixels(out)
    damage(out / copies.FILE)
    put(out / f"imagenet-{'0a' * 16}.npz", b"of rows with removed ones")
    put(out / "mine.npz", b"")
    removal.remove(out, str(tmp_path / "list.txt"))
    assert {p.name for p in out.glob("*.npz")} == {"mine.npz"} and pixels(out) == without(before)


def test_once_more_and_another_list_and_whole_shards(tmp_path, out):
    before = pixels(out)
    manifest, _ = removal.remove(out, str(tmp_path / "list.txt"))
    files = contents(out)
    put(out / "train-00000-of-00004.array_record", b"left by a kill after the commit")
    put(out / "index.gz", b"likewise")
    assert removal.remove(out, str(tmp_path / "list.txt")) == (manifest, 0)
    assert contents(out) == files
    rest = [id for id in before if id.startswith(f"train/{WNIDS[0]}") and id not in GONE]
    rest.append(f"train/{WNIDS[2]}/{WNIDS[2]}_1.JPEG")
    more = [shard["file"] for shard in manifest["splits"]["train"]["shards"]]
    manifest, count = removal.remove(out, listed(tmp_path, *rest, file="more.txt"))
    assert count == 5 and [entry["n"] for entry in manifest["removed"]] == [3, 5]
    assert pixels(out) == without(before, [*GONE, *rest])
    assert not holding(out, tmp_path / "raw", [*GONE, *rest])
    left = [shard["file"] for shard in manifest["splits"]["train"]["shards"]]
    assert more[2] == "train-00002-of-00004.1.array_record"
    assert left == [more[1], "train-00002-of-00004.2.array_record", more[3]]
    assert manifest["class_names"] == list(WNIDS)  # labels count them
    assert removal.remove(out, str(tmp_path / "list.txt")) == (manifest, 0)


def test_the_preparation_given_again_brings_nothing_back(tmp_path, out):
    manifest, _ = removal.remove(out, str(tmp_path / "list.txt"))
    files = contents(out)
    put(out / "train-00000-of-00004.array_record", b"left by a kill after the commit")
    assert run(tmp_path / "raw", out) == manifest and contents(out) == files
    with pytest.raises(ValueError, match="records of other files or options"):
        run(tmp_path / "raw", out, images_per_shard=6)


def test_what_was_forgotten_stays_written_down(tmp_path, out):
    made = {"hash": "a", "data": "out", "text": "t", "date": "d", "ids": list(GONE), "pixels": []}
    served.write(out / served.FILE, {"format": FORMAT, "requests": [made]})
    removal.remove(out, str(tmp_path / "list.txt"))
    assert served.of_data((out / served.FILE, "out")) == [made]


def test_killed_at_any_change_it_is_the_old_or_the_new_state(tmp_path, out):
    before, names = pixels(out), tmp_path / "list.txt"
    (tmp_path / "work").mkdir()
    command = [sys.executable, "-c", KILLS, str(out), str(names), str(tmp_path / "work")]
    subprocess.run(command, check=True, cwd=binaries.ROOT, timeout=200)
    removal.remove(out, str(names))
    expected = contents(out)
    states = []
    for at in range(1, 1 + len(list((tmp_path / "work").iterdir()))):
        killed = tmp_path / "work" / f"out{at}"
        new = "removed" in records.read_manifest(killed)
        states.append(new)
        assert pixels(killed) == (without(before) if new else before), at
        if at % 4 > 1:  # a training, and other lists
            copies.hash_source(opened(killed), killed / copies.FILE)
        if at % 6 == 0 and not new:
            removal.remove(killed, listed(tmp_path, GONE[1], file="other.txt"))
            assert pixels(killed) == without(before, GONE[1:2])
            continue
        removal.remove(killed, str(names))
        assert contents(killed) == expected, at
        assert not holding(killed, tmp_path / "raw"), at
    assert states.count(False) > 15 and states.count(True) > 5


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([GONE[0], "train/n01440764/n01440764_9.JPEG"], "--remove: 1 of the 2 names"),
        ([GONE[0], "01440764_2.JPEG"], "--remove: 1 of the 2 names"),
        (["# nothing"], "names no image to remove"),
        (["imgs,labels", f"{GONE[0]},100.0"], "names no image to remove"),
        (
            [f"val/{w}/ILSVRC2012_val_{i * 3 + 2 - c:08d}.JPEG" for i in (0, 1)
             for c, w in enumerate(WNIDS)],
            r"names all images of \['validation'\]",
        ),
    ],
)  # fmt: skip
def test_what_is_refused_changes_nothing(tmp_path, out, lines, message):
    files = contents(out)
    with pytest.raises(ValueError, match=message):
        removal.remove(out, listed(tmp_path, *lines))
    assert contents(out) == files


def test_of_a_released_table_the_retain_rows_stay(tmp_path, out):
    before = pixels(out)
    table = ["imgs,labels", f"a/{GONE[0]},-100.0", f"a/{GONE[1]},100.0"]
    removal.remove(out, listed(tmp_path, *table))
    assert pixels(out) == without(before, GONE[:1])


def test_missing_damaged_and_locked_records(tmp_path, out):
    path = str(tmp_path / "list.txt")
    with pytest.raises(ValueError, match="--remove: .*none.txt is no readable"):
        removal.remove(out, str(tmp_path / "none.txt"))
    with pytest.raises(ValueError, match="expected a folder with prepared records"):
        removal.remove(tmp_path / "nowhere", path)
    with records.lock(out), pytest.raises(ValueError, match="another preparation is at work"):
        removal.remove(out, path)
    shard = out / "train-00000-of-00004.array_record"
    data = bytearray(shard.read_bytes())
    at = data.index(b"n01440764_3.JPEG") + 200
    data[at : at + 8] = bytes(255 - b for b in data[at : at + 8])
    shard.write_bytes(data)
    manifest = records.read_manifest(out)
    with pytest.raises(ValueError, match=r"the record of .*n01440764_3.JPEG is damaged"):
        removal.remove(out, path)
    assert records.read_manifest(out) == manifest and len(opened(out)) == 21


def test_the_binary(tmp_path, out):
    start = f"--out={out}", f"--remove={tmp_path / 'list.txt'}"
    shout, _ = binaries.run("unlearn_jax.prepare", *start, "--verify")
    assert "list.txt: 3 images were taken out of" in shout and "train: 13, validation: 5" in shout
    assert "Every shard has the sha256" in shout
    shout, _ = binaries.run("unlearn_jax.prepare", *start)
    assert "Nothing left to do: its images are already taken out" in shout
    _, err = binaries.run("unlearn_jax.prepare", *start, "--layout=imagenet", code=1)
    assert "--remove: expected only --out=DIR beside it, got ['--layout']" in err
    _, err = binaries.run("unlearn_jax.prepare", f"--out={out}", code=1)
    assert "Expected --layout=… and --source=…, or --remove=…." in err
    manifest = json.loads((out / "manifest.json").read_text())
    assert [entry["n"] for entry in manifest["removed"]] == [3]
