"""Signals: answered at once, never lost. In this process, as a command has them."""

import gc
import hashlib
import os
import signal
import threading
import time

import pytest

from unlearn_jax import cli


@pytest.fixture
def told(monkeypatch):
    """(time, text) of the lines that answer signals."""
    lines = []
    monkeypatch.setattr(cli, "_tell", lambda text: lines.append((time.monotonic(), text)))
    return lines


def send(number):
    os.kill(os.getpid(), number)


def wait_for(condition):
    until = time.monotonic() + 20
    while not condition() and time.monotonic() < until:
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_a_command_at_once(number, told):
    before = signal.getsignal(number)
    with pytest.raises(cli.Interrupted, match=f"Stopped by {number.name}, .*same command resumes"):
        with cli.answering():
            send(number)
            time.sleep(20)
    assert signal.getsignal(number) is before and not cli.stopping()
    wait_for(lambda: told)
    assert told[0][1].startswith(f"\n{number.name}: stopping as soon as")


def test_what_has_to_be_finished_is_finished(told):
    done = []
    with pytest.raises(cli.Interrupted, match="SIGTERM"), cli.finishing("once it is saved"):
        send(signal.SIGTERM)
        wait_for(cli.stopping)
        wait_for(lambda: told)
        done.append("saved")
    assert done == ["saved"] and "SIGTERM: stopping once it is saved. Press" in told[0][1]


def test_what_is_inside_and_need_not_be_finished_is_not(told):
    done = []
    with pytest.raises(cli.Interrupted), cli.finishing("once it is saved"):
        with cli.at_once():
            send(signal.SIGTERM)
            time.sleep(20)
            done.append("prepared")
    assert not done
    with pytest.raises(cli.Interrupted), cli.finishing("once it is saved"):
        send(signal.SIGTERM)  # before it
        wait_for(cli.stopping)
        with cli.at_once():
            done.append("prepared")
    assert not done


def test_it_is_answered_while_nothing_in_python_runs(told):
    with pytest.raises(cli.Interrupted), cli.answering():
        threading.Timer(0.1, send, [signal.SIGINT]).start()
        try:
            hashlib.pbkdf2_hmac("sha256", b"", b"", 6_000_000)
        finally:
            ended = time.monotonic()
    assert told and told[0][0] < ended


def test_a_callback_cannot_swallow_it(told):
    def callback(phase, info):
        if not cli.stopping():
            send(signal.SIGTERM)

    gc.callbacks.append(callback)
    try:
        with pytest.raises(cli.Interrupted), cli.answering():
            gc.collect()
            time.sleep(20)
    finally:
        gc.callbacks.remove(callback)
