"""Our VLM against transformers' Idefics, Flamingo's open reproduction, in one run at equal sizes.

    python benchmarks/peer_idefics.py
    python benchmarks/peer_idefics.py --layers=8 --width=512 --heads=8 --mlp=1536 --batch=16
    python benchmarks/peer_idefics.py --layers=24 --width=1024 --heads=16 --mlp=3072 --every=4 \\
        --resampler-layers=6 --latents=64 --image-tokens=256 --vocabulary=32128 --text=64 \\
        --batch=64 --dtype=bfloat16

A training step: frozen language model with tied embeddings, trained resampler and gated
cross-attention, AdamW, gradients clipped at 1. Captions: a start token and a prompt of one, then
`--text` less 2 tokens by greedy decoding with a cache, Idefics' by its `generate`. Neither encodes
images: Idefics gets `image_encoder_embeddings`, as wide as its resampler. Both run in turns; the
ratios of their medians are the figures. A training step of the same batch may go through it in
microbatches: each side counts with that number of `--microbatches` by which it is fastest. In
bfloat16 both train on float32 parameters, Idefics by autocast, and Idefics decodes with bfloat16
ones.

What differs:
- Idefics' cross-attention has a gated MLP, ours a plain one: its MLP gets two thirds of the width,
  so that both have as many weights.
- Ours looks image tokens up in a codebook, projects them and adds positions.
- Our step also computes accuracies, of real and of synthetic pairs apart.
- SiLU and ReLU there, GELU and squared ReLU here.
- Idefics computes the image's latents, keys and values again for each token; ours does so once.

Needs PyTorch and transformers (the extra `interop`). PyTorch's threads wait passively
(OMP_WAIT_POLICY): spinning, they take the cores from whoever's turn it is. Writes
benchmarks/results/DEVICE/peer_idefics_WIDTH.json.
"""

import argparse
import copy
import dataclasses
import os
import pathlib
import sys
from collections.abc import Callable, Hashable
from typing import TypeVar

import jax
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.bare_steps import BareSteps, Training  # noqa: E402
from benchmarks.result import Figure, run_as_command, write_result  # noqa: E402
from synth2_jax import sharding  # noqa: E402
from synth2_jax.data.fake_batches import FakeBatches  # noqa: E402
from synth2_jax.errors import UserError  # noqa: E402
from synth2_jax.interop.tensor_files import require  # noqa: E402
from synth2_jax.models.vlm import VLM  # noqa: E402
from synth2_jax.sampling.captions import make_caption  # noqa: E402
from synth2_jax.sampling.text_decode import TextDecodeConfig  # noqa: E402
from synth2_jax.training.objectives import VLMObjective, make_objective  # noqa: E402
from synth2_jax.training.optimizer import OptimizerConfig, make_optimizer  # noqa: E402
from synth2_jax.training.speed import interleaved_seconds  # noqa: E402
from synth2_jax.training.train_state import split_params  # noqa: E402

SIZES = {
    "layers": 2,
    "width": 128,
    "heads": 2,
    "mlp": 384,
    "every": 1,
    "resampler_layers": 1,
    "latents": 16,
    "image_tokens": 16,
    "vocabulary": 512,
    "text": 26,
    "batch": 64,
}
Key = TypeVar("Key", bound=Hashable)
NEVER = -1  # an id that no token has: nothing ends a caption
LEARNING_RATE, WEIGHT_DECAY = 1e-4, 0.1


@dataclasses.dataclass(frozen=True)
class Side:
    """One of the two.

    Attributes:
      train: runs some training steps and waits for them; returns the last loss.
      caption: writes captions and waits for them; returns the new ids, i32[B, T].
      trained, frozen: numbers of parameters.
    """

    train: Callable[[], float]
    caption: Callable[[], np.ndarray]
    trained: int
    frozen: int


def ours(given: argparse.Namespace, microbatches: int = 1) -> Side:
    """As `synth2 train` and `synth2 evaluate` run it."""
    objective = our_objective(given)
    optimizer = OptimizerConfig(learning_rate=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    mesh = sharding.make_mesh(sharding.MeshConfig(), jax.devices()[:1])
    limits = {"text_tokens": given.vocabulary}
    batch = next(FakeBatches(objective.batch_spec(given.batch), limits=limits))
    steps = BareSteps(Training(objective, make_optimizer(optimizer), mesh, microbatches), batch)
    image_tokens_BN = jax.device_put(batch["image_tokens"])
    decode = TextDecodeConfig(method="greedy", max_length=given.text - 2)
    caption = make_caption(VLM(objective.task.vlm), [3], decode, NEVER)

    @jax.jit
    def write(params, image_tokens_BN):
        return caption(params["vlm"], objective.image_embeddings(params, image_tokens_BN))[0]

    def train() -> float:
        total, count = steps.run(given.steps)["loss"]
        return float(total) / float(count)

    parts = split_params(steps.state.params["vlm"], ["^language_model/"])
    sizes = (sum(leaf.size for leaf in part.values()) for part in parts)
    return Side(train, lambda: np.asarray(write(steps.state.params, image_tokens_BN)), *sizes)


def our_objective(given: argparse.Namespace) -> VLMObjective:
    transformer = {
        "embed_dim": given.width,
        "num_heads": given.heads,
        "head_dim": given.width // given.heads,
        "dtype": given.dtype,
        "scan_layers": False,
    }
    side = int(given.image_tokens**0.5)
    tokenizer = {
        "image_size": 4 * side,
        "patch_size": 4,
        "filters": 8,
        "channel_multipliers": (1,),
        "num_res_blocks": 1,
        "norm_groups": 8,
        "embedding_dim": given.width,
        "codebook_size": 512,
    }
    vlm = {
        "language_model": {
            **transformer,
            "vocab_size": given.vocabulary,
            "num_layers": given.layers,
            "mlp_dim": given.mlp,
        },
        "resampler": {
            **transformer,
            "num_layers": given.resampler_layers,
            "mlp_dim": 4 * given.width,
            "num_latents": given.latents,
        },
        "image_embedding_dim": given.width,
        "num_image_tokens": given.image_tokens,
        "cross_attention_every": given.every,
    }
    section = {"tokenizer": tokenizer, "vlm": vlm, "text_length": given.text}
    return make_objective("vlm", section)


def idefics(given: argparse.Namespace, microbatches: int = 1) -> Side:
    """As its users run it, without a cache in training."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = getattr(torch, given.dtype)
    torch.manual_seed(0)
    model = idefics_model(given).to(device)
    trainable = [weights for weights in model.parameters() if weights.requires_grad]
    optimizer = torch.optim.AdamW(
        trainable, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True
    )
    forward = torch.compile(model) if given.compile else model

    def inputs(length: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        ones = torch.ones(given.batch, length, dtype=torch.long, device=device)
        images = torch.randn(given.batch, given.image_tokens, given.width)
        return {
            "input_ids": torch.randint(3, given.vocabulary, ones.shape, device=device),
            "attention_mask": ones,
            "image_encoder_embeddings": images.to(device, dtype),
            "image_attention_mask": ones[..., None],
        }

    pairs, prompts = inputs(given.text, torch.float32), inputs(2, dtype)
    parts = [
        dict(zip(pairs, part, strict=True))
        for part in zip(*(rows.chunk(microbatches) for rows in pairs.values()), strict=True)
    ]
    mixed = given.dtype != "float32"

    def train() -> float:
        model.train()
        for _ in range(given.steps):
            for part in parts:
                with torch.autocast(device, dtype, enabled=mixed):
                    loss = forward(**part, labels=part["input_ids"], use_cache=False).loss
                (loss / microbatches).backward()
            torch.nn.utils.clip_grad_norm_(trainable, 1.0)
            optimizer.step()
            optimizer.zero_grad()
        return loss.item()

    writer = copy.deepcopy(model).to(dtype).eval() if mixed else model
    num_tokens = given.text - 2

    @torch.no_grad()
    def caption() -> np.ndarray:
        writer.eval()
        ids = writer.generate(
            **prompts,
            max_new_tokens=num_tokens,
            min_new_tokens=num_tokens,
            do_sample=False,
            eos_token_id=None,
        )
        return ids[:, -num_tokens:].cpu().numpy()

    named = [(n, p) for n, p in model.named_parameters() if not n.startswith("model.vision_model")]
    trained = sum(weights.numel() for _, weights in named if weights.requires_grad)
    return Side(train, caption, trained, sum(weights.numel() for _, weights in named) - trained)


def idefics_model(given: argparse.Namespace):
    """An `IdeficsForVisionText2Text` with random weights; its vision encoder is never run."""
    import transformers
    from transformers.models.idefics.modeling_idefics import IdeficsMLP

    config = transformers.IdeficsConfig(
        vocab_size=given.vocabulary,
        hidden_size=given.width,
        intermediate_size=given.mlp,
        num_hidden_layers=given.layers,
        num_attention_heads=given.heads,
        cross_layer_interval=given.every,
        tie_word_embeddings=True,
        freeze_lm_head=True,
        freeze_text_layers=True,
        use_resampler=True,
        perceiver_config={
            "use_resampler": True,
            "resampler_depth": given.resampler_layers,
            "resampler_n_heads": given.heads,
            "resampler_head_dim": given.width // given.heads,
            "resampler_n_latents": given.latents,
        },
        vision_config={
            "embed_dim": given.width,
            "image_size": 14,
            "num_hidden_layers": 1,
            "num_attention_heads": given.heads,
            "intermediate_size": given.width,
        },
    )
    model = transformers.IdeficsForVisionText2Text(config)
    model.loss_type = "ForCausalLM"  # its default, which it would warn of
    for block in model.model.gated_cross_attn_layers:
        block.mlp = IdeficsMLP(given.width, round(given.mlp * 2 / 3), config.hidden_act)
    return model


def measure(given: argparse.Namespace) -> dict:
    """Medians of both sides' runs, taken in turns, and ours over Idefics'."""
    for parts in given.microbatches:
        if parts < 1 or given.batch % parts:
            raise UserError(
                f"--microbatches: found {parts}, expected a divisor of the batch of {given.batch}"
            )
    made = {"ours": ours, "idefics": idefics}
    sides = {(name, m): make(given, m) for m in given.microbatches for name, make in made.items()}
    seconds = in_turns({key: side.train for key, side in sides.items()}, given.repeats)
    result = {}
    for name in made:
        rates = {m: given.steps / seconds[name, m] for m in given.microbatches}
        best = max(rates, key=rates.get)
        result[name] = {
            "trained_parameters": sides[name, best].trained,
            "frozen_parameters": sides[name, best].frozen,
            "microbatches": best,
            "steps_per_second": rates[best],
            "steps_per_second_by_microbatches": rates,
        }
    first = given.microbatches[0]
    seconds = in_turns({name: sides[name, first].caption for name in made}, given.repeats)
    for name, taken in seconds.items():
        result[name]["tokens_per_second"] = given.batch * (given.text - 2) / taken
    for rate in ("steps_per_second", "tokens_per_second"):
        result[f"{rate}_ratio"] = result["ours"][rate] / result["idefics"][rate]
    return result


def in_turns(runs: dict[Key, Callable[[], object]], repeats: int) -> dict[Key, float]:
    """Median seconds of each; one after the other, so that what slows the machine slows all."""
    interleaved_seconds(runs, rounds=1)  # compiles and warms up
    return interleaved_seconds(runs, rounds=repeats)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in SIZES.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument(
        "--microbatches",
        type=lambda text: [int(part) for part in text.split(",")],
        default=[1, 2],
        help="numbers of parts of a training step, of which each side's fastest counts",
    )
    parser.add_argument("--compile", action="store_true", help="torch.compile, of the step")
    parser.add_argument("--steps", type=int, default=20, help="of one run of training")
    parser.add_argument("--repeats", type=int, default=5, help="runs, of which the median counts")
    return parser.parse_args(arguments)


def main() -> None:
    given = parse()
    for package in ("torch", "transformers"):
        require(package, "as the peer")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Both sides live on one card.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    result = measure(given)
    shapes = f"{given.layers} layers of {given.width}, batch {given.batch}, {given.dtype}"
    compiled = ", compiled" * given.compile
    parts = {name: result[name]["microbatches"] for name in ("ours", "idefics")}
    figures = [
        Figure(
            f"VLM training step, {shapes}",
            result["steps_per_second_ratio"],
            "x",
            note=f"steps/s over those of Idefics{compiled}, in {parts['ours']} and "
            f"{parts['idefics']} microbatches",
        ),
        Figure(
            f"captions, {shapes}",
            result["tokens_per_second_ratio"],
            "x",
            note="tokens/s over those of Idefics",
        ),
    ]
    for name in ("ours", "idefics"):
        rates = result[name]
        print(
            f"{name:>7}: {rates['steps_per_second']:.4g} steps/s "
            f"in {rates['microbatches']} microbatches, "
            f"{rates['tokens_per_second']:.4g} tokens/s, "
            f"{rates['trained_parameters'] / 1e6:.2f}M trained and "
            f"{rates['frozen_parameters'] / 1e6:.2f}M frozen parameters"
        )
    print(write_result(f"peer_idefics_{given.width}", vars(given) | result, figures))


if __name__ == "__main__":
    run_as_command(main)
