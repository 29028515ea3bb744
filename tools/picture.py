"""Draw README's picture: what three models make of forget and retain images.

    python -m tools.picture --workdir=runs/quickstart --out=docs/quickstart.png

Reads the images that the report shows (grids.npz), eight of each set in a random order. Of these,
`--forget` and `--retain` choose by number; the defaults are chosen by eye, as the clearest.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from absl import app, flags

COLUMNS = {
    "truth": "image",
    "input": "with a hole",
    "original": "original",
    "unlearned": "unlearned",
    "retrained": "retrained",
}
ROWS = {"forget": "to forget", "retain": "to keep"}

WORKDIR = flags.DEFINE_string("workdir", "runs/quickstart", "Workdir of a finished request.")
OUT = flags.DEFINE_string("out", "docs/quickstart.png", "The file to write.")
CHOSEN = {
    "forget": flags.DEFINE_list("forget", ["4"], "Which forget images."),
    "retain": flags.DEFINE_list("retain", ["0"], "Which retain images."),
}


def draw(grids: dict[str, np.ndarray], chosen: dict[str, list[int]], out: Path) -> None:
    """Draw a row for each chosen image: the image, the input, and what each model makes of it."""
    rows = [(name, number) for name, numbers in chosen.items() for number in numbers]
    figure, axes = plt.subplots(
        len(rows), len(COLUMNS), figsize=(1.6 * len(COLUMNS), 1.65 * len(rows)), squeeze=False
    )
    for line, (name, number) in zip(axes, rows, strict=True):
        line[0].set_ylabel(ROWS[name], fontsize=11)
        for axis, column in zip(line, COLUMNS, strict=True):
            axis.imshow(grids[f"{name}/{column}"][number], interpolation="nearest")
            axis.set(xticks=[], yticks=[], frame_on=False)
    for axis, title in zip(axes[0], COLUMNS.values(), strict=True):
        axis.set_title(title, fontsize=11)
    figure.tight_layout(pad=0.4)
    figure.savefig(out, dpi=110, metadata={"Software": None})


def main(argv: list[str]) -> None:
    """Run the command."""
    if argv[1:]:
        raise app.UsageError(f"expected flags only, got {argv[1]!r}.")
    with np.load(Path(WORKDIR.value) / "grids.npz") as file:
        grids = dict(file)
    chosen = {name: [int(n) for n in flag.value] for name, flag in CHOSEN.items()}
    draw(grids, chosen, Path(OUT.value))


if __name__ == "__main__":
    app.run(main)
