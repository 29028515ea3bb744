"""The packages: all of unlearn_jax/, and configs/ as unlearn_jax.configs; see pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["unlearn_jax*"]), "unlearn_jax.configs"],
    package_dir={"unlearn_jax.configs": "configs"},
)
