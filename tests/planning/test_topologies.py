"""How libtpu is started for pods that are not there."""

import os
import subprocess
import sys

import pytest

from synth2_jax import sharding
from synth2_jax.planning import topologies


def test_the_compiler_is_told_what_a_tpu_is_told(monkeypatch):
    """tests/test_tpu_run.py shows that the workers have these."""
    monkeypatch.delenv("LIBTPU_INIT_ARGS", raising=False)
    assert topologies.compiler_options("tpu") == {
        "xla_enable_async_all_gather": "true",
        "xla_tpu_enable_async_collective_fusion": "true",
        "xla_tpu_enable_async_collective_fusion_fuse_all_gather": "true",
    }


@pytest.mark.parametrize("flags", ["", "--xla_a=true"])
def test_what_the_user_says_stands_for_all_of_it(monkeypatch, flags):
    monkeypatch.setenv("LIBTPU_INIT_ARGS", flags)
    assert topologies.compiler_options("tpu") == {}


def start_libtpu(**environ):
    program = (
        "from synth2_jax.planning import topologies; print(len(topologies.devices('v5e:2x2')))"
    )
    inherited = {name: value for name, value in os.environ.items() if name != "LIBTPU_INIT_ARGS"}
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**inherited, **environ},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_only_a_flag_that_libtpu_does_not_know_is_named():
    """It ends the process itself, so that no Python can say it."""
    done = start_libtpu(LIBTPU_INIT_ARGS="--xla_no_such_flag=true")
    assert done.returncode != 0 and "Unknown command line flag 'xla_no_such_flag'" in done.stderr
    assert "Traceback" not in done.stderr
    done = start_libtpu()
    assert (done.returncode, done.stdout, done.stderr) == (0, "4\n", "")


def test_what_is_traced_for_a_pod_knows_its_platform():
    mesh = sharding.make_mesh(sharding.MeshConfig(), topologies.devices("v5e:2x2"))
    with sharding.constraints(mesh):
        assert sharding.traced_platform() == "tpu"
    assert sharding.traced_platform() == "cpu"


@pytest.mark.parametrize(
    "name, sizes, num_shards, of_host_1",
    [
        ("v5e:16x16", (16, 16, 1), 64, (2, 3, 18, 19)),  # a host is 2 x 2 of the 16 x 16 chips
        ("v5e:16x16", (16, 4, 4), 32, (0, 4)),
        ("v4:4x4x4", (4, 4, 4), 8, (0, 1)),
        ("v4:4x4x4", (2, 4, 8), 8, (0,)),
        ("v6e:8x8", (2, 4, 8), 4, (0, 1)),
    ],
)
def test_hosts_of_real_pods_read_the_rows_of_their_chips(name, sizes, num_shards, of_host_1):
    """Those of a tensor group share rows, and rows have gaps between them."""
    devices = topologies.devices(name)
    mesh = sharding.make_mesh(sharding.MeshConfig(*sizes), devices)
    hosts = sorted({device.process_index for device in devices})
    layouts = [sharding.data_layout(mesh, host) for host in hosts]
    assert layouts[1].parts == of_host_1
    assert {layout.num_shards for layout in layouts} == {num_shards}
    read = [part for layout in layouts if layout.is_first for part in layout.parts]
    assert sorted(read) == list(range(sizes[0] * sizes[1]))
