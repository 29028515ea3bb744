import io
import json
import re
import struct
import sys

import numpy as np
import pytest

from tests.helpers import tiny
from unlearn_jax import pipeline, train
from unlearn_jax.config import identity
from unlearn_jax.training import watch


class Stream(io.StringIO):
    def __init__(self, terminal):
        super().__init__()
        self.isatty = lambda: terminal


def log_to(monkeypatch, terminal=False, every=0):
    """Not a fixture: pytest puts its own stderr in place after those."""
    monkeypatch.setattr(sys, "stderr", Stream(terminal))
    monkeypatch.setattr(watch, "LINE_EVERY_S", every)
    return sys.stderr


def progress(**options):
    return watch.Progress("a: b", **{"steps": 100, "done": 0, "batch_size": 10, **options})


def lines(stream):
    assert "\r" not in stream.getvalue()
    return [line.split(" ", 1)[1] for line in stream.getvalue().splitlines()]


def test_a_log_gets_plain_lines_with_step_loss_rate_and_time_left(monkeypatch):
    log = log_to(monkeypatch)
    shown = progress(later=9000)
    for _ in range(20):
        shown.update()
    shown.measured(0.25, images=200, seconds=4.0)
    assert re.match(r"\d\d:\d\d:\d\d a: b, step 0 of 100", log.getvalue())
    assert lines(log) == [
        "a: b, step 0 of 100, left unknown, of all training unknown",
        "a: b, step 20 of 100, loss 0.25, 50 images/s, left 16 s, of all training 3 min",
    ]
    shown.measured(0.25, images=200, seconds=8.0)  # the mean of both
    assert lines(log)[-1].endswith("25 images/s, left 24 s, of all training 5 min")


def test_lines_are_not_many_and_the_last_step_has_one(monkeypatch):
    log = log_to(monkeypatch, every=1000)
    shown = progress(done=97)
    for _ in range(3):
        shown.update()
        shown.measured(0.5, images=10, seconds=1.0)
    shown.close()
    assert lines(log) == [
        "a: b, step 97 of 100, left unknown",
        "a: b, step 100 of 100, loss 0.5, 10 images/s, left 0 s",
    ]


def test_a_terminal_gets_one_bar(monkeypatch):
    bar = log_to(monkeypatch, terminal=True)
    shown = progress(later=10)
    shown.update()
    shown.measured(0.5, images=10, seconds=1.0)
    shown.close()
    text = bar.getvalue()
    assert "\r" in text and "step" not in text
    assert "left unknown" in text and text.count("\n") == 1
    assert "loss 0.5, left 2 min, of all training 2 min" in text


def test_the_images_of_a_stage_are_those_of_its_phases():
    cfg = tiny.get_config()
    cfg.phases.retain.batch_size = 8
    assert watch.images_of(cfg, "original") == 24 * 32
    assert watch.images_of(cfg, "unlearned") == 6 * 32 + 6 * 8


def test_a_request_counts_the_images_of_the_stages_to_come(monkeypatch, tmp_path):
    cfg, counted = tiny.get_config(), {}
    cfg.audit.shadows = 2

    def run(part, workdir, later):
        counted[workdir.name] = later

    monkeypatch.setattr(pipeline.train, "run", run)
    for module in (pipeline.request, pipeline.results):
        monkeypatch.setattr(module, "run", lambda *_: {})
    monkeypatch.setattr(pipeline.issue, "write", lambda *_: None)
    pipeline.run(cfg, tmp_path)
    scratch, change = 24 * 32, 12 * 32
    later = {"original": change + 3 * scratch, "unlearned": 3 * scratch, "retrained": 2 * scratch}
    assert counted == later
    counted.clear()
    cfg.audit.shadows = 0
    pipeline.run(cfg, tmp_path)
    assert counted == {"original": change + scratch, "unlearned": scratch, "retrained": 0}


TOLD = []


def tell(step, scalars, images):
    TOLD.append((step, scalars, images))


@pytest.fixture
def cfg():
    cfg = tiny.get_config()
    cfg.phases.pretrain.update({"steps": 8, "probe_every": 4})
    return cfg


@pytest.mark.long
def test_a_function_of_ones_own_is_told_what_the_file_has_and_shown_forget_images(cfg, tmp_path):
    plain = identity.relevant(cfg)
    cfg.log.to = f"{__name__}:tell"
    assert identity.relevant(cfg) == plain
    TOLD.clear()
    train.run(cfg, tmp_path)
    written = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [step for step, *_ in TOLD] == [line["step"] for line in written] == [3, 4, 6, 8]
    for (_, scalars, images), line in zip(TOLD, written, strict=True):
        np.testing.assert_allclose(scalars["loss"], line["loss"], rtol=1e-5)
        assert ("probe_forget" in scalars) == (images is not None) == (line["step"] in (4, 8))
    first, last = (images for *_, images in TOLD if images is not None)
    assert first.shape == (8, 32, 96, 3) and first.dtype == np.uint8
    seen, made, truth = np.split(last, 3, axis=2)
    np.testing.assert_array_equal(truth, np.split(first, 3, axis=2)[2])
    assert (made != np.split(first, 3, axis=2)[1]).any() and (made != truth).any()
    hole = slice(8, 24)
    assert (seen[:, hole, hole] == 128).all() and (truth[:, hole, hole] != 128).any()
    np.testing.assert_array_equal(seen[:, :8], truth[:, :8])


def test_tensorboard_gets_scalars_and_images(cfg, tmp_path):
    events = pytest.importorskip("tensorboardX.proto.event_pb2")
    cfg.log.to = "tensorboard"
    train.run(cfg, tmp_path)
    (file,) = (tmp_path / watch.FOLDER).iterdir()
    data, found = file.read_bytes(), {}
    while data:  # length, checksum, event, checksum
        (size,) = struct.unpack("<Q", data[:8])
        event = events.Event.FromString(data[12 : 12 + size])
        data = data[16 + size :]
        for value in event.summary.value:
            kind = "image" if value.HasField("image") else "scalar"
            found.setdefault((kind, value.tag.split(":")[0]), []).append(event.step)
    assert found["scalar", "loss"] == found["scalar", "examples_per_s"] == [3, 4, 6, 8]
    assert found["scalar", "probe_forget"] == [4, 8]
    assert {step for (kind, _), steps in found.items() if kind == "image" for step in steps} == {
        4,
        8,
    }


@pytest.mark.parametrize(
    ("to", "message"),
    [
        (
            "wandb",
            "unknown 'wandb', expected one of .*'tensorboard'.*, or .package.module:name",
        ),
        ("no.such:function", "cannot import the function 'no.such:function': ModuleNotFoundError"),
        (f"{__name__}:nothing", "cannot import the function .* has no attribute 'nothing'"),
    ],
)
def test_what_cannot_be_told_is_said_before_training(cfg, tmp_path, to, message):
    cfg.log.to = to
    with pytest.raises(ValueError, match=message):
        train.run(cfg, tmp_path)
    assert not list((tmp_path / "checkpoints").glob("*"))


def test_without_tensorboards_writer_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ValueError, match=r"pip install 'unlearn_jax\[tensorboard\]'"):
        watch.find("tensorboard")
