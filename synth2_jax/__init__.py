"""Synth2 in JAX: train caption models on images that were never drawn (arXiv 2403.07750).

`load_vlm` and `load_generator` are those of api.py.
"""

import importlib

__version__ = "0.1.0"
__all__ = ["load_generator", "load_vlm"]


def __getattr__(name: str):
    # When first asked for: JAX and Orbax take seconds to import, and every module imports this one.
    if name in __all__:
        return getattr(importlib.import_module("synth2_jax.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
