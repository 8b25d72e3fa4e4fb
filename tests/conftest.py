"""What must stand in the environment before a test imports JAX or TensorFlow: CPU, and quiet.

And the parity table: tests that compare with other people's code say what they found by the fixture
`parity`; `launch/test.sh --interop --write-parity=docs/parity.md` makes a table of it.
"""

import importlib.metadata
import os
import pathlib
import signal
from collections.abc import Callable

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Tests compile far more than they compute: unoptimized programs halve their time.
flags = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
# The former emitters compile in half the time. XLA aborts on a flag that it does not know.
if importlib.metadata.version("jaxlib").startswith("0.10."):
    flags += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", flags)
# A shell ignores these signals for what it starts in the background or by nohup; tests send them.
handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
for number, handler in handlers.items():
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)
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


PARITY_HEAD = """# Parity with other people's code

Differences between this package and the reference implementations, on random weights made by the
references themselves or on generated captions. Written by

    launch/test.sh --slow --interop tests/interop tests/scoring \\
        tests/stages/test_evaluate_protocols.py --write-parity=docs/parity.md

| what | against | measure | found | limit |
| --- | --- | --- | --- | --- |
"""


def pytest_addoption(parser):
    parser.addoption("--write-parity", metavar="FILE", help="the table of all `parity` found")


@pytest.fixture
def parity(request) -> Callable[..., None]:
    """Asserts `found <= limit` and keeps the row for the table.

    `parity("T5 encoder, 2 layers", "transformers 5.24", "max abs difference", 3e-6, 1e-4)`.
    A limit of 0 stands for "identical".
    """

    def check(what: str, against: str, measure: str, found: float, limit: float) -> None:
        row = (what, against, measure, float(found), float(limit))
        request.node.user_properties.append(("parity", row))
        assert found <= limit, row  # so that NaN fails too

    return check


class ParityTable:
    """Collects the rows of all tests, those of other workers too, and writes them at the end."""

    def __init__(self, path: pathlib.Path):
        self._path = path
        self._rows: set[tuple] = set()

    def pytest_runtest_logreport(self, report):
        if report.when == "call" and report.passed:
            self._rows |= {tuple(row) for name, row in report.user_properties if name == "parity"}

    def pytest_sessionfinish(self, session, exitstatus):
        if exitstatus == 0:
            rows = [
                f"| {what} | {against} | {measure} | {found:.3g} | {limit or 'identical'} |\n"
                for what, against, measure, found, limit in sorted(self._rows)
            ]
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text(PARITY_HEAD + "".join(rows))


def pytest_configure(config):
    path = config.getoption("--write-parity")
    if path and not hasattr(config, "workerinput"):  # the process that all workers report to
        config.pluginmanager.register(ParityTable(pathlib.Path(path)))
