"""Messages are fit for a terminal, whatever a file of others has in it."""

import contextlib
import os
import pickle

import pytest

from unlearn_jax.registry import DamagedError, UserError, brief, find, of_record


@pytest.mark.parametrize("kind", [UserError, DamagedError])
def test_a_message_escapes_what_would_control_a_terminal(kind):
    error = kind("a\x1b[31m\x07\u202eb\ud800c\té:\n  a list\r\x9b")
    assert str(error) == "a\\x1b[31m\\x07\\u202eb\\ud800c\\té:\n  a list\\r\\x9b"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)  # it stays as it is


def test_a_message_is_as_long_as_a_terminal_can_show():
    first, *listed = str(UserError("\n  ".join(["x" * 10**6, *map(str, range(1000))]))).split("\n")
    assert len(first) == 1000 and first.startswith("xxx") and first.endswith("xxx")
    assert len(listed) == 49 and listed[0] == "  0" and listed[-1] == "  999"
    shown = [line for line in listed if "more" not in line]
    assert listed[-10] == f"  and {1000 - len(shown)} more"
    exact = "\n  ".join(map(str, range(50)))
    assert str(UserError(exact)) == exact


def test_an_error_in_brief_is_a_line():
    assert brief(KeyError("a\nb")) == "KeyError: 'a\\nb'"
    assert brief(ValueError("a\nb")) == "ValueError: a"
    assert brief(UserError("a")) == "a" and len(brief(ValueError("x" * 999))) == 200


def test_a_record_names_nothing_that_it_could_do_harm_with():
    names = {"os:system": False, "subprocess:Popen": False, "no_such_module:x": False}
    names |= {"unlearn_jax.registry:find": True}
    for name, fine in names.items():
        with of_record(), contextlib.nullcontext() if fine else pytest.raises(UserError) as caught:
            found = find({}, name, "data source")
        assert found is find if fine else "no record may import a module" in str(caught.value)
    assert find({}, "os:system", "data source") is os.system  # a user's own config may
