"""The fault campaign at its smallest: always the same faults. See tests/faults.py."""

import os
import random

import pytest

from tests import faults


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    os.environ.update(faults.SYNCHRONOUS)  # of the processes that the campaign starts
    found = faults.Campaign(tmp_path_factory.mktemp("faults"), random.Random(0))
    found.prepare(("prepare", "train"))
    yield found
    for name in faults.SYNCHRONOUS:
        del os.environ[name]


@pytest.mark.parametrize(
    ("name", "processes", "chosen"),
    [
        ("train", 1, ["SIGKILL all in save", "64 bytes of data flipped", "full disk"]),
        ("prepare", 2, ["SIGKILL one"]),
    ],
)
def test_nothing_is_left_of_a_fault(campaign, name, processes, chosen):
    campaign.round(name, processes, chosen)
    assert not campaign.failures
    if name == "train":
        assert sum(campaign.injected.values()) == len(chosen)
