import os
import re
import time
import zipfile

import numpy as np
import pytest

from unlearn_jax import files
from unlearn_jax.registry import DamagedError, UserError

ARRAYS = {"a/b": np.arange(6.0).reshape(2, 3), "n": np.int64(3)}


def test_what_was_written_is_read(tmp_path):
    path = tmp_path / "folder" / "x.npz"
    files.write_arrays(path, ARRAYS, {"kind": "test", "n": 1})
    arrays, about = files.read_arrays(path)
    assert about == {"kind": "test", "n": 1} and arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(arrays[name], array)
    assert [f.name for f in path.parent.iterdir()] == ["x.npz"]


def test_damage_is_noticed(tmp_path):
    path = tmp_path / "x.npz"
    files.write_arrays(path, ARRAYS, {})
    whole = path.read_bytes()
    where = whole.index(np.float64(4.0).tobytes())
    for damaged in (
        whole[: len(whole) // 2],
        whole[:where] + b"\1" + whole[where + 1 :],
        b"",
        b"x",
    ):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"x.npz is damaged, or no file of this package"):
            files.read_arrays(path)
    np.savez(path, **ARRAYS)  # not ours
    with pytest.raises(ValueError, match="no file of this package"):
        files.read_arrays(path)


def test_arrays_of_another_file_are_noticed(tmp_path):
    for number in (1, 2):
        files.write_arrays(tmp_path / f"{number}.npz", {"a": np.full(3, number)}, {})
    with np.load(tmp_path / "1.npz") as one, np.load(tmp_path / "2.npz") as two:
        np.savez(tmp_path / "mixed.npz", a=two["a"], about=one["about"])
    with pytest.raises(ValueError, match="checksum is wrong"):
        files.read_arrays(tmp_path / "mixed.npz")


def test_objects_are_not_executed(tmp_path):
    touched = tmp_path / "touched"

    class Evil:
        def __reduce__(self):
            return (touched.touch, ())

    np.savez(tmp_path / "evil.npz", about=np.array([Evil()], object))
    with pytest.raises(ValueError, match="no file of this package"):
        files.read_arrays(tmp_path / "evil.npz")
    assert not touched.exists()
    with pytest.raises(ValueError):
        files.write_arrays(tmp_path / "y.npz", {"a": np.array([Evil()], object)}, {})
    assert not (tmp_path / "y.npz").exists()


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "x.npz"
    files.write_arrays(path, ARRAYS, {"old": True})

    def full(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space"):
        files.write_arrays(path, ARRAYS, {})
    assert files.read_arrays(path)[1] == {"old": True}
    assert [f.name for f in tmp_path.iterdir()] == ["x.npz"]


# ---- files of others ---------------------------------------------------------------------------


NO_JSON = {
    "[1]": "not a JSON object",
    "3": "not a JSON object",
    "{": "JSONDecodeError",
    '{"a": ' + "[" * 100_000: "nested deeper than 100 levels",
    '{"a": ' + "[" * 120 + "]" * 120 + "}": "nested deeper than 100 levels",
    '{"a": ' + "9" * 5000 + "}": "ValueError",
    b"\xff\xfe{}": "UnicodeDecodeError",
}


@pytest.mark.parametrize("content", NO_JSON, ids=lambda content: NO_JSON[content].split()[0])
def test_what_is_no_json_object_is_one_line_that_names_the_file(tmp_path, content):
    path = tmp_path / "x.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    for use in (
        lambda: files.read_json(path, "a record", "Make it again."),
        lambda: files.read_sealed(path, "k", "a record"),
    ):
        with pytest.raises(UserError, match="^[^\n]*$") as caught:
            use()
        assert f"{path}: expected a record" in str(caught.value)
        assert NO_JSON[content] in str(caught.value)
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(UserError, match=f"{path}: expected a JSON object on each line"):
        files.read_jsonl(path)


def test_a_deep_object_is_read_if_all_that_use_it_can_go_down_with_it(tmp_path):
    value = 0
    for _ in range(98):
        value = [value]
    files.write_json(tmp_path / "x.json", {"a": value})
    assert files.read_json(tmp_path / "x.json", "a record") == {"a": value}


@pytest.fixture(params=["pipe", "folder", "device", "missing", "loop"])
def odd(request, tmp_path):
    """A path at which there is no regular file."""
    path = tmp_path / "odd"
    match request.param:
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "device":
            path.symlink_to("/dev/zero")
        case "loop":
            path.symlink_to("odd")
    return path


def test_nobody_waits_for_what_is_no_regular_file(odd):
    start = time.monotonic()
    for read in (
        lambda: files.read_json(odd, "a record"),
        lambda: files.read_sealed(odd, "k", "a record"),
        lambda: files.file_digest(odd),
        lambda: files.regular(odd),
    ):
        with pytest.raises((UserError, OSError), match=str(odd)):
            read()
    if odd.exists():
        for read in (files.read_jsonl, files.read_arrays):
            with pytest.raises(UserError, match=str(odd)):
                read(odd)
    assert time.monotonic() - start < 5


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    (tmp_path / "x").write_bytes(bytes(9))
    assert files.regular(tmp_path / "x", 9) == tmp_path / "x"
    with pytest.raises(OSError, match="more than 8 bytes"):
        files.regular(tmp_path / "x", 8)


def test_a_sealed_record_has_no_number_that_is_none(tmp_path):
    text = files.sealed({"a": 1}, "k").replace("1", "NaN", 1)
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match="x.json: expected a record .k.; ValueError: Out of range"):
        files.read_sealed(tmp_path / "x.json", "k", "a record")


def test_arrays_that_no_memory_holds_are_refused_before_they_are_unpacked(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "bomb.npz", a=np.zeros(10**6, np.uint8))
    assert files.unzip(tmp_path / "bomb.npz")["a"].shape == (10**6,)
    monkeypatch.setattr(files, "memory", lambda: 10**6)
    with pytest.raises(UserError, match="too many for this memory"):
        files.unzip(tmp_path / "bomb.npz")


def test_what_is_in_an_archive_of_arrays_must_be_one(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("a.txt", "text")
    with pytest.raises(UserError, match="'a.txt' in it is no array"):
        files.unzip(tmp_path / "x.npz")


def test_names_beside_a_file_are_no_paths():
    assert files.is_name("train-00000-of-00003.array_record") and files.is_name("é 1.png")
    for name in (
        "",
        ".",
        "..",
        "a/b",
        "/a",
        "../a",
        "a\0",
        "a\n",
        "\x1b",
        256 * "a",
        None,
        3,
        ["a"],
    ):
        assert not files.is_name(name), name


@pytest.mark.parametrize(
    ("raised", "kind", "text"),
    [
        (KeyError("a"), UserError, "DIR/x: expected a run; KeyError: 'a'. Fix it."),
        (RecursionError(), UserError, "DIR/x: expected a run; RecursionError: . Fix it."),
        (OSError(22, "odd"), UserError, "DIR/x: expected a run; OSError: [Errno 22] odd. Fix it."),
        (FileNotFoundError(2, "gone", "f"), FileNotFoundError, "[Errno 2] gone: 'f'"),
        (UserError("no steps"), UserError, "DIR/x: no steps"),
        (DamagedError("no steps"), DamagedError, "DIR/x: no steps"),
        (UserError("DIR/x: no steps"), UserError, "DIR/x: no steps"),
    ],
)
def test_whatever_fails_in_a_file_of_others_is_an_error_that_names_it(tmp_path, raised, kind, text):
    path = tmp_path / "x"
    if type(raised) is UserError:
        raised = UserError(str(raised).replace("DIR", str(tmp_path)))
    with pytest.raises(kind) as caught, files.of_others(path, "a run", "Fix it."):
        raise raised
    assert str(caught.value) == text.replace("DIR", str(tmp_path)) and type(caught.value) is kind


def test_a_schema_says_what_is_wrong_where():
    schema = {"a": [{"b": int}], "c": {"*": str}, "d": dict | None}
    assert files.problems({"a": [{"b": 1}], "c": {"x": "y"}, "d": None, "more": 1}, schema) == []
    wrong = files.problems({"a": [{"b": "1"}, {}], "c": {"x": 1}}, schema)
    assert [re.sub(": .*", "", text) for text in wrong] == [
        "/d is missing", "/a[0]/b", "/a[1]/b is missing", "/c/x"
    ]  # fmt: skip


def test_the_lines_of_a_killed_process_are_read_without_the_last(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"a": 1}\n{"a": 2}\n{"a"')
    assert files.read_jsonl(tmp_path / "x.jsonl") == [{"a": 1}, {"a": 2}]
    assert files.read_jsonl(tmp_path / "none.jsonl") == []
