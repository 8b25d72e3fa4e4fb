"""TPU pods and GPUs that need not be there: their compilers run on a CPU machine."""

import contextlib
import os
import pathlib
from collections.abc import Iterator, Sequence

from jax.experimental import topologies

from synth2_jax.errors import UserError
from synth2_jax.planning.chips import Chip, chip_of

FLAGS = pathlib.Path(__file__).parent / "libtpu_flags.txt"
INSTALL = "install the TPU compiler by `pip install '.[tpu]'` (Linux on x86-64 only)"
INSTALL_CUDA = "install the compiler for GPUs by `pip install '.[cuda-plan]'` (Linux only)"

# Tuning would run candidates on the card.
_CUDA_OPTIONS = {"xla_gpu_autotune_level": "0"}
_TARGET = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_block_optin: {block_memory}
  shared_memory_per_core: {shared_memory} l2_cache_size: {cache}
  core_count: {cores} fpus_per_core: {fpus} clock_rate_ghz: {clock_ghz}
  memory_bandwidth: {bandwidth:.0f} device_memory_size: {memory:.0f}
  cuda_compute_capability {{ major: {major} minor: {minor} {extension} }}
  name: "{name}" driver_version: "13.0.0" runtime_version: "13.0.0"
  compile_time_toolkit_version: "13.0.0" dnn_version: "9.10.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{name}"
"""


def devices(name: str, num_slices: int = 1) -> Sequence:
    """Returns the devices of `num_slices` such pods, for a mesh to be compiled for; none can run.

    Raises:
      UserError: no compiler, or a shape that these chips do not come in.
    """
    chip, shape = chip_of(name)
    if chip.target:
        if num_slices > 1:
            raise UserError(f"--slices: found {num_slices}, expected 1 for GPUs")
        target = _target(name.partition(":")[0], chip)
        options = {"topology": f"1x1x{shape or 1}", "target_config": target}
        platform, install = "cuda", f"no compiler for GPUs; {INSTALL_CUDA}"
    else:
        options = {"topology_name": name, **dict(chip.options)}
        if num_slices > 1:
            options["num_slices"] = num_slices
        platform, install = "tpu", f"no libtpu; {INSTALL}"
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no metadata server to ask
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # no process holds a TPU here
    try:
        with _quiet():
            return topologies.get_topology_desc(platform=platform, **options).devices
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        if any(word in reason for word in ("not installed", "libtpu", "not implemented")):
            raise UserError(f"--topology={name}: found {install}") from error
        raise UserError(f"--topology={name}: {reason:.200}") from error


def _target(name: str, chip: Chip) -> str:
    """Returns a GPU as XLA reads it, in the text of its GpuTargetConfigProto."""
    major, minor = chip.target.compute_capability.split(".")
    return _TARGET.format(
        **vars(chip.target),
        name=f"NVIDIA {name.upper()}",
        block_memory=chip.target.shared_memory - 1024,
        fpus=64 if major == "8" else 128,
        bandwidth=chip.hbm_bandwidth,
        memory=chip.hbm_bytes,
        major=major,
        minor=minor,
        extension="feature_extension: ACCELERATED_FEATURES" if major == "9" else "",
    )


def compiler_options(platform: str) -> dict[str, str]:
    """Returns what launch/tpu_worker.sh gives to libtpu, so that what is planned is what runs.

    Nothing if LIBTPU_INIT_ARGS is set: libtpu then has the user's own from there. For platform
    "gpu" what a compiler needs that has no card.
    """
    if platform == "gpu":
        return _CUDA_OPTIONS
    if "LIBTPU_INIT_ARGS" in os.environ:
        return {}
    lines = FLAGS.read_text().splitlines()
    flags = (line.removeprefix("--") for line in lines if line.startswith("--"))
    return dict(flag.split("=", 1) for flag in flags)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences stderr: libtpu looks for a TPU of this machine first, and says that there is none.

    But it names there a flag that it does not know, and ends the process.
    """
    if os.environ.get("LIBTPU_INIT_ARGS"):
        yield
        return
    kept, silence = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(silence)
