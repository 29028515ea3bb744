import numpy as np
import pytest

from unlearn_jax import files

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
