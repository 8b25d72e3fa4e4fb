"""The fused attention of NVIDIA's cards: first that it is ours, gradients too, then how fast it is.

    python benchmarks/fused_attention.py [--rows=64] [--heads=16] [--head-dim=64]

Each case is an attention of the paper's models, in bfloat16, with its mask; in each some queries or
rows see nothing, which the kernel itself cannot have. "Ours" is `layers.attention`'s own, whose
weights go through memory. A kernel that is further from float32's result than twice what ours is
ends the run with one line. Writes benchmarks/results/DEVICE/fused_attention.json.

Legend: B rows, T queries, S keys, H heads, K head dim.
"""

import argparse
import functools
import pathlib
import sys
from collections.abc import Callable

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

from benchmarks.result import Figure, run_as_command, write_result  # noqa: E402
from synth2_jax.errors import UserError  # noqa: E402
from synth2_jax.layers.attention import dot_product_attention  # noqa: E402
from synth2_jax.layers.fused_attention import fits, fused_attention  # noqa: E402
from synth2_jax.training.speed import interleaved_seconds  # noqa: E402

# {attention: (T, S)}
CASES = {
    "image tokens to image tokens": (256, 256),
    "image tokens to a caption": (256, 64),
    "text to text, causal": (64, 64),
}
TIMES = 2.0  # as far from float32 as ours, at most


def mask_of(case: str, rows: int) -> jax.Array | None:
    """bool, broadcastable to [B, H, T, S]; None sees all."""
    num_queries, num_keys = CASES[case]
    if "causal" in case:  # shifted: the first query sees nothing
        return jnp.tril(jnp.ones((num_queries, num_keys), bool), -1)
    if "caption" in case:  # of all lengths, from none on
        length_B = jnp.arange(rows) % num_keys
        return (jnp.arange(num_keys) < length_B[:, None])[:, None, None]
    return None


def attend(q, k, v, mask, *, implementation: str = "") -> jax.Array:
    """By the kernel of `implementation`; "" is ours, which a bias of nothing keeps from it."""
    if implementation:
        return fused_attention(q, k, v, mask, implementation)
    return dot_product_attention(q, k, v, mask=mask, bias=jnp.zeros((1, 1, 1, 1)))


def with_gradients(attention: Callable[..., jax.Array]) -> Callable[..., tuple]:
    """(q, k, v, mask) -> (output, its gradients with respect to q, k and v), jitted."""

    def loss(q, k, v, mask):
        out = attention(q, k, v, mask)
        return jnp.sum(jnp.sin(out.astype(jnp.float32))), out

    @jax.jit
    def run(q, k, v, mask):
        grads, out = jax.grad(loss, (0, 1, 2), has_aux=True)(q, k, v, mask)
        return out, *grads

    return run


def measure(
    case: str, rows: int, heads: int, head_dim: int, rounds: int, implementation: str = "cudnn"
) -> dict[str, float]:
    """Seconds of both, forward and with gradients, and how far each is from float32.

    Raises:
      UserError: the kernel is further from it than ours is, by more than `TIMES`.
    """
    num_queries, num_keys = CASES[case]
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = [(rows, length, heads, head_dim) for length in (num_queries, num_keys, num_keys)]
    exact = [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]
    exact[0] = exact[0] * head_dim**-0.5
    given = [x.astype(jnp.bfloat16) for x in exact]
    exact = [x.astype(jnp.float32) for x in given]
    mask = mask_of(case, rows)
    fused = functools.partial(attend, implementation=implementation)
    expected = with_gradients(attend)(*exact, mask)
    both = {"ours": with_gradients(attend), "fused": with_gradients(fused)}
    found = {f"{name}_error": _error(run(*given, mask), expected) for name, run in both.items()}
    if not found["fused_error"] <= TIMES * found["ours_error"]:  # NaN is an error too
        raise UserError(
            f"{case}: the fused attention is {found['fused_error']:.3g} from float32's, expected "
            f"at most {TIMES:g} times ours, {found['ours_error']:.3g}"
        )
    runs = {
        "ours_seconds": jax.jit(attend),
        "fused_seconds": jax.jit(fused),
        "ours_gradient_seconds": both["ours"],
        "fused_gradient_seconds": both["fused"],
    }
    runs = {name: functools.partial(run, *given, mask) for name, run in runs.items()}
    return found | interleaved_seconds(runs, rounds=rounds)


def _error(found: tuple, expected: tuple) -> float:
    """The largest difference in any of them, in units of the largest value expected there."""
    return max(
        float(jnp.max(jnp.abs(a.astype(jnp.float32) - b)) / jnp.max(jnp.abs(b)))
        for a, b in zip(found, expected, strict=True)
    )


def figures_of(case: str, shapes: str, row: dict[str, float]) -> list[Figure]:
    """How many times as fast the kernel is, forward and with gradients."""
    return [
        Figure(
            f"fused attention, {case}, {shapes}{which}",
            row[f"ours{name}_seconds"] / row[f"fused{name}_seconds"],
            "x",
            note=f"speed of ours; {row['fused_error']:.2g} from float32's, ours "
            f"{row['ours_error']:.2g}",
        )
        for which, name in (("", ""), (", with gradients", "_gradient"))
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=20)
    given = parser.parse_args()
    sample = jnp.zeros((1, 2, 1, given.head_dim), jnp.bfloat16)
    if not fits(sample, sample):
        raise UserError(
            f"{jax.devices()[0].device_kind}, head dim {given.head_dim}: has no fused attention, "
            "expected an NVIDIA card of compute capability 8.0 or more"
        )
    rows = {
        case: measure(case, given.rows, given.heads, given.head_dim, given.rounds) for case in CASES
    }
    shapes = f"{given.rows} x {given.heads} heads of {given.head_dim}"
    figures = [figure for case, row in rows.items() for figure in figures_of(case, shapes, row)]
    print(write_result("fused_attention", {**vars(given), "cases": rows}, figures))


if __name__ == "__main__":
    run_as_command(main)
