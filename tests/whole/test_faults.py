"""The fault campaign at its smallest: always the same faults. See tools/faults.py."""

import os
import random

import pytest

from tools import faults


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    os.environ.update(faults.SYNCHRONOUS)  # of the processes that the campaign starts
    found = faults.Campaign(tmp_path_factory.mktemp("faults"), random.Random(0))
    found.prepare(("prepare", "train"))
    yield found
    for name in faults.SYNCHRONOUS:
        del os.environ[name]


def test_nothing_is_left_of_faults_in_training(campaign):
    chosen = ["SIGKILL all in save"]
    campaign.round("train", 1, chosen)
    assert not campaign.failures
    assert campaign.injected == {("train", fault): 1 for fault in chosen}


def test_another_result_is_noticed(campaign):
    expected = campaign.expected["prepare"]
    campaign.expected["prepare"] = expected | {"more": ""}
    campaign.round("prepare", 2, [])
    campaign.expected["prepare"] = expected
    (failure,) = campaign.failures
    campaign.failures.clear()
    assert "another result" in failure
