"""What a whole request takes: how often each program is called, and what that costs."""

import pytest

from configs import imagenet_mage, quickstart_compare
from launch import plan, plan_parts
from launch.aot import chips, formula
from launch.plan_parts import Part
from tests.helpers import binaries

V5E = chips.TPUS["v5e"]
MFU = {"training": 0.5, "sampling": 0.25}


def part(**values):
    values = {"section": "unlearned", "name": "x", "kind": "training", "program": "", "calls": 10,
              "images": 128, "flops": 197e12, "argument_bytes": 0.0} | values  # fmt: skip
    return Part(**values)


def priced(*parts, start=0.0, **more):
    return plan.price(
        formula.load("tests/helpers/tiny.py"),
        chips.Topology("v5e:2x2"),
        parts,
        MFU,
        start,
        2.0,
        **more,
    )


def test_chip_hours_are_arithmetic_over_the_assumed_share_of_the_peak():
    found = priced(part(), part(section="audits", kind="sampling"))
    # 10 calls of a second at the peak of one chip
    assert [p["chip_hours"] * 3600 for p in found["parts"]] == pytest.approx([20, 40])
    assert found["chip_hours"] * 3600 == pytest.approx(60)
    assert found["hours"] * 3600 == pytest.approx(60 / 4)
    assert found["price"] == pytest.approx(2 * 60 / 3600)


def test_the_bytes_of_the_arguments_bound_what_has_little_arithmetic():
    found = priced(part(argument_bytes=819e9 * 3))["parts"][0]
    assert found["by"] == "memory" and found["chip_hours"] * 3600 == pytest.approx(3 * 10 * 4)


def test_every_section_starts_its_machines():
    found = priced(part(), part(section="audits"), start=15)
    assert (found["commands"], found["start"]) == (2, pytest.approx(2 * 4 * 0.25))


def test_a_compiled_bound_replaces_an_assumption_above_it(monkeypatch, tmp_path):
    from launch.aot import grid

    line = {"name": "tiny", "programs": {"step": {"mfu_bound": 0.2, "batch_per_chip": 8}}}
    quick = grid.Point("mae", "v5e:4x4")
    monkeypatch.setattr(grid, "done", lambda: {
        quick: line, quick._replace(quick=False, topology="v4:2x2x1"): line | {"programs": {}},
    })  # fmt: skip
    four = chips.Topology("v5e:2x2")
    assert plan.known_bound("tiny", four, "step", 8) == 0.2
    assert plan.known_bound("tiny", four, "step", 9) is None  # more rows: less is known
    assert plan.known_bound("other", four, "step", 8) is None
    assert plan.known_bound("tiny", chips.Topology("v5p:2x2x1"), "step", 8) is None
    found = priced(part(program="step", images=32))["parts"][0]
    assert (found["mfu"], found["compiled_bound"]) == (0.2, True)


def test_images_of_the_published_request():
    rows = plan_parts.count_rows(imagenet_mage.get_config(), {})
    # 120 of each of 100 classes, the other 100, and 50 validation images of each of the 200
    assert rows == (1_281_167, 12_000, 12_000, 2_500, 10_000)


def test_what_the_config_does_not_tell_must_be_given():
    cfg = formula.load("tests/helpers/tiny.py")
    cfg.request.kind = "ids"
    with pytest.raises(ValueError, match="how many forget images.*--rows=forget="):
        plan_parts.count_rows(cfg, {})
    assert plan_parts.count_rows(cfg, {"forget": 100})[:3] == (2500, 100, 2400)
    with pytest.raises(ValueError, match="Expected --rows"):
        plan_parts.parse_rows(["forgotten=3"])


def of(parts, section, name):
    (found,) = [p for p in parts if (p.section, p.name) == (section, name)]
    return found


def test_a_request_calls_its_programs_as_often_as_its_config_says():
    cfg = formula.load("tests/helpers/tiny.py")
    rows = plan_parts.count_rows(cfg, {})
    parts = plan_parts.request(cfg, 4, rows)
    assert (rows.forget, rows.retain, rows.holdout) == (250, 2250, 250)
    assert of(parts, "original", "pretrain").calls == 24
    assert of(parts, "retrained", "pretrain").calls == 2 * 24  # and one shadow
    assert of(parts, "unlearned", "decouple").calls == 6
    assert of(parts, "unlearned", "retain, probe").calls == 1
    # of three models: 250 forget, 40 retain and 250 holdout images, 32 at once
    assert of(parts, "evaluation", "completed images").calls == pytest.approx(3 * 540 / 32)
    assert of(parts, "audits", "errors").calls == pytest.approx(4 * 180 / 32)
    # 60 forget and 60 unseen images: six noisy copies, seven views, of 60 more for the fit, two
    # rounded models, and after each of 2 + 2 x 2 stretches of training
    on_the_way = 2 * 1 + 2 * 2
    seen = (6 + 7 + 4 + 2 + on_the_way) * 120 + 8 * 60
    assert of(parts, "audits", "losses").calls == pytest.approx(4 * seen / 32)
    assert of(parts, "audits", "training").calls == 4 * (2 * 2 + 2 * 4)
    completed = of(parts, "evaluation", "completed images")
    assert of(parts, "audits", "errors").flops == pytest.approx(2 * completed.flops)
    assert of(parts, "audits", "losses").flops == pytest.approx(completed.flops)


def test_the_published_evaluation_shows_towers_every_image():
    cfg = formula.load("tests/helpers/tiny.py")
    cfg.request.update({"kind": "classes", "classes": ("cat", "dog")})
    cfg.protocol.update({"inpaint": (8,), "outpaint": (4, 8), "batch_size": 32})
    rows = plan_parts.count_rows(cfg, {})
    assert (rows.forget, rows.evaluated) == (500, 500)  # 50 test images of each class
    others = ("original", "unlearned", "retrained", "audits", "evaluation")
    parts = plan_parts.request(cfg, 4, rows, without=others)
    assert of(parts, "protocol", "completed images").calls == pytest.approx(3 * 3 * 500 / 32)
    tower = of(parts, "protocol", "tower of cifar10_classifier")
    assert tower.calls == pytest.approx((3 * 3 + 1) * 500 / 32)  # and the originals
    assert tower.argument_bytes > 1e5 and {p.section for p in parts} == {"protocol"}


@pytest.mark.long
def test_a_comparison_trains_every_method_with_every_seed():
    cfg = quickstart_compare.get_config()
    parts = plan_parts.request(cfg, 4, plan_parts.count_rows(cfg, {}))
    assert of(parts, "original", "pretrain").calls == 2 * 1000
    assert of(parts, "retrained", "pretrain").calls == 2 * 1000
    assert of(parts, "noisy_label", "noisy_label").calls == 2 * cfg.phases.noisy_label.steps
    assert of(parts, "calibrated", "goals").calls == pytest.approx(2 * 500 / 128)
    assert of(parts, "calibrated", "outputs of views").calls == pytest.approx(2 * 250 / 128)
    assert of(parts, "audits", "backdoor").calls == pytest.approx(14 * 2 * 250 / 128)
    assert not [p for p in parts if p.section in ("unlearned", "evaluation", "protocol")]


def test_the_table_hides_nothing():
    out, _ = binaries.run(
        "launch.plan", binaries.TINY, "--topology=v5e:2x2", "--price=3", "--without=original"
    )
    for text in ("decouple", "retrained", "completed images", "commands, 10 minutes each", "price",
                 "chip-hours", "an assumption", "Not counted"):  # fmt: skip
        assert text in out
    assert "original" not in out
    out, _ = binaries.run("launch.plan", binaries.TINY, "--topology=v5e:2x2")
    assert "No price" in out
    _, err = binaries.run(
        "launch.plan", binaries.TINY, "--topology=v5e:2x2", "--without=nothing", code=1
    )
    assert "Expected --without among audits, evaluation, original" in err
