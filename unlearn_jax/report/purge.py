"""Delete what a receipt says must go, and nothing else; see `receipt`."""

from pathlib import Path

from unlearn_jax.registry import UserError
from unlearn_jax.report import issue, receipt, results_page


def run(workdir: Path, sure: bool = False) -> None:
    """Delete what the receipt of a workdir lists inside of it, and record that in the receipt.

    A file goes only if the receipt lists it and the rules of this program say so, too. No link is
    followed. What was interrupted goes on when it is called again.

    Args:
      workdir: of the request.
      sure: do not ask.

    Raises:
      UserError: no receipt, an altered or purged one, another model, or the answer was no.
      OSError: a file could not be deleted.
    """
    receipt.check_open(workdir)
    known, (present, _) = receipt.read(workdir), receipt.walk(workdir)
    sizes = {name: of["bytes"] for name, of in known["files"].items()}
    rules = [*receipt.to_delete(sizes), receipt.PICTURES]
    listed = [name for name in sizes if receipt.under(name, known["delete"])]
    if wrong := [name for name in listed if not receipt.under(name, rules)]:
        raise UserError(f"{workdir / receipt.FILE} lists {wrong[0]}, which must stay: altered.")
    if issue.model(workdir / receipt.RELEASED) != known["models"][receipt.RELEASED]:
        raise UserError(
            f"{workdir / receipt.RELEASED} is not the model of the receipt: nothing is deleted. "
            f"Write the receipt again: unlearn-jax receipt --workdir={workdir}"
        )
    going = [name for name in listed if name in present and name != receipt.PAGE]
    print(receipt.text(known))
    _ask(f"delete {len(going)} files", sure)
    if receipt.PAGE in listed:  # first, for it is made of files that go
        known["delete"].remove(receipt.PICTURES)
        results_page.write(workdir, known, pictures=False)
        known["files"] |= receipt.digests(workdir, [receipt.PAGE])
        receipt.seal(workdir, known)
        listed.remove(receipt.PAGE)
    for name in going:
        (workdir / name).unlink()
        for folder in (workdir / name).parents:
            if folder == workdir or any(folder.iterdir()):
                break
            folder.rmdir()
    size = sum(sizes[name] for name in listed)
    known["purged"] = {"time": receipt.now(), "files": len(listed), "bytes": size}
    receipt.seal(workdir, known)


def _ask(words: str, sure: bool) -> None:
    """Raise UserError unless the user types these words."""
    try:
        answer = words if sure else input(f"Type '{words}' to go on: ").strip()
    except EOFError:
        answer = ""
    if answer != words:
        raise UserError(f"purge: expected {words!r}: nothing was deleted. --yes does not ask.")
