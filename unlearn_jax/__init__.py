"""Machine unlearning for image-to-image generative models, in JAX."""

__version__ = "0.1.0"
