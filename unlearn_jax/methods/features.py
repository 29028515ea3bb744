"""What anybody sees of a degraded image, in eight numbers."""

import jax.numpy as jnp


def features(batch):
    """Describe the visible part: brightness, contrast, colour, detail, all of it and near the hole.

    Args:
      batch: of images and masks.

    Returns:
      [b 8].
    """
    image, shown = batch["image"], 1 - batch["mask"]
    near = shown * (
        jnp.roll(batch["mask"], (4, 4), (1, 2)) + jnp.roll(batch["mask"], (-4, -4), (1, 2)) > 0
    )

    def moments(values, where):
        count = jnp.maximum(where.sum((1, 2, 3)) * values.shape[-1], 1)
        mean = (values * where).sum((1, 2, 3)) / count
        square = (jnp.square(values - mean[:, None, None, None]) * where).sum((1, 2, 3)) / count
        return mean, jnp.log(square + 1e-4)

    grey = image.mean(-1, keepdims=True)
    steps = [jnp.abs(grey - jnp.roll(grey, 1, axis)) for axis in (1, 2)]
    brightness, contrast = moments(image, shown)
    detail = jnp.log(moments(sum(steps), shown)[0] + 1e-3)
    detail_near = jnp.log(moments(sum(steps), near)[0] + 1e-3)
    colour = moments(image - grey, shown)[1]
    near_mean, near_contrast = moments(image, near)
    rest = [jnp.square(brightness), jnp.abs(near_mean - brightness)]
    return jnp.stack([brightness, contrast, colour, detail, detail_near, near_contrast, *rest], 1)
