"""`benchmarks.accelerator`: what is skipped, continued, ended and recorded; loops against ours."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from benchmarks.accelerator import __main__ as script
from benchmarks.accelerator import child, steps, table
from benchmarks.accelerator.points import TINY, Point, points, read
from tests.helpers import binaries
from unlearn_jax import models
from unlearn_jax.models import compositing

pytestmark = pytest.mark.full  # minutes: not for every change

WHERE = {"device": "cpu", "platform": "cpu", "versions": {"jax": "1"}, "commit": None}
# The protocol of a child: a line as something is found.
CHILD = """
import json, os, sys, time
spec, file = json.loads(sys.argv[1]), sys.argv[2]
options = spec["options"]
with open(file, "a") as out:
    out.write(json.dumps({"stage": "one", "first_step_s": 1.5, "images_per_s": 2.0}) + chr(10))
if options.get("hang"):
    import subprocess
    other = subprocess.Popen(["sleep", "600"])
    open(options["hang"], "w").write(f"{os.getpid()} {other.pid}")
    time.sleep(600)
if options.get("fail"):
    sys.exit("it broke")
"""


def fake(monkeypatch):
    monkeypatch.setattr(script, "CHILD", (sys.executable, "-c", CHILD))


def fakes(*names, **options):
    return [Point(name, "training", 30, options) for name in names]


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_points_are_skipped_for_the_same_device_and_versions_only(tmp_path, monkeypatch):
    fake(monkeypatch)
    out, chosen = tmp_path / "found.jsonl", fakes("a", "b")
    assert script.measure(chosen, out, 1, WHERE) == (2, 0)
    assert script.measure(chosen, out, 1, WHERE | {"commit": "another"}) == (0, 0)
    assert script.measure(chosen, out, 1, WHERE | {"device": "H100"}) == (2, 0)
    assert script.measure(chosen, out, 1, WHERE | {"versions": {"jax": "2"}}) == (2, 0)
    lines = read(out)
    assert [line["point"] for line in lines] == ["a", "b"] * 3
    assert all(line["figures"] == {"images_per_s": 2.0} for line in lines)
    assert all(line["first_step_s"] == 1.5 and "error" not in line for line in lines)


def test_a_point_over_its_limit_is_ended_and_recorded_and_the_next_one_runs(tmp_path, monkeypatch):
    fake(monkeypatch)
    out, pid = tmp_path / "found.jsonl", tmp_path / "pid"
    slow = Point("slow", "training", 2, {"hang": str(pid)})
    failing = Point("failing", "training", 30, {"fail": True})
    start = time.monotonic()
    assert script.measure([slow, failing, *fakes("last")], out, 2, WHERE) == (3, 0)
    assert time.monotonic() - start < 30
    first, second, third = read(out)
    assert first["error"] == "over its limit of 2 s, in the stage 'one'"
    assert first["figures"] == {"images_per_s": 2.0}  # how far it came
    assert "exit code 1" in second["error"] and "it broke" in second["error"]
    assert "error" not in third
    assert not any(alive(int(text)) for text in pid.read_text().split())


def test_a_point_whose_limit_does_not_fit_waits_for_the_next_call(tmp_path, monkeypatch):
    fake(monkeypatch)
    long = Point("long", "training", 90)
    cached = Point("cached", "training", 1, cache="long")  # has nothing to start from yet
    chosen = [long, cached, *fakes("short")]
    assert script.measure(chosen, tmp_path / "found.jsonl", 1, WHERE) == (1, 2)
    assert [line["point"] for line in read(tmp_path / "found.jsonl")] == ["short"]


def test_a_killed_call_is_continued_and_leaves_no_process(tmp_path):
    out, pid = tmp_path / "found.jsonl", tmp_path / "pid"
    code = f"""
import sys
sys.path.insert(0, {str(binaries.ROOT)!r})
from pathlib import Path
from tests.whole import test_accelerator as t
t.script.CHILD = (sys.executable, "-c", t.CHILD)
slow = t.Point("b", "training", 30, {{"hang": {str(pid)!r}}})
t.script.measure([*t.fakes("a"), slow], Path({str(out)!r}), 5, t.WHERE)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    while not (pid.exists() and pid.read_text()):
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with out.open("a") as file:
        file.write('{"point": "b", "si')  # as if it had been killed while writing
    with pytest.MonkeyPatch.context() as monkeypatch:
        fake(monkeypatch)
        assert script.measure(fakes("a", "b"), out, 1, WHERE) == (1, 0)
    assert [line["point"] for line in read(out)] == ["a", "b"]
    found, other = map(int, pid.read_text().split())
    os.kill(other, signal.SIGKILL)  # Linux ends the child only
    assert not alive(found)


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    """The lines of ours, from an empty cache and from that one, by the command."""
    out = tmp_path_factory.mktemp("accelerator") / "found.jsonl"
    flags = [f"--out={out}", "--tiny", "--only=train/imagenet_mae/ours"]
    run(*flags, "--minutes=15")
    return flags, read(out)


def run(*flags):
    environment = {k: v for k, v in os.environ.items() if k != "JAX_NUM_CPU_DEVICES"}
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.accelerator", *flags], cwd=binaries.ROOT,
        capture_output=True, text=True, check=True, env=environment,
    )  # fmt: skip


def test_ours_from_an_empty_cache_and_from_a_full_one(training):
    flags, (cold, warm) = training
    for line in (cold, warm):
        assert "error" not in line and line["stage"] == "done" and line["device"] == "cpu"
        assert set(line["versions"]) == {"python", "jax", "jaxlib", "torch"} and line["commit"]
        for name in ("ms_per_step", "images_per_s", "flops_per_image", "first_loss"):
            assert np.isfinite(line["figures"][name]) and line["figures"][name] > 0
        parts = sum(line["figures"][f"{stage}_s"] for stage in ("trace", "lower", "compile"))
        assert 0 < parts < line["first_step_s"] + 0.01
        assert line["peak_memory_gib"] is None and line["figures"]["mfu"] is None  # a CPU
    assert warm["figures"]["compile_s"] < cold["figures"]["compile_s"]
    assert "0 measured, 0 missing" in run(*flags, "--minutes=15").stdout
    listed = run(*flags, "--list").stdout.splitlines()
    assert len(listed) == 2 and all(line.endswith("done") for line in listed)


@pytest.mark.full
@pytest.mark.parametrize("answers", ["none", "raises"])
def test_every_point_of_ours_where_no_plug_in_tells_anything(answers, tmp_path):
    out, ours = tmp_path / "found.jsonl", "^(?!.*/(published|compiled|clever_compiled|eager)$)"
    flags = ("--tiny", "--minutes=30", f"--out={out}", f"--only={ours}")
    text, _ = binaries.run("benchmarks.accelerator", *flags, devices=1, accelerator=answers)
    lines = read(out)
    assert f"{len(lines)} measured, 0 missing" in text and len(lines) > 20
    assert [(line["point"], line["error"]) for line in lines if "error" in line] == []
    counted = [line["figures"].get("flops_per_image", 1) for line in lines]
    assert all(counted) and sum(count > 1 for count in counted) > 10
    assert all(line["peak_memory_gib"] is None for line in lines)


def test_a_cached_point_without_a_cache_is_an_error(tmp_path):
    (point,) = [p for p in points(tiny=True) if p.name == "tiny/train/imagenet_mae/ours_cached"]
    line = script.run(point, WHERE, tmp_path / "empty")
    assert "in the cache of the point before; none was" in line["error"]
    assert line["figures"]["compile_s"] > 0


def test_what_plugins_do_not_say_is_null(monkeypatch):
    class Silent:
        platform = device_kind = "cpu"

        def memory_stats(self):
            return None

        def memory_analysis(self):
            raise NotImplementedError

    monkeypatch.setattr(jax, "devices", lambda: [Silent()])
    assert steps.jax_memory(Silent()) == {"peak_memory_gib": None, "planned_gib": None}


def test_a_child_says_its_error(tmp_path):
    spec = {"kind": "training", "options": {}, "cached": False, "platform": "cpu"}
    assert child.main(json.dumps(spec), str(tmp_path / "said")) == 1
    assert read(tmp_path / "said")[-1]["error"].startswith("TypeError")


def test_flops_of_pytorch_are_those_of_our_count():
    pytest.importorskip("transformers")
    from benchmarks import autoencoder
    from unlearn_jax.models import flops

    model = models.build("mae", **TINY["mae"])
    batch = autoencoder.make_batch(8, model.image_size)
    params = jax.jit(model.init)(jax.random.key(0))
    fn, *args = autoencoder.jax_program(model, params, batch)
    ours = flops.executed(fn.trace(*args).jaxpr).total / 8
    assert steps.torch_flops("mae", model) == pytest.approx(ours, rel=0.1)


def noisy_params(model):
    """Parameters of which none is 0, so that all of them matter."""

    def more(path, x):
        random = np.random.default_rng(x.size + len(path)).standard_normal(x.shape)
        return x if "schedule" in str(path) else x + np.float32(0.05 * random)

    return jax.tree_util.tree_map_with_path(more, jax.jit(model.init)(jax.random.key(0)))


def prepared(name, taken):
    """(our model, its parameters, a batch, PyTorch's network with the same parameters)."""
    from benchmarks import models as reference
    from benchmarks.accelerator import compiled, sampling

    model, batch = sampling.prepare(name, 2, taken, TINY[name])
    params = noisy_params(model)
    net = reference.torch_model(name, model, params, channels_last=False).net
    compiled.fuse_attention(net)
    return model, params, batch, net


def test_the_released_loop_of_palette_makes_our_images():
    torch = pytest.importorskip("torch")
    from benchmarks.accelerator import sampling

    model, params, batch, net = prepared("palette", 20)
    random, shape = np.random.default_rng(0), batch["image"].shape
    noise = random.standard_normal((21, *shape)).astype(np.float32)
    draws = {"hole_noise": noise[20], "step_noise": noise[:20]}
    ours = jax.jit(model.generate)(params, batch, jax.random.key(0), draws=draws)
    image, mask, noise = (
        torch.tensor(x).movedim(-1, -3) for x in (batch["image"], batch["mask"], noise)
    )
    table = {k: torch.tensor(np.array(v)) for k, v in params["schedule"].items()}
    times = range(19, -1, -1)
    with torch.no_grad():
        found = sampling.palette_loop(net, table, image, mask, noise[20], noise[:20], times)
    assert np.std(np.asarray(ours)[:, 6:10, 6:10]) > 0.1
    np.testing.assert_allclose(found.movedim(1, -1).numpy(), ours, atol=2e-3)


@pytest.mark.parametrize("taken", [6, 14])
def test_the_released_loop_of_mage_makes_our_images(taken):
    torch = pytest.importorskip("torch")
    from benchmarks.accelerator import sampling

    model, params, batch, net = prepared("mage", taken)
    random, steps_, n = np.random.default_rng(0), model.num_iter, model.vqgan.num_tokens
    shapes = {"gumbel_sample": (n, model.vqgan.codebook), "gumbel": (n,)}
    draws = {k: random.gumbel(size=(steps_, 2, *v)).astype(np.float32) for k, v in shapes.items()}
    ours = jax.jit(model.generate)(params, batch, jax.random.key(0), draws=draws)
    first = steps_ - sampling.decoding_steps(model, batch["mask"])
    assert 0 < first < steps_ - 1
    given = (draws[k][step] for step in range(first, steps_) for k in shapes)
    image, mask = (jax.numpy.asarray(batch[k]) for k in ("image", "mask"))
    image = np.array(compositing.fill_hole(image, mask))
    unknown = torch.tensor(np.array(compositing.token_mask(mask, model.vqgan.stride)))
    with torch.no_grad():
        found = sampling.mage_loop(
            net, model, torch.tensor(image).movedim(-1, 1), unknown,
            lambda *shape: torch.tensor(next(given)), sampling.code_logits,
        )  # fmt: skip
    assert next(given, None) is None  # every step took its noise
    inside = np.asarray(compositing.blend_weight(mask)) == 1  # nothing is blended there
    assert inside.mean() > 0.05
    found = (2 * found.movedim(1, -1).numpy() - 1).clip(-1, 1)
    error = np.abs(found - ours) * inside
    assert error.max() < 1e-3 and np.std(found[..., 0][inside[..., 0]]) > 1e-3


@pytest.mark.parametrize("name", ["mage", "palette"])
def test_fused_attention_is_that_of_the_tests(name):
    torch = pytest.importorskip("torch")
    from benchmarks.accelerator import compiled
    from tests.reference import mage, palette

    torch.manual_seed(0)
    if name == "mage":
        module, x = mage.Attention(16, 4), torch.randn(2, 5, 16)
    else:
        module, x = palette.Attention(16, 4, 4), torch.randn(2, 16, 3, 3)
    want = module(x)
    compiled.fuse_attention(torch.nn.Sequential(module))
    assert "forward" in vars(module)
    torch.testing.assert_close(module(x), want)


def compile_line(tmp_path, monkeypatch, compile_):
    """What the child of the compiled side says if `torch.compile` is this."""
    import torch

    monkeypatch.setattr(torch, "compile", compile_)
    (point,) = [p for p in points(tiny=True) if p.name == "tiny/train/imagenet_mae/compiled"]
    spec = {"kind": point.kind, "options": point.options, "cached": False, "platform": "cpu"}
    code = child.main(json.dumps(spec), str(tmp_path / "said"))
    return code, {k: v for line in read(tmp_path / "said") for k, v in line.items()}


def test_a_side_that_compiles_nothing_is_an_error_and_no_speed(tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    code, said = compile_line(tmp_path, monkeypatch, lambda f: f)
    assert code == 1 and "nothing was compiled: 0 graphs" in said["error"]
    assert "ms_per_step" not in said and "images_per_s" not in said


def test_a_function_first_called_under_the_counter_of_flops_is_never_compiled():
    """What made the "compiled" side of an earlier benchmark eager."""
    torch = pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    from benchmarks.accelerator import compiled

    x = torch.ones(3, requires_grad=True)

    def once(function):
        function(x).sum().backward()

    compiled.reset()
    spoiled = torch.compile(lambda x: (2 * x).sin())
    with FlopCounterMode(display=False):
        once(spoiled)
    once(spoiled)
    with pytest.raises(ValueError, match="nothing was compiled"):
        compiled.check(lambda: once(spoiled), least=2)


def test_what_is_compiled_passes_and_what_is_so_in_part_does_not():
    torch = pytest.importorskip("torch")
    from torch._dynamo.utils import counters

    from benchmarks.accelerator import compiled

    x = torch.ones(3, requires_grad=True)
    compiled.reset()
    function = torch.compile(lambda x: (3 * x).cos())

    def once():
        function(x).sum().backward()

    once()
    want = {"graphs": 1, "graph_breaks": 0, "generated_code_runs": 2}  # forward and backward
    assert compiled.check(once, least=2) == want
    with pytest.raises(ValueError, match="generated code 2 times, expected 3"):
        compiled.check(once, least=3)
    counters["frames"]["total"] += 1  # as where dynamo gave up on one
    with pytest.raises(ValueError, match="a part was not compiled: 1 frames"):
        compiled.check(once, least=2)


def test_the_table_has_figures_and_errors():
    line = {"point": "train", **WHERE, "figures": {"images_per_s": 1234.56}}
    line |= {"first_step_s": 2.0, "peak_memory_gib": None}
    text = table.render([line, line | {"error": "nothing was compiled: 0 graphs"}])
    first, second = text.splitlines()[-2:]
    assert first == "| train | 1235 | – | – | – | – | 2 | – |"
    assert second.startswith("| train | error: nothing was compiled: 0 graphs |")


def test_every_point_has_a_small_twin_and_a_limit_that_nine_minutes_hold():
    small, whole = points(tiny=True), points()
    assert [p.name for p in small] == [f"tiny/{p.name}" for p in whole]
    assert len({p.name for p in whole}) == len(whole)
    for point in whole:
        assert point.kind in child.KINDS and 0 < point.limit_s <= 420
        assert not point.cache or point.cache in {p.name for p in whole}


@pytest.mark.full
def test_a_whole_run_gives_finite_figures_and_a_second_one_measures_nothing(tmp_path):
    pytest.importorskip("transformers")
    flags = [f"--out={tmp_path}/found.jsonl", "--tiny", "--minutes=60"]
    run(*flags)
    lines = read(tmp_path / "found.jsonl")
    assert [line["point"] for line in lines] == [p.name for p in points(tiny=True)]
    for line in lines:
        assert "error" not in line, line
        numbers = [x for x in line["figures"].values() if isinstance(x, float)]
        assert numbers and np.isfinite(numbers).all()
    assert "0 measured, 0 missing" in run(*flags).stdout
