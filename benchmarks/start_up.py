"""Seconds from the start of a process to its first finished training step, and where they go.

    python benchmarks/start_up.py --config=configs/scenes/generator.py [--batch=64] [--repeats=1]
    python benchmarks/start_up.py --config=configs/paper/vlm.py --batch=128

Every run is a process of its own: one with an empty cache of compiled programs, then one with what
the first left in it (`JAX_COMPILATION_CACHE_DIR=FOLDER` gives any command such a cache). It does
what `synth2 train` does, in its order, on random batches:

    import      the interpreter and all that `synth2 train` imports
    build       config, objective, optimizer
    open        the workdir: checkpoints, metrics
    initialize  compiles and runs what makes the state
    compile     the training step
    first step  runs it

What real data adds, the import of TensorFlow and the first batch, is not in it. Besides, how long
the sampler takes to compile: of a generator parallel decoding, of a VLM captions by beam search.
Writes benchmarks/results/DEVICE/start_up_NAME.json.
"""

import argparse
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import flax.linen as nn  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

from benchmarks.result import Figure, names_of, number, run_as_command, write_result  # noqa: E402
from synth2_jax import config as config_lib  # noqa: E402
from synth2_jax import sharding  # noqa: E402
from synth2_jax.data.fake_batches import FakeBatches  # noqa: E402
from synth2_jax.errors import UserError  # noqa: E402
from synth2_jax.models.maskgit import Generator  # noqa: E402
from synth2_jax.models.vlm import VLM  # noqa: E402
from synth2_jax.sampling.captions import make_caption  # noqa: E402
from synth2_jax.sampling.guidance import GuidanceConfig  # noqa: E402
from synth2_jax.sampling.image_tokens import make_generate  # noqa: E402
from synth2_jax.sampling.parallel_decode import ParallelDecodeConfig, row_keys  # noqa: E402
from synth2_jax.sampling.text_decode import TextDecodeConfig  # noqa: E402
from synth2_jax.stages import train as train_stage  # noqa: E402
from synth2_jax.training.checkpoints import Checkpoints  # noqa: E402
from synth2_jax.training.metrics import make_writers  # noqa: E402
from synth2_jax.training.optimizer import make_optimizer  # noqa: E402
from synth2_jax.training.train_state import create_train_state, state_layout  # noqa: E402
from synth2_jax.training.train_step import check_batch, compile_train_step  # noqa: E402

CACHES = ("empty", "warm")
PROMPT = [2, 3, 4, 5]  # token ids; speed does not depend on which


def parts(config, batch_size: int, started: float) -> dict[str, float]:
    """Seconds of each part in this process, and of the sampler's compilation.

    Args:
      config: of `synth2 train`; its data are replaced by random batches.
      batch_size: rows.
      started: when this process was started, in unix seconds.
    """
    seconds: dict[str, float] = {}
    before = started

    def done(name: str) -> None:
        nonlocal before
        now = time.time()
        seconds[name], before = now - before, now

    done("import")
    config_lib.override(config, "data.source", "fake")
    cfg, objective = train_stage.build(config)
    tx = make_optimizer(cfg.optimizer, cfg.train.steps)
    mesh = sharding.make_mesh(sharding.MeshConfig())
    done("build")
    with tempfile.TemporaryDirectory() as workdir, Checkpoints(workdir):
        writers = make_writers(workdir, cfg.train.steps, cfg.model_name)
        done("open")
        for writer in writers:
            writer.close()
    before = time.time()  # closing belongs to the end of a run
    layout = state_layout(objective, tx, mesh)
    state = jax.block_until_ready(create_train_state(objective, tx, layout, seed=0))
    done("initialize")
    batch = next(FakeBatches(objective.batch_spec(batch_size)))
    check_batch(batch, objective, mesh, cfg.train.microbatches)
    batch = sharding.put_batch(batch, mesh)
    step = compile_train_step(objective, tx, layout, mesh, microbatches=cfg.train.microbatches)
    step = step.lower(layout, batch).compile()
    done("compile")
    state, _ = jax.block_until_ready(step(state, batch))
    done("first step")
    seconds["in all"] = sum(seconds.values())
    before = time.time()
    if _compile_sampler(objective, batch_size):
        done("sampler")
    return seconds


def _compile_sampler(objective, batch_size: int) -> bool:
    """Compiles what a generator or a VLM samples by; False of a model that has no such thing."""
    task = objective.task
    params = nn.unbox(jax.eval_shape(lambda key: objective.init(key)["params"], jax.random.key(0)))
    spec = objective.batch_spec(batch_size)
    if hasattr(task, "generator"):
        keys_B = jax.eval_shape(lambda key: row_keys(key, batch_size), jax.random.key(0))
        guidance = GuidanceConfig(scale=3.0)
        sample = make_generate(Generator(task.generator), ParallelDecodeConfig(), guidance)
        codebook = params["tokenizer"]["quantizer"]["codebook"]
        captions = (spec["text_tokens"], spec["text_mask"])
        arguments = (params["generator"], codebook, *captions, keys_B)
    elif hasattr(task, "vlm"):
        decode = TextDecodeConfig(max_length=task.text_length - len(PROMPT))
        sample = make_caption(VLM(task.vlm), PROMPT, decode)
        embeddings = (batch_size, task.vlm.num_image_tokens, task.vlm.image_embedding_dim)
        arguments = (params["vlm"], jax.ShapeDtypeStruct(embeddings, jnp.float32))
    else:
        return False
    jax.jit(sample).lower(*arguments).compile()
    return True


def in_a_process(config: str, batch_size: int | None, cache: str) -> dict[str, float]:
    """`parts` of a new process that keeps what it compiles in the folder `cache`."""
    arguments = [sys.executable, str(pathlib.Path(__file__).resolve()), f"--config={config}"]
    if batch_size:
        arguments.append(f"--batch={batch_size}")
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": cache}
    command = [*arguments, f"--started={time.time()!r}"]
    found = subprocess.run(command, env=environment, capture_output=True, text=True)
    if found.returncode:
        # JAX says something about its traceback below the error.
        lines = found.stderr.strip().splitlines() or ["nothing on stderr"]
        errors = [line for line in lines if re.match(r"[\w.]+(Error|Exception): ", line)]
        raise UserError(
            f"--config={config}: its process ended with {found.returncode}: {(errors or lines)[-1]}"
        )
    return json.loads(found.stdout.strip().splitlines()[-1])


def measure(config: str, batch_size: int | None, repeats: int) -> dict[str, dict[str, float]]:
    """{"empty" or "warm" cache: {part: seconds}}, medians of `repeats` pairs of processes."""
    runs: dict[str, list[dict[str, float]]] = {cache: [] for cache in CACHES}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            for cache in CACHES:
                runs[cache].append(in_a_process(config, batch_size, folder))
    return {
        cache: {part: statistics.median(run[part] for run in found) for part in found[0]}
        for cache, found in runs.items()
    }


def figures_of(seconds: dict[str, dict[str, float]], where: str) -> list[Figure]:
    """One figure of each cache, whose note says where the time goes, and one of the sampler."""
    figures = []
    for cache, found in seconds.items():
        split = ", ".join(
            f"{part} {number(value)}"
            for part, value in found.items()
            if part not in ("in all", "sampler")
        )
        name = f"start to the first training step, {where}, {cache} cache of compiled programs"
        figures.append(Figure(name, found["in all"], "s", note=split))
    empty, warm = (seconds[cache].get("sampler") for cache in CACHES)
    if empty is not None:
        note = f"with a warm cache {number(warm)} s"
        figures.append(Figure(f"compiling the sampler, {where}", empty, "s", note=note))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", required=True, help="of `synth2 train`")
    parser.add_argument("--batch", type=int, help="rows; else those of the config")
    parser.add_argument("--repeats", type=int, default=1, help="pairs of processes; their median")
    parser.add_argument("--started", type=float, help=argparse.SUPPRESS)  # what a process is given
    given = parser.parse_args()
    if given.started:
        config = config_lib.load_config(given.config)
        print(json.dumps(parts(config, given.batch or config.data.batch_size, given.started)))
        return
    batch_size = given.batch or config_lib.load_config(given.config).data.batch_size
    scale, model = names_of(given.config)
    seconds = measure(given.config, batch_size, given.repeats)
    figures = figures_of(seconds, f"{scale} {model}, batch {batch_size}")
    result = {"config": given.config, "batch_size": batch_size, "seconds": seconds}
    print(write_result(f"start_up_{scale}_{model}", result, figures))


if __name__ == "__main__":
    run_as_command(main)
