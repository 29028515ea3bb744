"""Checkpoints with orbax: whole models, exact resume, damage noticed and never loaded.

A checkpoint of step k is a directory WORKDIR/checkpoints/k with three items: `params` (the whole
model, so that a checkpoint can be used by itself), `opt` (optimizer state, key, step) and `meta`
(JSON: what the run was doing, and a checksum of every array). orbax writes it in the background
and renames it into place when it is whole; the checksums catch what changes after that.
Several processes save and restore together: each its part of the arrays, the first one the rest.
"""

import contextlib
import errno
import functools
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from unlearn_jax import distributed, files
from unlearn_jax.registry import AGAIN, DamagedError, UserError
from unlearn_jax.sharding import leaf_path, make_mesh, replicated

DIRECTORY = "checkpoints"
WRITE_ERRORS = errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO
Meta = dict[str, Any]
_META = {"step": int, "done": bool, "checksums": {"*": int}, "sha256": str}
Params = Mapping[str, Any]  # as of `models.base`


def checksums(tree: Any) -> dict[str, int]:
    """Compute a 32-bit checksum of every leaf, by path.

    Computed on the device from bits and positions, so it is the same on any mesh and needs no copy
    of the array on the host. Any change of a single element changes it.
    """
    values = {}
    # Leaf by leaf: one program for all would need as much memory again as the tree.
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        values[leaf_path(path)] = value = _checksum(leaf)
        # The devices of a CPU share few threads: two sums over them could wait for each other's.
        if jax.default_backend() == "cpu":
            value.block_until_ready()
    return {path: int(value) for path, value in jax.device_get(values).items()}


@jax.jit
def _checksum(leaf: jax.Array) -> jax.Array:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    if leaf.dtype == bool:
        leaf = leaf.astype(jnp.uint8)
    bits = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{8 * leaf.dtype.itemsize}"))
    position = jnp.zeros(bits.shape, jnp.uint32)
    for axis, size in enumerate(bits.shape):
        position = position * size + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    # The finalizer of MurmurHash3 is a bijection of 32 bits; a sum forgets the order of terms.
    h = bits.astype(jnp.uint32) ^ (position * jnp.uint32(0x9E3779B9))
    h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
    return (h ^ (h >> 16)).sum(dtype=jnp.uint32)


def _not_of_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname


def _quiet() -> None:
    """Keep orbax from logging what reaches the user as one exception."""
    logging.getLogger("absl").addFilter(_not_of_orbax)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    if getattr(sys.unraisablehook, "func", None) is not _unless_loop_is_closed:
        sys.unraisablehook = functools.partial(_unless_loop_is_closed, sys.unraisablehook)


def _unless_loop_is_closed(hook: Callable[[Any], None], ignored: Any) -> None:
    """Say nothing of TensorStore's writes that end after orbax has given up on one of them."""
    if "Event loop is closed" not in str(ignored.exc_value):
        hook(ignored)


@contextlib.contextmanager
def open_manager(
    workdir: Path, *, keep: int = 2, **options: Any
) -> Iterator[ocp.CheckpointManager]:
    """Open an orbax manager of workdir's checkpoints; leaving waits until the last is durable.

    Args:
      workdir: of the run.
      keep: how many of the newest checkpoints are kept.
      options: more arguments of the manager.

    Raises:
      OSError: a checkpoint could not be written, for example because the disk is full.
    """
    _quiet()
    directory = (workdir / DIRECTORY).absolute()
    directory.mkdir(parents=True, exist_ok=True)
    policy = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
    manager = ocp.CheckpointManager(directory, options=policy, **options)
    lost = False
    try:
        yield manager
    except Exception as error:  # if a peer is gone, its part will never be written
        lost = jax.process_count() > 1 and distributed.exit_code(error) == AGAIN
        raise
    finally:
        if not lost:
            with _explained(directory):
                manager.wait_until_finished()
            manager.close()


@contextlib.contextmanager
def _explained(directory: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # orbax and tensorstore wrap an OSError in various types
        free = shutil.disk_usage(directory).free / 2**20
        known = (os.strerror(number) for number in WRITE_ERRORS)
        reason = next(
            (text for text in known if text in _all_text(error)),
            str(error).partition(" [")[0][:300],
        )
        raise OSError(
            f"Could not write a checkpoint under {directory}: {reason}\n({free:.0f} MiB are free "
            "on that disk. Checkpoints written before are kept; make room and run the same "
            "command to resume.)"
        ) from error


def _all_text(error: BaseException | None) -> str:
    """Join what an exception and those that led to it say: any of them may name the reason."""
    said = []
    while error is not None:
        said += [str(error), *map(str, getattr(error, "exceptions", ()))]
        error = error.__cause__ or error.__context__
    return "\n".join(said)


def save(manager: ocp.CheckpointManager, params: Params, opt: Any, meta: Meta) -> None:
    """Start saving step meta["step"]; the arrays may be donated as soon as this returns."""
    meta = _sealed(meta, params=params, opt=opt)
    with _explained(Path(manager.directory)):
        manager.save(
            meta["step"],
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(params),
                opt=ocp.args.StandardSave(opt),
                meta=ocp.args.JsonSave(meta),
            ),
            force=True,
        )


def _sealed(meta: Meta, **items: Any) -> Meta:
    meta = meta | {"checksums": checksums(items)}
    return meta | {"sha256": files.digest(meta)}


def save_params(workdir: Path, params: Params, **facts: Any) -> None:
    """Save a whole model that was not trained here as a finished run of no steps.

    Needs little memory besides the model's.

    Args:
      workdir: of the run.
      params: of the model.
      facts: more for its meta.

    Raises:
      OSError: it could not be written.
    """
    meta = {"step": 0, "phase": 0, "phase_start": 0, "phases": [], "done": True,
            "wall_s": 0.0, "compile_s": 0.0, "examples": 0, "flops": 0.0, **facts}  # fmt: skip
    meta = _sealed(meta, params=params)
    at_once = max(0.1, *(2e-9 * leaf.nbytes for leaf in jax.tree.leaves(params)))
    handler = ocp.PyTreeCheckpointHandler(
        save_concurrent_gb=at_once, save_device_host_concurrent_gb=at_once
    )
    handlers = {"params": handler, "meta": ocp.JsonCheckpointHandler()}
    with open_manager(workdir, keep=1, item_handlers=handlers) as manager:
        with _explained(Path(manager.directory)):
            manager.save(
                0,
                args=ocp.args.Composite(
                    params=ocp.args.PyTreeSave(params), meta=ocp.args.JsonSave(meta)
                ),
            )


def restore_latest(
    manager: ocp.CheckpointManager, like: Callable[[Meta], tuple[Params, Any]]
) -> tuple[Params, Any, Meta] | None:
    """Return (params, opt, meta) of the newest undamaged checkpoint, None if nothing was saved.

    A damaged checkpoint is moved to WORKDIR/damaged, which is said on stderr, and the one before
    it is tried.

    Args:
      manager: from `open_manager`.
      like: from meta to ShapeDtypeStructs (with shardings) of params and opt.

    Raises:
      UserError: the checkpoints are of another model, or every one of them is damaged.
    """
    directory = Path(manager.directory)
    damaged = []
    for step in distributed.agreed(sorted(manager.all_steps(), reverse=True)):
        try:
            meta = _restore_meta(directory, step)
            params, opt = like(meta)
            return (*_restore_checked(directory, step, meta, params=params, opt=opt), meta)
        except Damaged as error:
            aside = directory.parent / "damaged" / str(step)
            if distributed.first():
                aside.parent.mkdir(exist_ok=True)
                shutil.rmtree(aside, ignore_errors=True)
                (directory / str(step)).rename(aside)
            distributed.agreed(step)  # that it is gone
            manager.reload()
            damaged.append(step)
            print(f"warning: {error}; moved to {aside}, trying an older one", file=sys.stderr)
    if damaged:
        raise DamagedError(
            f"Every checkpoint of {directory} was damaged (steps {damaged}, now in "
            f"{directory.parent / 'damaged'}). Run the same command again to start anew."
        )
    return None


def saved_steps(workdir: Path | str) -> list[int]:
    """Return the steps of which there is a checkpoint, in no order."""
    return [int(p.name) for p in (Path(workdir) / DIRECTORY).glob("*") if p.name.isdigit()]


def _none_in(workdir: Path) -> UserError:
    """Return the error of a folder without checkpoints, with the nearest one that has some."""
    near = [p for p in workdir.parents[:3] if saved_steps(p)]
    near += sorted({p.parents[1] for p in workdir.glob(f"*/{DIRECTORY}/*") if p.name.isdigit()})
    hint = f" Did you mean {near[0]}?" if near else ""
    return UserError(f"Expected a trained model in {workdir}, found no checkpoint there.{hint}")


def read_meta(workdir: Path | str) -> Meta:
    """Return the meta of the newest checkpoint, of a finished run or not.

    Raises:
      UserError: there is no checkpoint, or it is damaged.
    """
    steps = distributed.agreed(saved_steps(workdir))
    if not steps:
        raise _none_in(Path(workdir))
    try:
        return _restore_meta(Path(workdir).absolute() / DIRECTORY, max(steps))
    except Damaged as error:
        raise DamagedError(str(error)) from error


def is_done(workdir: Path | str) -> bool:
    """Tell whether there is a finished run, as far as its newest checkpoint tells."""
    try:
        return bool(read_meta(workdir)["done"])
    except UserError:  # whoever reads it is told
        return False


def run_of(relevant: Mapping[str, Any]) -> dict[str, str]:
    """Return hashes of the run that a checkpoint is of: {"config", "split"}.

    Args:
      relevant: of its config, as config.json has it; see `config.identity`.
    """
    config = {key: value for key, value in relevant.items() if key != "rows"}
    return {"config": files.digest(config), "split": str(relevant.get("rows"))}


def load_params(workdir: Path | str, like: Params, step: int | None = None) -> tuple[Params, Meta]:
    """Return (params, meta) of a finished run.

    Args:
      workdir: of the run.
      like: ShapeDtypeStructs of the whole model, with shardings.
      step: of `saved_steps`, to load an earlier checkpoint, of a run that may go on.

    Raises:
      UserError: there is none, the run has not finished, another model, or damage.
    """
    _quiet()
    directory, steps = Path(workdir).absolute() / DIRECTORY, saved_steps(workdir)
    steps = distributed.agreed(steps)
    if not steps:
        raise _none_in(Path(workdir))
    last = step is None
    step = max(steps) if step is None else step
    try:
        meta = _restore_meta(directory, step)
        if last and not meta["done"]:
            raise UserError(
                f"The run in {workdir} has not finished (step {step}). Run its command again to "
                "resume it."
            )
        (params,) = _restore_checked(directory, step, meta, params=like)
    except Damaged as error:
        raise DamagedError(
            f"{error}. Run the command that made it again: it falls back to its last good "
            "checkpoint and finishes from there."
        ) from error
    return params, meta


def stored(workdir: Path | str) -> tuple[Params, Meta]:
    """Return (ShapeDtypeStructs on one device, meta) of a finished run, whatever its model.

    Raises:
      UserError: there is none, it has not finished, or damage.
    """
    _quiet()
    directory, steps = Path(workdir).absolute() / DIRECTORY, saved_steps(workdir)
    if not steps:
        raise _none_in(Path(workdir))
    step = max(steps)
    try:
        meta = _restore_meta(directory, step)
        like = _whole(directory, step, "params")
    except Damaged as error:
        raise DamagedError(str(error)) from error
    if not meta["done"]:
        raise UserError(f"The run in {workdir} has not finished (step {step}).")
    return like, meta


def load_step(workdir: Path | str, step: int) -> tuple[Params, Any, Meta]:
    """Return (params, opt, meta) of the checkpoint of a step, on one device, whatever its model.

    Raises:
      UserError: there is none, or it is damaged.
    """
    _quiet()
    directory = Path(workdir).absolute() / DIRECTORY
    try:
        meta = _restore_meta(directory, step)
        like = {item: _whole(directory, step, item) for item in ("params", "opt")}
        return (*_restore_checked(directory, step, meta, **like), meta)
    except Damaged as error:
        raise DamagedError(str(error)) from error


def _whole(directory: Path, step: int, item: str) -> Any:
    """Return what an item holds, as ShapeDtypeStructs on one device; of several processes, all."""
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    if jax.process_count() > 1:
        device = replicated(make_mesh())
    with _damage(directory, step, item), _reader() as reader:
        _check_regular(directory / str(step) / item)
        tree = reader.metadata(directory / str(step) / item).item_metadata.tree
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), tree)


def _check_regular(folder: Path) -> None:
    """Check that a folder of others has files only: orbax would wait for a pipe."""
    for path in folder.rglob("*"):
        if not path.is_dir():
            files.regular(path)


class Damaged(Exception):
    """A checkpoint that cannot be read, or whose content is not what was saved."""


@contextlib.contextmanager
def _damage(directory: Path, step: int, item: str) -> Iterator[None]:
    """Make any exception a `Damaged`, on all processes if it is raised on one of them."""
    found = None
    try:
        yield
    except Exception as error:  # damage shows up as almost any exception type
        found = error
    if not distributed.everywhere(found is None):
        reason = f"{type(found).__name__}: {str(found).splitlines()[:1]}"[:200]
        reason = f"{item}: {reason if found else 'another process could not read it'}"
        raise Damaged(f"Checkpoint {directory / str(step)} is damaged ({reason})") from found


def _reader() -> ocp.StandardCheckpointer:
    """Open a reader that waits for no process, which may have met damage that this has not."""
    here = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=here, active_processes={here}, barrier_sync_key_prefix=f"process{here}"
    )
    return ocp.StandardCheckpointer(multiprocessing_options=alone)


def _restore_meta(directory: Path, step: int) -> Meta:
    with _damage(directory, step, "meta"):
        path = directory / str(step) / "meta" / "metadata"
        meta = files.read_json(path, "a checkpoint's meta", schema=_META)
        if meta.pop("sha256") != files.digest(meta):
            raise UserError("checksum of meta is wrong")
        if wrong := files.problems(meta.get("phases", []), [dict]):
            raise UserError(f"phases{wrong[0]}")
    _check_place(directory / str(step), meta)
    return meta


def _check_place(path: Path, meta: Meta) -> None:
    """Check that a checkpoint lies where its run has saved it: that step, beside that config.json.

    Raises:
      UserError: the folder was renamed, or copied from another run.
    """
    if str(meta["step"]) != path.name:
        raise UserError(
            f"{path} is the checkpoint of step {meta['step']}, by what it says itself: the folder "
            f"was renamed. Name it {meta['step']} again, or remove it."
        )
    config = path.parents[1] / "config.json"
    if not config.exists():
        return
    if not (of := meta.get("of")):
        return _say_unbound(path.parent) if meta.get("examples") else None
    try:
        recorded = files.read_json(config, "the record of a run", schema={"relevant": dict})
    except UserError as error:
        raise DamagedError(str(error)) from error
    expected = run_of(recorded["relevant"])
    if of != expected:
        of = of if isinstance(of, dict) else {}
        told = [
            f"{k} {str(of.get(k))[:12]}, not {v[:12]}"
            for k, v in sorted(expected.items())
            if v != of.get(k)
        ]
        raise UserError(
            f"{path} was saved by another run than that of {config}: {'; '.join(told)}. Put this "
            "run's own checkpoints back, or use another --workdir."
        )


@functools.cache  # once for a folder
def _say_unbound(directory: Path) -> None:
    if distributed.first():
        print(
            f"{directory} is of an earlier version and does not say of which run: loaded, as its "
            "steps are those of its folders.",
            file=sys.stderr,
        )


def _restore(directory: Path, step: int, item: str, like: Any) -> Any:
    path = directory / str(step) / item
    restored = None
    with _damage(directory, step, item), _reader() as reader:
        mismatches = differences(like, reader.metadata(path).item_metadata.tree)
        if not mismatches:
            restored = reader.restore(path, like)
    if not mismatches:
        return restored
    listed = "\n".join(f"  {line}" for line in mismatches)
    raise UserError(
        f"The checkpoint {path} is of another model than the config's:\n{listed}\n"
        "Use the config it was made with, or another --workdir."
    )


def _restore_checked(directory: Path, step: int, meta: Meta, **like: Any) -> tuple[Any, ...]:
    restored = {item: _restore(directory, step, item, tree) for item, tree in like.items()}
    found = checksums(restored)
    wrong = [path for path, value in found.items() if meta["checksums"].get(path) != value]
    if wrong:
        raise Damaged(
            f"Checkpoint {directory / str(step)} is damaged (checksum of {len(wrong)} array(s) "
            f"is wrong: {', '.join(wrong[:3])})"
        )
    return tuple(restored.values())


def differences(expected: Any, found: Any) -> list[str]:
    """Compare two trees of arrays, or their metadata, path by path: presence and shape."""

    def shapes(tree):
        flat = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
        shapes = {}
        for path, leaf in flat:
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):  # stored as their bits
                leaf = jax.eval_shape(jax.random.key_data, leaf)
            shapes[leaf_path(path)] = f"{jnp.dtype(leaf.dtype).name}{list(leaf.shape)}"
        return shapes

    expected, found = shapes(expected), shapes(found)
    return [
        f"{path}: expected {expected.get(path, 'nothing')}, found {found.get(path, 'nothing')}"
        for path in sorted(set(expected) | set(found))
        if expected.get(path) != found.get(path)
    ]
