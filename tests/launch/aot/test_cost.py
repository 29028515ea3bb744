"""The roofline, the search for the largest batch, and the table."""

import pytest

from launch.aot import chips
from launch.aot import cost as report

V5E = chips.TPUS["v5e"]


def test_the_longest_time_is_the_bound():
    facts = {
        "flops": 4 * 197e12,
        "model_flops": 3 * 197e12,
        "moved_bytes": 819e9,
        "wire_bytes": 1e9,
        "slice_bytes": 0,
    }
    found = report.roofline(facts, 4, V5E)
    assert (found["compute_s"], found["memory_s"], found["link_s"]) == pytest.approx((1, 1, 0.005))
    assert found["mfu_bound"] == pytest.approx(0.75)  # a quarter is computed twice
    assert report.roofline(facts | {"wire_bytes": 400e9}, 4, V5E)["bound_by"] == "link"
    assert report.roofline(facts | {"slice_bytes": 1e10}, 4, V5E)["slice_s"] == pytest.approx(3.2)
    assert "slice_s" not in report.roofline(facts | {"slice_bytes": 1e10}, 4, chips.TPUS["v4"])
    slow = report.roofline(facts | {"moved_bytes": 3 * 819e9}, 4, V5E)
    assert (slow["bound_by"], slow["mfu_bound"]) == ("memory", pytest.approx(0.25))


def compiler(limit, of, says=lambda batch, peak: peak):
    """Peaks of a made-up compiler, and the batches that it was asked for."""
    asked = []

    def peaks_at(batches):
        asked.extend(batches)
        peaks = map(of, batches)
        return [(p <= limit, says(b, p)) for b, p in zip(batches, peaks, strict=True)]

    return peaks_at, asked


def test_affine_memory_is_predicted_at_once():
    peaks_at, asked = compiler(100, lambda b: 10 + 3 * b)
    found = report.largest_batch(peaks_at, {0: (True, 10.0), 8: (True, 34.0)}, 100)
    assert asked == [30, 120]
    assert (found["batch_per_chip"], found["peak_bytes"], found["too_large"]) == (30, 100, 120)
    assert found["predicted"] == 30 and found["compiles"] == 2


def test_what_is_not_affine_is_corrected():
    peaks_at, asked = compiler(100, lambda b: 30 + 3 * b)  # the arguments alone are 10
    found = report.largest_batch(peaks_at, {0: (True, 10.0), 2: (True, 36.0)}, 100)
    assert found["batch_per_chip"] == 23 and len(asked) <= 4


def test_where_the_prediction_just_fails_a_batch_near_it_is_known_to_fit():
    # of MAGE on a chip of 15.75, made a little harder: 295 fit, 296 do not
    peaks_at, asked = compiler(15.75, lambda b: 1.63 + 0.0475 * b + 0.3 * (b > 295))
    known = {0: (True, 1.7), 8: (True, 2.0), 380: (False, 19.7), 1520: (False, 73.9)}
    found = report.largest_batch(peaks_at, known, 15.75)
    assert asked == [284, 296]
    assert (found["batch_per_chip"], found["too_large"]) == (284, 296)  # within 5 %


def test_a_batch_that_does_not_fit_is_an_answer():
    peaks_at, _ = compiler(100, lambda b: 10 + 3 * b)
    found = report.largest_batch(peaks_at, {0: (True, 10.0), 64: (False, 202.0)}, 100)
    assert (found["batch_per_chip"], found["too_large"]) == (30, 64)
    nothing = report.largest_batch(compiler(100, lambda b: 200)[0],
                                   {0: (True, 10.0), 1: (False, None)}, 100)  # fmt: skip
    assert nothing["batch_per_chip"] == 0


def test_the_search_halves_when_the_compiler_says_no_sizes():
    peaks_at, _ = compiler(11, lambda b: b, says=lambda batch, peak: None)
    found = report.largest_batch(peaks_at, {0: (True, 1.0), 16: (False, None)}, 100)
    assert (found["batch_per_chip"], found["too_large"]) == (11, 12)


def bent(batch):  # of MAE on a chip of 16: all but affine
    return 5 + 0.003 * batch + (batch / 400) ** 2


def test_a_far_guess_that_fails_without_a_size_is_narrowed_down():
    peaks_at, _ = compiler(16, bent, says=lambda batch, peak: peak if peak <= 16 else None)
    found = report.largest_batch(peaks_at, {0: (True, 4.6), 8: (True, 5.1)}, 16)
    fits = max(b for b in range(2000) if bent(b) <= 16)
    assert found["batch_per_chip"] <= fits < found["too_large"] <= 1.05 * found["batch_per_chip"]
    assert found["compiles"] <= 12


def test_the_search_ends_in_time_and_says_what_it_only_predicts():
    now = [0.0]
    ask, asked = compiler(16, bent)

    def peaks_at(batches):
        now[0] += 50
        return ask(batches)

    found = report.largest_batch(
        peaks_at, {0: (True, 4.6), 8: (True, 5.1)}, 16, seconds=120, clock=lambda: now[0]
    )
    assert len(asked) == found["compiles"] == 4 and found["seconds"] == 100
    assert found["batch_per_chip"] in asked and bent(found["batch_per_chip"]) <= 16
    assert found["predicted"] not in asked


def test_the_table_shows_every_number_it_has():
    step = {
        "batch": 128, "batch_per_chip": 8.0, "argument_bytes": 2**30, "state_bytes": 2**29,
        "fits": True, "peak_bytes": 3 * 2**30, "flops": 5e12, "model_flops": 4e12,
        "moved_bytes": 2e9, "wire_bytes": 1e9, "slice_bytes": 0, "compile_s": 60,
        "compile_cpu_s": 33,
        "collectives": {"all-reduce": {"count": 6, "bytes": 5e8, "wire_bytes": 1e9}},
    }  # fmt: skip
    step |= report.roofline(step, 16, V5E)
    too_large = {"batch": 64, "batch_per_chip": 4.0, "fits": False, "error": "RESOURCE_EXHAUSTED"}
    text = report.table({
        "name": "a model", "phase": "unlearn", "topology": "v5e:4x4", "slices": 1, "chips": 16,
        "device_kind": "TPU v5 lite", "mesh": {"data": 16, "fsdp": 1}, "chip": V5E._asdict(),
        "parameters": 1000, "trained": 10, "programs": {"step": step, "sampler": too_large},
        "largest": {"batch_per_chip": 30, "peak_bytes": 15 * 2**30, "compiles": 1,
                    "too_large": 31, "predicted": 32, "seconds": 9.6},
    })  # fmt: skip
    for part in ("1,000, of which 10", "3.00 GiB", "6 x, 0.50 GB", "5.00 TFLOP", "bound by",
                 "sampler: RESOURCE_EXHAUSTED", "largest batch: 480 (30 per chip", "NO", "in 10 s",
                 "32 per chip may fit: predicted, not compiled",
                 "31 per chip does not fit"):  # fmt: skip
        assert part in text
