"""Our sampler against diffusers' aMUSEd loop, in one run: equal depth, width, heads, tokens, steps.

    python benchmarks/peer_amused.py --layers=2 --width=128 --heads=4 --batch=8
    python benchmarks/peer_amused.py --layers=22 --width=1024 --heads=16 --batch=64 --dtype=bfloat16

Both get encoded captions and give image tokens, with guidance at every step. aMUSEd's network has
three residual blocks of convolutions before and after its transformer and a gated MLP; ours has a
plain MLP of as many weights. Needs PyTorch and diffusers (the extra `interop`). Writes
benchmarks/results/DEVICE/peer_amused.json; the ratio is the figure.
"""

import argparse
import pathlib
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import device_limits  # noqa: E402
from benchmarks.result import Figure, run_as_command, write_result  # noqa: E402
from synth2_jax.interop.tensor_files import require  # noqa: E402
from synth2_jax.models.maskgit import MaskGIT, MaskGITConfig  # noqa: E402
from synth2_jax.sampling.guidance import GuidanceConfig, guided  # noqa: E402
from synth2_jax.sampling.parallel_decode import (  # noqa: E402
    ParallelDecodeConfig,
    parallel_decode,
    row_keys,
)

TEXT_LENGTH, TEXT_WIDTH = 77, 768  # aMUSEd's: CLIP's
NUM_TOKENS, CODEBOOK_SIZE = 256, 8192


def ours(given: argparse.Namespace) -> tuple[float, int]:
    """(seconds a batch, parameters)."""
    config = MaskGITConfig(
        codebook_size=CODEBOOK_SIZE,
        num_tokens=NUM_TOKENS,
        num_layers=given.layers,
        embed_dim=given.width,
        num_heads=given.heads,
        head_dim=given.width // given.heads,
        mlp_dim=mlp_dim(given.width) * 3 // 2,
        dtype=given.dtype,
    )
    model = MaskGIT(config)
    text_BTE = jax.random.normal(
        jax.random.key(0), (given.batch, TEXT_LENGTH, TEXT_WIDTH), jnp.dtype(given.dtype)
    )
    mask_BT = jnp.ones((given.batch, TEXT_LENGTH), bool)

    def init(key):
        def both(model):
            text = model.text_keys_values(text_BTE[:1], mask_BT[:1])
            return model(jnp.zeros((1, NUM_TOKENS), jnp.int32), text, deterministic=True)

        return nn.unbox(nn.init(both, model)(key))

    variables = jax.jit(init)(jax.random.key(1))
    guidance = GuidanceConfig(scale=given.scale)
    sampler = ParallelDecodeConfig(num_steps=given.steps)

    @jax.jit
    def generate(variables, text_BTE, keys_B):
        doubled, masks = (jnp.concatenate([x, x]) for x in (text_BTE, mask_BT))
        drop_B = jnp.arange(2 * given.batch) >= given.batch
        both = model.apply(variables, doubled, masks, drop_B, method="text_keys_values")
        captions = model.apply(variables, text_BTE, mask_BT, method="text_keys_values")

        def logits_of(text):
            return lambda ids: model.apply(variables, ids, text, deterministic=True)

        logits_fn = guided(logits_of(both), logits_of(captions), guidance, num_steps=given.steps)
        return parallel_decode(
            logits_fn, keys_B, num_tokens=NUM_TOKENS, mask_id=config.mask_id, config=sampler
        )

    keys_B = row_keys(jax.random.key(2), given.batch)
    seconds = device_limits.seconds(lambda: generate(variables, text_BTE, keys_B), given.repeats)
    return seconds, sum(leaf.size for leaf in jax.tree.leaves(variables))


def amused(given: argparse.Namespace) -> tuple[float, int]:
    """(seconds a batch, parameters) of `UVit2DModel` and `AmusedScheduler`, as the pipeline runs
    them."""
    import torch
    from diffusers import AmusedScheduler, UVit2DModel

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = getattr(torch, given.dtype)
    model = UVit2DModel(
        hidden_size=given.width,
        encoder_hidden_size=TEXT_WIDTH,
        num_hidden_layers=given.layers,
        num_attention_heads=given.heads,
        intermediate_size=mlp_dim(given.width),
        codebook_size=CODEBOOK_SIZE,
        vocab_size=CODEBOOK_SIZE + 64,
        in_channels=given.width * 3 // 4,
        block_out_channels=given.width * 3 // 4,
        block_num_heads=given.heads * 3 // 4,
    )
    model = model.to(device, dtype).eval()
    num_params = sum(parameter.numel() for parameter in model.parameters())
    run = torch.compile(model) if given.compile else model
    mask_id = CODEBOOK_SIZE + 63
    side = int(NUM_TOKENS**0.5)
    rows = 2 * given.batch
    text = torch.randn(rows, TEXT_LENGTH, TEXT_WIDTH, device=device, dtype=dtype)
    pooled = torch.randn(rows, TEXT_WIDTH, device=device, dtype=dtype)
    micro = torch.tensor([[256.0, 256, 0, 0, 6]] * rows, device=device, dtype=dtype)

    @torch.no_grad()
    def generate():
        scheduler = AmusedScheduler(mask_token_id=mask_id)
        scheduler.set_timesteps(given.steps, device=device)
        ids = torch.full((given.batch, side, side), mask_id, dtype=torch.long, device=device)
        for timestep in scheduler.timesteps:
            logits = run(
                torch.cat([ids] * 2),
                micro_conds=micro,
                pooled_text_emb=pooled,
                encoder_hidden_states=text,
            )
            unconditional, conditional = logits.chunk(2)
            logits = unconditional + given.scale * (conditional - unconditional)
            ids = scheduler.step(model_output=logits, timestep=timestep, sample=ids).prev_sample
        return ids.cpu()

    generate()
    return device_limits.seconds(generate, given.repeats), num_params


def mlp_dim(width: int) -> int:
    """aMUSEd's own for its width of 1024."""
    return 2816 * width // 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("layers", 2), ("width", 128), ("heads", 4), ("batch", 8), ("steps", 12)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--scale", type=float, default=3.0)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--compile", action="store_true", help="torch.compile")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    for package in ("torch", "diffusers"):
        require(package, "as the peer")
    result = dict(vars(given))
    for name, run in (("ours", ours), ("amused", amused)):
        seconds, num_params = run(given)
        result[name] = {
            "seconds": seconds,
            "pairs_per_second": given.batch / seconds,
            "parameters": num_params,
        }
        print(f"{name:>7}: {given.batch / seconds:.4g} pairs/s, {num_params / 1e6:.1f}M parameters")
    result["ratio"] = result["amused"]["seconds"] / result["ours"]["seconds"]
    figure = Figure(
        f"decoding, {given.layers} layers of {given.width}, batch {given.batch}, "
        f"{given.steps} steps, {given.dtype}",
        result["ratio"],
        "x",
        note=f"pairs/s over those of aMUSEd's loop{', compiled' * given.compile}",
    )
    print(write_result("peer_amused", result, [figure]))


if __name__ == "__main__":
    run_as_command(main)
