"""Machine unlearning for image-to-image generative models, in JAX.

The public names, each imported when it is first used: `import unlearn_jax` brings no JAX.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_WHERE = {
    "load_config": "config.load",
    "default": "config",
    "phase": "config",
    "method": "config",
    "Request": "request",
    "load_model": "complete",
    "audit_functions": "audit.functions",
    "import_torch": "convert.own",
    "show": "report.pictures",
    "Model": "models.base",
    "Terms": "methods.terms",
    "prepares": "methods.preparation",
    "Prepared": "methods.preparation",
    "UserError": "registry",
}
__all__ = ["__version__", *_WHERE]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for (PEP 562)."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
