"""What a device can do at best: its matmul rate and its copy rate, measured, not read off a sheet.

    python benchmarks/device_limits.py

Other benchmarks call `measure` in the same run and give their share of it (`limited`). `PEAKS` has
the makers' figures, for MFU as papers print it; of a device that is not in it, no MFU is given.
"""

import pathlib
import statistics
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.result import Figure, run_as_command, write_result  # noqa: E402
from synth2_jax.planning.chips import CHIPS  # noqa: E402

# FLOP/s in bfloat16 with float32 sums, without sparsity, by a part of jax's device_kind (NVIDIA's
# and Google Cloud's pages).
KINDS = {"H100": "h100", "H200": "h200", "A100": "a100"}
KINDS |= {"TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5p": "v5p", "TPU v6 lite": "v6e"}
PEAKS = {name: CHIPS[kind].flops for name, kind in KINDS.items()}


def peak_flops(device_kind: str) -> float | None:
    """The maker's figure; None for a device that the table lacks."""
    return next((peak for name, peak in PEAKS.items() if name in device_kind), None)


def seconds(run: Callable[[], object], repeats: int = 5) -> float:
    """Median wall time of `run`, whose result is waited for, after one call that is not counted."""
    jax.block_until_ready(run())
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run())
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def measure(dtype: jnp.dtype = jnp.bfloat16) -> dict[str, float | str | None]:
    """FLOP/s of a large square product in `dtype`, bytes/s of a large copy (read and written)."""
    on_cpu = jax.devices()[0].platform == "cpu"
    size, products = (1024, 4) if on_cpu else (8192, 20)
    keys = jax.random.split(jax.random.key(0))
    # Random numbers: products of zeros run faster than any that matter.
    a, b = (jax.random.normal(key, (size, size), dtype) for key in keys)

    @jax.jit
    def multiply(a, b):
        for _ in range(products):
            a = (a @ b) * jnp.asarray(size**-0.5, dtype)
        return a

    kind = jax.devices()[0].device_kind
    return {
        "dtype": jnp.dtype(dtype).name,
        "matmul_flops_per_second": products * 2 * size**3 / seconds(lambda: multiply(a, b)),
        "copy_bytes_per_second": copy_rate(2**28 if on_cpu else 2**32),
        "peak_flops_per_second": peak_flops(kind),
    }


def copy_rate(num_bytes: float, repeats: int = 5) -> float:
    """bytes/s, read and written, where so many are copied into themselves again and again.

    What fits a cache is faster than what does not.
    """
    held = [jnp.ones(max(int(num_bytes) // 8, 1), jnp.float32)]
    copy = jax.jit(lambda x: x + 1, donate_argnums=0)  # XLA leaves a plain copy out

    def run():
        for _ in range(8):
            held[0] = copy(held[0])
        return held[0]

    return 8 * 2 * held[0].nbytes / seconds(run, repeats)


def least_seconds(flops: float, num_bytes: float, limits: dict) -> tuple[float, str]:
    """(seconds that the work takes at best, "matmul" or "copy": which rate says so)."""
    bounds = {
        "matmul": flops / limits["matmul_flops_per_second"],
        "copy": num_bytes / limits["copy_bytes_per_second"],
    }
    bound = max(bounds, key=bounds.__getitem__)
    return bounds[bound], bound


def row(
    run: Callable[[], object], what: str, count: int, flops: float, num_bytes: float, repeats=5
) -> dict[str, float]:
    """Times `run`, which makes `count` of `what` with so much work; see `limited`."""
    taken = seconds(run, repeats)
    return {
        "seconds": taken,
        f"{what}_per_second": count / taken,
        "flops": flops,
        "flops_per_second": flops / taken,
        "bytes": num_bytes,
    }


def limited(name: str, value: float, unit: str, work: dict, limits: dict) -> Figure:
    """A figure beside the limit of the "flops" and "bytes" that the "seconds" of `work` went into.

    Bytes are those that must pass through memory whatever the program is: weights and caches, not
    activations, which a better program might keep on the chip.
    """
    least, bound = least_seconds(work["flops"], work["bytes"], limits)
    peak = limits["peak_flops_per_second"]
    is_matmul = peak and bound == "matmul"
    note = f"MFU {work['flops'] / work['seconds'] / peak:.1%}" if is_matmul else ""
    return Figure(name, value, unit, least / work["seconds"], bound, note)


def main() -> None:
    limits = measure()
    float32 = measure(jnp.float32)["matmul_flops_per_second"]
    figures = [
        Figure(
            "product of matrices, bfloat16", limits["matmul_flops_per_second"] / 1e12, "TFLOP/s"
        ),
        Figure("product of matrices, float32", float32 / 1e12, "TFLOP/s"),
        Figure("copy", limits["copy_bytes_per_second"] / 1e9, "GB/s"),
    ]
    if not limits["peak_flops_per_second"]:
        print(f"no peak of {jax.devices()[0].device_kind!r} in PEAKS: rates are without MFU")
    print(write_result("device_limits", {**limits, "float32_flops_per_second": float32}, figures))


if __name__ == "__main__":
    run_as_command(main)
