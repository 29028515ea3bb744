"""Eight fake CPU devices, and run-time checks of shapes and types, for every test."""

import os

os.environ.update(JAX_PLATFORMS="cpu", JAX_NUM_CPU_DEVICES="8")

from jaxtyping import install_import_hook

install_import_hook("unlearn_jax", "beartype.beartype")
