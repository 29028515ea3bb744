import json

import jax.numpy as jnp
import pytest
from tqdm import tqdm

from unlearn_jax import files
from unlearn_jax.training import log as metrics


def test_mean_over_steps_and_first_bad_step():
    values = [{"loss": jnp.float32(1.0)}, {"loss": jnp.float32(3.0)}]
    assert metrics.mean_over_steps(5, values) == {"loss": 2.0}
    values += [{"loss": jnp.float32(jnp.nan)}, {"loss": jnp.float32(jnp.inf)}]
    with pytest.raises(FloatingPointError, match="at step 7: {'loss': nan}"):
        metrics.mean_over_steps(5, values)


def test_resuming_drops_what_will_be_written_again_and_a_torn_last_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": s}) + "\n" for s in (10, 20, 30)) + '{"step": 4')
    writer = metrics.JsonlWriter(path, resume_step=20)
    writer.write({"step": 25, "loss": 1 / 3})
    writer.close()
    assert files.read_jsonl(path) == [{"step": 10}, {"step": 20}, {"step": 25, "loss": 0.333333}]


def test_intervals_are_written_one_late(tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = metrics.JsonlWriter(path, resume_step=0)
    log = metrics.IntervalLog(writer, "retain", batch_size=4, bar=tqdm(disable=True))
    for step in (1, 2, 3, 4):
        log.add({"loss": jnp.float32(step)})
        if step % 2 == 0:
            log.end_interval(step, {"displacement": jnp.float32(0.5)})
            assert len(files.read_jsonl(path)) == step // 2 - 1
    log.flush()
    lines = files.read_jsonl(path)
    assert [(line["step"], line["loss"], line["phase"]) for line in lines] == [
        (2, 1.5, "retain"),
        (4, 3.5, "retain"),
    ]
    assert lines[1]["displacement"] == 0.5
    assert lines[1]["examples_per_s"] > 0
