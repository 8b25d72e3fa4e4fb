"""What must stand in the environment before a test imports JAX or TensorFlow: CPU, and quiet."""

import os
import pathlib

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Tests compile far more than they compute: unoptimized programs halve their time.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
)
# Where launch/test.sh has put the TPU compiler.
for libtpu in (pathlib.Path(__file__).parents[1] / ".venv").glob("libtpu-*/libtpu/libtpu.so"):
    os.environ.setdefault("TPU_LIBRARY_PATH", str(libtpu))


@pytest.fixture(scope="session")
def compilation_cache(tmp_path_factory):
    """Steps that several runs share are compiled once, also for runs in other processes."""
    import jax  # Not at the top: what stands in the environment above must stand there first.

    settings = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
        os.environ.pop(name.upper(), None)  # a test's own environment may have taken it away
