"""VLM training fed in four ways, in one run: stored tokens or generated ones, embeddings or pixels.

    python benchmarks/on_the_fly.py
    python benchmarks/on_the_fly.py --config=configs/paper/vlm.py \\
        --generator=configs/paper/generator.py --batch=64 --rounds=3

"Stored" trains on tokens of a batch; "on the fly" first samples them for the batch's captions, in
the same program. Our recipe takes 8 steps, guided in an interval alone, and stays in embedding
space. The plain recipe takes 24 steps (or one a token, where there are fewer), guided at every
step, and goes through pixels. Whether both are equally good is not measured here. Weights are
random: speed does not depend on them. Writes benchmarks/results/DEVICE/on_the_fly_NAME.json.

Legend: B batch, N image tokens.
"""

import argparse
import dataclasses
import functools
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import device_limits  # noqa: E402
from benchmarks.bare_steps import random_params  # noqa: E402
from benchmarks.result import Figure, names_of, run_as_command, write_result  # noqa: E402
from synth2_jax import config as config_lib  # noqa: E402
from synth2_jax import sharding  # noqa: E402
from synth2_jax.data.fake_batches import FakeBatches  # noqa: E402
from synth2_jax.errors import UserError  # noqa: E402
from synth2_jax.models.maskgit import Generator  # noqa: E402
from synth2_jax.models.vq_tokenizer import VQTokenizer  # noqa: E402
from synth2_jax.planning import model_flops  # noqa: E402
from synth2_jax.sampling.guidance import GuidanceConfig  # noqa: E402
from synth2_jax.sampling.image_tokens import make_generate  # noqa: E402
from synth2_jax.sampling.parallel_decode import ParallelDecodeConfig, row_keys  # noqa: E402
from synth2_jax.stages import train  # noqa: E402
from synth2_jax.training.objectives import make_objective  # noqa: E402
from synth2_jax.training.optimizer import (  # noqa: E402
    Optimizer,
    OptimizerConfig,
    make_optimizer,
)
from synth2_jax.training.speed import interleaved_seconds  # noqa: E402
from synth2_jax.training.tasks import GeneratorTask, VLMTask  # noqa: E402
from synth2_jax.training.train_state import (  # noqa: E402
    Objective,
    Params,
    TrainState,
    create_train_state,
    split_params,
    state_layout,
)
from synth2_jax.training.train_step import make_train_step, step_rngs  # noqa: E402

VLM_CONFIG, GENERATOR_CONFIG = "configs/scenes/vlm.py", "configs/scenes/generator.py"
OUR_STEPS = 8
OUR_INTERVAL = (0.25, 0.75)  # of the steps; the middle (Kynkäänniemi et al. 2024)
PLAIN_STEPS = 24  # Muse


@dataclasses.dataclass(frozen=True)
class Way:
    """Where the VLM's images come from: of a batch without a `sampler`, else generated."""

    name: str
    image_space: str
    sampler: ParallelDecodeConfig | None = None
    guidance: GuidanceConfig | None = None


def ways(num_tokens: int, num_steps: int, interval: tuple[float, float]) -> dict[str, Way]:
    """The four; `num_steps` and `interval` are our recipe's."""
    plain_steps = min(PLAIN_STEPS, num_tokens)
    start, end = interval
    return {
        "stored_embedding": Way("stored tokens, embeddings", "embedding"),
        "stored_pixel": Way("stored tokens, through pixels", "pixel"),
        "on_the_fly": Way(
            f"on the fly, {num_steps} steps, guided from {start:g} to {end:g}, embeddings",
            "embedding",
            ParallelDecodeConfig(num_steps=num_steps),
            GuidanceConfig(interval=interval),
        ),
        "on_the_fly_plain": Way(
            f"on the fly, plain recipe: {plain_steps} steps, all guided, through pixels",
            "pixel",
            ParallelDecodeConfig(num_steps=plain_steps),
            GuidanceConfig(),
        ),
    }


def make_step(way: Way, objective: Objective, tx: Optimizer, generator: Generator) -> Callable:
    """`(state, the generator's params, batch) -> (state, metrics)`, to be jitted as one program.

    Where tokens are generated, those of the batch are not used but its captions, `caption_tokens`
    and `caption_mask`.
    """
    train_step = make_train_step(objective, tx)
    if way.sampler is None:
        return lambda state, params, batch: train_step(state, batch)
    generate = make_generate(generator, way.sampler, way.guidance)
    tokenizer = VQTokenizer(objective.task.tokenizer)

    def step(state, params, batch):
        image_tokens_BN = generate(
            params,
            tokenizer.apply({"params": state.params["tokenizer"]}, method="codes"),
            batch["caption_tokens"],
            batch["caption_mask"],
            row_keys(step_rngs(state.rng, state.step)["noise"], len(batch["caption_tokens"])),
        )
        return train_step(state, {**batch, "image_tokens": image_tokens_BN})

    return step


def measure(
    vlm_config,
    generator_config,
    batch_size: int,
    *,
    num_steps: int = OUR_STEPS,
    interval: tuple[float, float] = OUR_INTERVAL,
    rounds: int = 10,
) -> dict[str, Any]:
    """Medians over rounds in which each way takes a step in its turn.

    Raises:
      UserError: the configs do not fit together.
    """
    _, generator = train.build(generator_config)
    cfg, _ = train.build(vlm_config)
    vlms = {
        space: make_objective("vlm", {**cfg.model, "image_space": space})
        for space in ("embedding", "pixel")
    }
    vlm = vlms["embedding"]
    _check_fit(generator.task, vlm.task)
    optimizer = config_lib.build(OptimizerConfig, vlm_config.optimizer, "--config.optimizer")
    tx = make_optimizer(optimizer, vlm_config.train.steps)
    mesh = sharding.make_mesh(sharding.MeshConfig())
    captions = generator.batch_spec(batch_size)
    spec = {
        **vlm.batch_spec(batch_size),
        "caption_tokens": captions["text_tokens"],
        "caption_mask": captions["text_mask"],
    }
    limits = {"image_tokens": vlm.task.tokenizer.codebook_size}
    batch = sharding.put_batch(next(FakeBatches(spec, limits=limits)), mesh)
    params = random_params(generator)["generator"]
    # One state for all ways, which differ in nothing that is trained. A step takes its memory, so
    # it goes from one run into the next.
    held = [create_train_state(vlm, tx, state_layout(vlm, tx, mesh), seed=0)]

    def run(step: Callable) -> TrainState:
        held[0], _ = step(held[0], params, batch)
        return held[0]

    found = ways(vlm.task.tokenizer.num_tokens, num_steps, interval)
    rows, runs = {}, {}
    for key, way in found.items():
        objective, model = vlms[way.image_space], Generator(generator.task.generator)
        step = jax.jit(make_step(way, objective, tx, model), donate_argnums=0)
        runs[key] = functools.partial(run, step)
        flops = model_flops.train_step(objective.task, batch_size)
        num_bytes = _train_bytes(way, objective, held[0])
        if way.sampler:
            flops += model_flops.sample(generator.task, batch_size, way.sampler, way.guidance)
            num_bytes += _sample_bytes(way, params)
        rows[key] = {"name": way.name, "flops": flops.total, "bytes": num_bytes}
    for key, seconds in interleaved_seconds(runs, rounds=rounds).items():
        rows[key] |= {"seconds": seconds, "steps_per_second": 1 / seconds}
    return {
        "batch_size": batch_size,
        "rounds": rounds,
        "ways": rows,
        "embedding_over_pixel": _ratio(rows, "stored_embedding", "stored_pixel"),
        "ours_over_plain": _ratio(rows, "on_the_fly", "on_the_fly_plain"),
    }


def _check_fit(generator: GeneratorTask, vlm: VLMTask) -> None:
    for field in dataclasses.fields(vlm.tokenizer):
        found, expected = (getattr(task.tokenizer, field.name) for task in (generator, vlm))
        if found != expected:
            raise UserError(
                f"--config.model.tokenizer.{field.name}: found {found!r} in the generator's "
                f"config, expected the VLM's {expected!r}"
            )
    if generator.stored_text_features:
        raise UserError(
            "--config.model.stored_text_features: found True, expected False: captions are encoded "
            "in the step"
        )


def _ratio(rows: dict[str, dict], one: str, other: str) -> float:
    return rows[one]["steps_per_second"] / rows[other]["steps_per_second"]


def _train_bytes(way: Way, objective: Objective, state: TrainState) -> int:
    """Read and written of what is trained, read of what is frozen; embeddings are few rows."""
    trained, frozen = split_params(state.params, objective.frozen)
    read = [
        leaf
        for path, leaf in frozen.items()
        if way.image_space == "pixel" or not path.startswith("tokenizer/")
    ]
    written = _num_bytes((trained, state.opt_state))
    return 2 * written + _num_bytes(read)


def _sample_bytes(way: Way, params: Params) -> int:
    """The caption encoder once, the transformer at each step."""
    return _num_bytes(params["text_encoder"]) + way.sampler.num_steps * _num_bytes(
        params["maskgit"]
    )


def _num_bytes(tree: Any) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default=VLM_CONFIG, help="of `synth2 train`, of a VLM")
    parser.add_argument("--generator", default=GENERATOR_CONFIG, help="likewise, of a generator")
    parser.add_argument("--batch", type=int, help="rows; else those of the VLM's config")
    parser.add_argument("--steps", type=int, default=OUR_STEPS, help="of our recipe")
    parser.add_argument(
        "--interval", type=float, nargs=2, default=OUR_INTERVAL, help="fractions of its steps"
    )
    parser.add_argument("--rounds", type=int, default=10)
    given = parser.parse_args()
    config = config_lib.load_config(given.config)
    result = measure(
        config,
        config_lib.load_config(given.generator),
        given.batch or config.data.batch_size,
        num_steps=given.steps,
        interval=tuple(given.interval),
        rounds=given.rounds,
    )
    dtype = config.model.vlm.language_model.get("dtype", "float32")
    limits = device_limits.measure(jnp.dtype(dtype))
    name, _ = names_of(given.config)
    where = f"VLM training, {name}, batch {result['batch_size']}"
    figures = [
        device_limits.limited(
            f"{where}, {row['name']}", row["steps_per_second"], "steps/s", row, limits
        )
        for row in result["ways"].values()
    ]
    figures += [
        Figure(f"{where}, stored: embeddings over pixels", result["embedding_over_pixel"], "x"),
        Figure(f"{where}, on the fly: our recipe over the plain", result["ours_over_plain"], "x"),
    ]
    result |= {"config": given.config, "generator": given.generator, "limits": limits}
    print(write_result(f"on_the_fly_{name}", result, figures))


if __name__ == "__main__":
    run_as_command(main)
