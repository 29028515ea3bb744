"""Preparation that is interrupted, repeated or shared, and files that cannot be read."""

import fcntl
import json
import signal
import time
from pathlib import Path

import pytest

from tests.helpers import binaries
from tests.helpers.files import WNIDS, contents, imagenet, jpeg, opened, put, run
from unlearn_jax.data import layouts, prepare, records


class Killed(BaseException):
    """Ends a preparation where it stands."""


def test_killed_at_any_change_of_the_folder_the_result_is_the_same(tmp_path, monkeypatch):
    imagenet(tmp_path / "raw")
    put(tmp_path / "raw" / "train" / WNIDS[1] / "bad.JPEG", b"bad")
    run(tmp_path / "raw", tmp_path / "whole")
    expected = contents(tmp_path / "whole")
    real = {name: getattr(Path, name) for name in ("replace", "unlink", "mkdir", "rmdir")}
    left = [0]

    def patched(name, after):
        def change(self, *args, **kwargs):
            left[0] -= 1
            if left[0] == 0 and not after:
                raise Killed
            result = real[name](self, *args, **kwargs)
            if left[0] == 0:
                raise Killed
            return result

        return change

    kills = 0
    for at in range(1, 100):
        out = tmp_path / f"out{at}"
        for name in real:
            monkeypatch.setattr(Path, name, patched(name, after=at % 2))
        left[0] = (at + 1) // 2
        try:
            run(tmp_path / "raw", out)
            done = True
        except Killed:
            done = False
        monkeypatch.undo()
        if done:
            break
        kills += 1
        run(tmp_path / "raw", out)
        assert contents(out) == expected, at
    assert kills > 20


def test_a_second_kill_and_finished_shards_are_not_written_again(tmp_path, monkeypatch):
    imagenet(tmp_path / "raw")
    out, reads = tmp_path / "out", []
    kill_at = ["n01484850_0.JPEG", "n01443537_3.JPEG"]  # last first; in the second shard
    read_bytes = Path.read_bytes

    def counted(self):
        if self.suffix == ".JPEG":
            reads.append(self.name)
            if kill_at and self.name == kill_at[-1]:
                kill_at.pop()
                raise Killed
        return read_bytes(self)

    monkeypatch.setattr(Path, "read_bytes", counted)
    for _ in range(2):
        with pytest.raises(Killed):
            run(tmp_path / "raw", out)
        with pytest.raises(ValueError, match="goes on with the same command"):
            opened(out)
    run(tmp_path / "raw", out)
    first_shard = [f"n01440764_{i}.JPEG" for i in range(4)] + ["n01443537_0.JPEG"]
    assert [reads.count(name) for name in first_shard] == [1] * 5
    assert reads.count("n01443537_3.JPEG") == 3
    monkeypatch.undo()
    run(tmp_path / "raw", tmp_path / "whole")
    assert contents(out) == contents(tmp_path / "whole")


def test_shards_of_a_version_that_did_not_hash_are_written_again(tmp_path, monkeypatch):
    imagenet(tmp_path / "raw")
    run(tmp_path / "raw", tmp_path / "whole")
    monkeypatch.setattr(prepare, "_finish", lambda *_: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        run(tmp_path / "raw", tmp_path / "out")
    monkeypatch.undo()
    for path in (tmp_path / "out").glob("unfinished/*.array_record.json"):
        part = json.loads(path.read_text())
        del part["hashes"]
        path.write_text(json.dumps(part))
    run(tmp_path / "raw", tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_sigkill_with_threads_at_work(tmp_path):
    for c, wnid in enumerate(WNIDS):
        for i in range(80):
            put(tmp_path / "raw" / "train" / wnid / f"{wnid}_{i}.JPEG", jpeg(c * 100 + i, 700, 600))
    out = tmp_path / "out"
    flags = ("--layout=imagenet", f"--source={tmp_path / 'raw'}", "--images_per_shard=7")
    process = binaries.start("unlearn_jax.prepare", *flags, f"--out={out}", "--workers=2")
    finished = lambda: list(out.glob("unfinished/*.array_record.json"))  # noqa: E731
    while len(finished()) < 3 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL and not (out / "manifest.json").exists()
    before = {f.name: f.stat().st_mtime_ns for f in out.glob("*.array_record")}
    shout, _ = binaries.run("unlearn_jax.prepare", *flags, f"--out={out}", "--verify")
    assert "train: 240 images of 3 classes, in 35 shards." in shout
    assert "Every shard has the sha256" in shout and "'kind': 'records'" in shout
    kept = [n for n, t in before.items() if (out / n).stat().st_mtime_ns == t]
    assert len(kept) >= 3
    run(tmp_path / "raw", tmp_path / "whole", images_per_shard=7)
    assert contents(out) == contents(tmp_path / "whole")


def test_other_options_or_files_do_not_mix(tmp_path, monkeypatch):
    imagenet(tmp_path / "raw")
    out = tmp_path / "out"
    monkeypatch.setattr(prepare, "_finish", lambda *_: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        run(tmp_path / "raw", out)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"unfinished preparation .*images_per_shard: 5 -> 6"):
        run(tmp_path / "raw", out, images_per_shard=6)
    with pytest.raises(ValueError, match=r"unfinished preparation .*resize: 0 -> 16"):
        run(tmp_path / "raw", out, storing=prepare.Storing(16))
    manifest = run(tmp_path / "raw", out)
    before = contents(out)
    assert run(tmp_path / "raw", out) == manifest and contents(out) == before
    put(tmp_path / "raw" / "train" / WNIDS[0] / "new.JPEG", jpeg(5))
    with pytest.raises(ValueError, match="holds records of other files or options"):
        run(tmp_path / "raw", out)
    put(tmp_path / "other" / "mine.txt", b"")
    with pytest.raises(ValueError, match="expected a new or empty folder"):
        run(tmp_path / "raw", tmp_path / "other")
    assert contents(tmp_path / "other") == {"mine.txt": b""}


def test_one_preparation_at_a_time(tmp_path):
    imagenet(tmp_path / "raw")
    (tmp_path / "out").mkdir()
    with records.lock(tmp_path / "out"):
        with pytest.raises(ValueError, match="another preparation is at work"):
            run(tmp_path / "raw", tmp_path / "out")
    run(tmp_path / "raw", tmp_path / "out")


def test_processes_share_the_shards_and_wait_for_nobody(tmp_path):
    imagenet(tmp_path / "raw")
    run(tmp_path / "raw", tmp_path / "whole")
    out, last = tmp_path / "out", {"process_id": 1, "num_processes": 2}
    assert run(tmp_path / "raw", out, process_id=0, num_processes=2) is None
    written = {path.name for path in out.glob("*.array_record")}
    assert 0 < len(written) < len(list((tmp_path / "whole").glob("*.array_record")))
    with records.lock(out, shared=True):  # a process that is at work on a shard, then dies
        lock = next(n for n, _ in shards_of(tmp_path / "raw") if n not in written)
        with (out / "unfinished" / f"{lock}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            assert run(tmp_path / "raw", out, **last) is None and not (out / lock).exists()
        with pytest.raises(ValueError, match="another preparation is at work"):
            run(tmp_path / "raw", out)
    assert run(tmp_path / "raw", out, **last)
    assert contents(out) == contents(tmp_path / "whole")
    with pytest.raises(ValueError, match=r"--process_id: expected 0\.\.1 .* got 2"):
        run(tmp_path / "raw", out, process_id=2, num_processes=2)


def shards_of(raw):
    return prepare._plan(layouts.find("imagenet", raw), 5)


def test_files_that_may_not_be_read_stop_it(tmp_path, monkeypatch):
    imagenet(tmp_path / "raw")
    file = tmp_path / "raw" / "train" / WNIDS[1] / f"{WNIDS[1]}_1.JPEG"
    read = Path.read_bytes

    def refuse(path):  # not by chmod: root may read every file
        if path == file:
            raise PermissionError(f"Permission denied: {path}")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(PermissionError, match=file.name):
        run(tmp_path / "raw", tmp_path / "out")
    monkeypatch.undo()
    assert run(tmp_path / "raw", tmp_path / "out")["quarantined"] == 0


def test_files_that_vanish_stop_it_and_are_not_quarantined(tmp_path, monkeypatch):
    imagenet(tmp_path / "raw")
    file = tmp_path / "raw" / "train" / WNIDS[1] / f"{WNIDS[1]}_1.JPEG"
    image, find = file.read_bytes(), layouts.find

    def vanish(*args, **kwargs):
        found = find(*args, **kwargs)
        file.unlink()
        return found

    monkeypatch.setattr(layouts, "find", vanish)
    with pytest.raises(FileNotFoundError, match="n01443537_1.JPEG"):
        run(tmp_path / "raw", tmp_path / "out", workers=3)
    monkeypatch.undo()
    file.write_bytes(image)
    assert run(tmp_path / "raw", tmp_path / "out")["quarantined"] == 0
