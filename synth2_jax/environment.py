"""The environment of a result: versions, device and commit."""

import functools
import importlib.metadata
import pathlib
import platform
import subprocess

import jax

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def describe() -> dict[str, str]:
    """{"python", "device", package: version, "commit"}; commit is "" outside a git checkout."""
    device = jax.devices()[0]
    return {"device": f"{len(jax.devices())} x {device.device_kind}", **versions()}


def versions() -> dict[str, str]:
    """`describe` without the device, which a plan does not run on."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), **found, "commit": commit()}


def commit() -> str:
    """The checkout's commit, with "+" behind it where files have changed since."""
    git = ["git", "-C", str(pathlib.Path(__file__).parent)]
    run = functools.partial(subprocess.run, capture_output=True, text=True, check=True)
    try:
        changed = run([*git, "status", "--porcelain", "--untracked-files=no"]).stdout.strip()
        head = run([*git, "rev-parse", "--short=10", "HEAD"]).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head + "+" * bool(changed)
