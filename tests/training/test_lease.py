"""Who may write into a workdir, with hosts and clocks that are made up."""

import json
import os
import threading
import time

import pytest

from unlearn_jax.registry import UserError
from unlearn_jax.training import lease

ME = lease.this_process()
OTHER = lease.Holder("other-host", "another boot", 7, "1")


class Clock:
    """A clock that only sleeping moves; `during` happens in each sleep."""

    def __init__(self, during=lambda: None):
        self.now, self.during = 1e9, during

    def time(self):
        return self.now

    monotonic = time

    def sleep(self, seconds):
        self.now += seconds
        self.during()


def left_by(workdir, holder, age=0.0, clock=None):
    """The lease of a job that was killed."""
    now = (clock or time).time() - age
    found = lease.Held(holder, "abc", now, now)
    (workdir / lease.FILE).write_text(json.dumps(found))
    return found


def test_what_it_took_it_gives_back_and_the_folder_is_as_it_was(tmp_path):
    workdir = tmp_path / "runs" / "one"
    with lease.take(workdir):
        assert (workdir / lease.FILE).exists()
        with lease.take(workdir):  # a stage of the same job
            pass
        lease.check(workdir)
    assert not (tmp_path / "runs").exists()
    workdir.mkdir(parents=True)
    with pytest.raises(ZeroDivisionError), lease.take(workdir):
        (workdir / "kept").touch()
        raise ZeroDivisionError
    assert os.listdir(workdir) == ["kept"]


def test_a_living_job_on_this_host_refuses_at_once(tmp_path):
    left_by(tmp_path, ME, age=1000)  # stopped for long, but alive
    with pytest.raises(UserError, match=rf"in use by process {os.getpid()} of .*, since 20\d\d-"):
        lease.Lease(tmp_path, ME, Clock())


@pytest.mark.parametrize("change", [{"process": 2**22 + 1}, {"began": "0"}])
def test_a_job_of_this_host_that_is_gone_is_taken_over_at_once(change, tmp_path, capsys):
    left_by(tmp_path, ME._replace(**change))
    held = lease.Lease(tmp_path, ME, clock := Clock())
    assert clock.now == 1e9 and not held.problem()
    assert "is taken over from process" in capsys.readouterr().err


@pytest.mark.parametrize(("age", "waits"), [(0, 60), (40, 20), (1e6, 10), (-1e6, 60)])
def test_a_killed_job_of_another_host_is_taken_over_after_a_minute(age, waits, tmp_path, capsys):
    clock = Clock()
    left_by(tmp_path, OTHER, age, clock)
    held = lease.Lease(tmp_path, ME, clock)
    assert clock.now == 1e9 + waits and not held.problem()
    err = capsys.readouterr().err
    assert f"Waiting up to {waits} s" in err
    assert "taken over from process 7 of other-host" in err


def test_a_job_of_another_host_that_renews_refuses_whatever_its_clock_says(tmp_path):
    clock = Clock()
    clock.during = lambda: left_by(tmp_path, OTHER, 1e6 - clock.now, clock)
    found = left_by(tmp_path, OTHER, 1e6, clock)
    with pytest.raises(UserError, match="process 7 of other-host"):
        lease.Lease(tmp_path, ME, clock)
    assert lease._read(tmp_path / lease.FILE) != found


def test_one_that_is_given_back_meanwhile_is_free(tmp_path):
    left_by(tmp_path, OTHER)
    held = lease.Lease(tmp_path, ME, Clock((tmp_path / lease.FILE).unlink))
    assert not held.problem()


def test_without_links_the_last_to_write_has_it_and_the_other_ends(tmp_path, monkeypatch):
    def none(*args):
        raise OSError("not supported")

    monkeypatch.setattr(lease.os, "link", none)
    first = lease.Lease(tmp_path, ME)
    left_by(tmp_path, OTHER)  # it had looked before the first one wrote
    assert "in use by process 7 of other-host" in first.problem()
    first.give_back()
    assert (tmp_path / lease.FILE).exists()


def test_only_one_of_many_gets_a_free_one(tmp_path):
    found, start = [], threading.Barrier(8)

    def job():
        start.wait()
        try:
            found.append(lease.Lease(tmp_path, ME))
        except UserError:
            pass

    threads = [threading.Thread(target=job) for _ in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(found) == 1 and not found[0].problem()
    assert os.listdir(tmp_path) == [lease.FILE]


def test_it_is_renewed(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "RENEW_S", 0.01)
    with lease.take(tmp_path):
        before = lease._read(tmp_path / lease.FILE)
        until = time.monotonic() + 20
        while lease._read(tmp_path / lease.FILE) == before and time.monotonic() < until:
            time.sleep(0.01)
        after = lease._read(tmp_path / lease.FILE)
        assert after.time > before.time and after[:3] == before[:3]


@pytest.mark.parametrize("how", ["moved", "swapped", "file"])
def test_a_workdir_that_vanishes_or_is_swapped_ends_the_run(how, tmp_path):
    workdir = tmp_path / "run"
    with lease.take(workdir):
        (workdir / "config.json").touch()
        lease.check(workdir, ["config.json"])
        if how == "file":
            (workdir / "config.json").unlink()
        else:
            workdir.rename(tmp_path / "moved")
        if how == "swapped":
            workdir.mkdir()
            left_by(workdir, OTHER)
        said = {"moved": "missing there", "swapped": "in use by", "file": "lacks config.json"}
        with pytest.raises(UserError, match=said[how]):
            lease.check(workdir, ["config.json"])


@pytest.mark.parametrize("text", ["", "[]", '{"a": 1}', "[[1, 2, 3], 4]", "\\x00"])
def test_what_is_no_lease_is_nobodys(text, tmp_path):
    (tmp_path / lease.FILE).write_text(text)
    assert not lease.Lease(tmp_path, ME, clock := Clock()).problem()
    assert clock.now >= 1e9 + 10


HOSTILE = [["h", "w", 1, "b"], "owner", 1e9, 1e9]


@pytest.mark.parametrize(
    "text",
    [
        json.dumps([HOSTILE[0], "o", 1e308, 1e9]),  # no year has this number
        json.dumps([HOSTILE[0], "o", float("nan"), 1e9]),
        json.dumps([["h", "w", 10**400, "b"], "o", 1e9, 1e9]),
        "[" * 50_000,
        "9" * 5000,
        "\xff\xfe",
    ],
)
def test_a_lease_that_nobody_could_have_written_is_nobodys(tmp_path, text):
    (tmp_path / lease.FILE).write_bytes(text.encode("latin-1"))
    held = lease.Lease(tmp_path, ME, Clock())
    assert not held.problem()
    held.give_back()


def test_a_lease_does_not_write_to_the_terminal_what_it_likes(tmp_path, capsys):
    left_by(tmp_path, OTHER._replace(host="\x1b[31mred"), 1e6, Clock())
    lease.Lease(tmp_path, ME, Clock()).give_back()
    assert "of \\x1b[31mred" in capsys.readouterr().err


def test_nobody_waits_for_a_pipe_in_the_place_of_a_lease(tmp_path):
    os.mkfifo(tmp_path / lease.FILE)
    with pytest.raises(OSError, match=r"lease\.json"):
        lease.Lease(tmp_path, ME, Clock())
