"""Topologies: known ones are understood, others are refused with what is there."""

import pytest

from launch.aot import chips


def test_chips_are_counted_over_slices():
    assert chips.parse_topology("v5e:16x16").chips == 256
    assert chips.parse_topology("v5p:2x2x4", slices=3).chips == 48


def test_libtpu_is_told_what_a_name_leaves_open():
    assert chips.parse_topology("v4:2x2x1").options() == {"chip_config_name": "megacore"}
    assert chips.parse_topology("v6e:1x1").options() == {"chips_per_host_bounds": (1, 1, 1)}
    assert chips.parse_topology("v5e:4x4", 2).options() == {"num_slices": 2}
    assert chips.parse_topology("v5p:4x4x4").options() == {}


@pytest.mark.parametrize(
    ("name", "slices", "message"),
    [
        ("v5e:32x32", 1, "16x16.*'32x32'.*--slices"),  # would end the process
        ("v5e:3x3", 1, "one of 1x1, 2x2"),
        ("v5p:4x4", 1, "one of 2x2x1"),
        ("v7x:2x2", 1, "CHIP:SHAPE.*v7x"),
        ("v5e", 1, "CHIP:SHAPE"),
        ("v5e:4x4", 0, "--slices=1 or more"),
        ("local", 2, "--slices=1 or more of a TPU topology"),
    ],
)
def test_other_topologies_are_refused(name, slices, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        chips.parse_topology(name, slices)


def test_one_axis_of_a_mesh_is_filled_in():
    assert chips.parse_mesh("-1:4", 16) == {"data": 4, "fsdp": 4}
    assert chips.parse_mesh("2:-1", 16) == {"data": 2, "fsdp": 8}
    assert chips.parse_mesh("4:16", 64, slices=2) == {"data": 4, "fsdp": 16}


@pytest.mark.parametrize("text", ["4", "4:4:1", "a:b", "-1:-1", "0:16", "3:5", "-2:8", "-1:5"])
def test_meshes_that_do_not_fit_are_refused(text):
    with pytest.raises(ValueError, match="Expected a mesh"):
        chips.parse_mesh(text, 16)


def test_parameters_are_not_sharded_over_slices():
    with pytest.raises(ValueError, match="multiple of the 2 slices"):
        chips.parse_mesh("1:16", 16, slices=2)


def test_chips_are_known_by_their_kind():
    assert chips.by_kind("TPU v5 lite") is chips.TPUS["v5e"]
    assert chips.by_kind("NVIDIA H100 80GB HBM3") is chips.GPUS["H100"]
    assert chips.by_kind("cpu") is None
