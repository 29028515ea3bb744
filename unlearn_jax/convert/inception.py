"""Checkpoints of Inception-v3 with torchvision's names: FID's (pytorch-fid) and torchvision's."""

from collections.abc import Mapping
from typing import Any

from unlearn_jax.convert.family import Family, Shapes
from unlearn_jax.convert.resnet50 import STATISTICS, buffers
from unlearn_jax.evaluate.towers.inception import VARIANTS, Inception
from unlearn_jax.registry import UserError


def model(shapes: Shapes, fields: Mapping[str, Any]) -> Inception:
    """Build the tower of a checkpoint: width, classes, auxiliary head are read off, `fields` win.

    The variant follows from the classes, 1008 or 1000; its tensors look the same.

    Raises:
      UserError: the tensors are not those of an Inception-v3, or could be either variant.
    """
    first, last = "Conv2d_1a_3x3.conv.weight", "fc.weight"
    if missing := [
        name for name in (first, "Mixed_7c.branch_pool.conv.weight", last) if name not in shapes
    ]:
        raise UserError(
            f"convert inception: expected tensors {missing}, not found. Is it an Inception-v3 with "
            "torchvision's names?"
        )
    classes = shapes[last][0]
    variant = {count: name for name, count in VARIANTS.items()}.get(classes)
    if variant is None and "variant" not in fields:
        raise UserError(
            "convert inception: expected 1008 classes (the FID variant) or 1000 (torchvision's), "
            f'got {classes} in fc.weight. Say which variant it is: variant="fid" or '
            'variant="torchvision".'
        )
    read = {
        "variant": variant,
        "width": shapes[first][0],
        "classes": classes,
        "auxiliary": any(name.startswith("AuxLogits.") for name in shapes),
    }
    return Inception(**{**read, **fields})


FAMILY = Family(
    model=model,
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
