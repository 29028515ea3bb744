"""Checkpoints of Inception-v3 with torchvision's names: FID's (pytorch-fid) and torchvision's."""

from typing import Any

from unlearn_jax.convert.family import Family, Published, Shapes
from unlearn_jax.convert.resnet50 import STATISTICS, buffers
from unlearn_jax.evaluate.towers.inception import VARIANTS, Inception
from unlearn_jax.registry import UserError


def _read(shapes: Shapes) -> dict[str, Any]:
    """Read width, classes and whether there is an auxiliary head off the tensors of a tower.

    The variant, of which tensors say nothing, follows from the published classes, 1008 or 1000.

    Raises:
      UserError: the tensors are not those of an Inception-v3.
    """
    first, last = "Conv2d_1a_3x3.conv.weight", "fc.weight"
    if missing := [
        name for name in (first, "Mixed_7c.branch_pool.conv.weight", last) if name not in shapes
    ]:
        raise UserError(
            f"convert inception: expected tensors {missing}, not found. Is it an Inception-v3 with "
            "torchvision's names?"
        )
    return {
        "width": shapes[first][0],
        "classes": shapes[last][0],
        "auxiliary": any(name.startswith("AuxLogits.") for name in shapes),
    }


FAMILY = Family(
    about="Inception-v3, for FID and the Inception Score",
    build=Inception,
    read=_read,
    needs=("Conv2d_1a_3x3.conv.weight", "Mixed_7c.branch_pool.conv.weight", "fc.weight"),
    unsaid={"variant": "fid|torchvision"},
    example="pt_inception-2015-12-05-6726825d.pth",
    verified="the tensors only; outputs: docs/parity.md",
    published=[
        Published(f"Inception with {classes:,} classes", {"classes": classes}, {"variant": name})
        for name, classes in VARIANTS.items()
    ],
    names=(
        *(
            (rf"{where}/bn/{leaf}", rf"{torch}.bn.{name}")
            for where, torch in (
                (r"unused/(\w+)", r"AuxLogits.\1"),
                (r"(\w+)/(\w+)", r"\1.\2"),
                (r"(\w+)", r"\1"),
            )
            for leaf, name in STATISTICS.items()
        ),
        (r"unused/(\w+)/(conv|bn)", r"AuxLogits.\1.\2"),
        (r"unused/fc", "AuxLogits.fc"),
        (r"(\w+)/(\w+)/(conv|bn)", r"\1.\2.\3"),
        (r"(\w+)/(conv|bn)", r"\1.\2"),
        (r"fc", "fc"),
    ),
    # How many training steps the statistics saw: only training with momentum=None reads it.
    dropped=(r".*\.num_batches_tracked",),
    buffers=lambda tower: buffers(FAMILY, tower),
)
