"""Checkpoints of ResNet-50 with torchvision's names, such as places365's."""

from typing import Any

import jax
import numpy as np

from unlearn_jax.convert.family import Family, Published, Shapes
from unlearn_jax.evaluate.towers.resnet50 import DEPTHS, ResNet50
from unlearn_jax.registry import UserError

STATISTICS = {"mean": "running_mean", "var": "running_var"}
"""A batch norm's statistics: leaves here, buffers in torch."""


def _read(shapes: Shapes) -> dict[str, Any]:
    """Read the width and the number of classes off the tensors of a tower.

    Raises:
      UserError: the tensors are not those of a ResNet-50.
    """
    depths = tuple(
        sum(f"layer{stage}.{i}.conv3.weight" in shapes for i in range(100)) for stage in range(1, 5)
    )
    if depths != DEPTHS or not {"conv1.weight", "fc.weight"} <= shapes.keys():
        raise UserError(
            "convert resnet50: expected conv1.weight, fc.weight and, in layer1 to layer4, "
            f"{DEPTHS} blocks with a conv3.weight, got {depths} such blocks. Is it a ResNet-50 "
            "with torchvision's names?"
        )
    return {"width": shapes["conv1.weight"][0], "classes": shapes["fc.weight"][0]}


def buffers(family: Family, tower: Any) -> dict[str, np.ndarray]:
    """Make {name: int64 zero} of every batch norm's `num_batches_tracked`."""
    tree = jax.eval_shape(tower.init, jax.random.key(0))
    paths = ["/".join(k.key for k in path) for path, _ in jax.tree.leaves_with_path(tree)]
    names = [family.torch_name(path) for path in paths if path.endswith("/mean")]
    counter = np.zeros((), np.int64)
    return {name.replace("running_mean", "num_batches_tracked"): counter for name in names}


FAMILY = Family(
    about="ResNet-50 with torchvision's names, such as Places365's",
    build=ResNet50,
    read=_read,
    needs=("conv1.weight", "bn1.running_mean", "layer4.2.conv3.weight", "fc.weight"),
    unsaid={"image_size": "PIXELS"},
    example="resnet50_places365.pth.tar",
    verified="transformers 5.23: logits",
    published=(Published("ResNet-50", {"width": 64}, {"image_size": 224}),),
    names=(
        *((rf"(bn1)/{leaf}", rf"\1.{name}") for leaf, name in STATISTICS.items()),
        *(
            (rf"(layer\d)/block(\d+)/{norm}/{leaf}", rf"\1.\2.{torch}.{name}")
            for norm, torch in ((r"(bn\d)", r"\3"), ("downsample/bn", "downsample.1"))
            for leaf, name in STATISTICS.items()
        ),
        (r"(layer\d)/block(\d+)/downsample/conv", r"\1.\2.downsample.0"),
        (r"(layer\d)/block(\d+)/downsample/bn", r"\1.\2.downsample.1"),
        (r"(layer\d)/block(\d+)/(\w+)", r"\1.\2.\3"),
        (r"(conv1|bn1|fc)", r"\1"),
    ),
    wrapper="state_dict",
    # How many training steps the statistics saw: only training with momentum=None reads it.
    dropped=(r".*\.num_batches_tracked",),
    buffers=lambda tower: buffers(FAMILY, tower),
)
