"""What the training loop adds to bare steps: waiting for input, and a device left idle by the host.

    python benchmarks/train_loop.py --config=configs/scenes/generator.py [--batch=64]
        [--steps=20] [--repeats=8] [--data=random,pairs] [--folder=workdir/train_loop]
    python benchmarks/train_loop.py --config=configs/paper/vlm.py --batch=128 --data=random

The loop is `synth2 train`'s own, with all its writers, on random batches and on a folder of random
pairs with captions of Scenes through the input pipeline (which needs TensorFlow and SeqIO; without
them it is skipped). Its segments take turns with as many bare steps, as benchmarks/train_step.py
has them: the same batch again and again, and nobody looks at the metrics. A device idles for the
share by which the loop is slower. On a CPU host and device share their cores, so whatever the host
does takes from the steps even where it makes nobody wait: read this share from an accelerator.

The input wait is the loop's own metric, `input_wait_share`.
Writes benchmarks/results/DEVICE/train_loop_NAME.json.
"""

import argparse
import importlib.util
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402

from benchmarks.bare_steps import BareSteps, Training, training_of  # noqa: E402
from benchmarks.random_pairs import write_pairs  # noqa: E402
from benchmarks.result import Figure, chosen, names_of, run_as_command, write_result  # noqa: E402
from synth2_jax import config as config_lib  # noqa: E402
from synth2_jax.data import pipeline  # noqa: E402
from synth2_jax.data.fake_batches import FakeBatches  # noqa: E402
from synth2_jax.training.metrics import make_writers  # noqa: E402
from synth2_jax.training.train_loop import TrainLoopConfig, train  # noqa: E402

DATA = ("random", "pairs")
NEEDS = ("tensorflow", "seqio")  # of "pairs"
_PAIRS = 4096


class Speed:
    """A writer that keeps the loop's own speed and input wait, a pair for each segment."""

    def __init__(self):
        self.segments: list[tuple[float, float]] = []

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        del step
        if "input_wait_share" in scalars:
            self.segments.append((scalars["steps_per_second"], scalars["input_wait_share"]))

    def close(self) -> None:
        pass


def compare(training: Training, iterator, steps: int, repeats: int, workdir) -> dict[str, float]:
    """Medians over segments of `steps` steps of the loop, each followed by as many bare ones.

    Evaluation is where the loop stands still and does not count the time.
    """
    bare = BareSteps(training, next(iterator))
    jax.block_until_ready(bare.run(1))
    bare_rates: list[float] = []

    def evaluate(state) -> dict[str, float]:
        del state
        start = time.perf_counter()
        jax.block_until_ready((bare.run(steps), bare.state))
        bare_rates.append(steps / (time.perf_counter() - start))
        return {"bare_steps_per_second": bare_rates[-1]}

    total = (1 + repeats) * steps
    config = TrainLoopConfig(
        steps=total,
        log_every=steps,
        eval_every=steps,
        checkpoint_every=total + 1,
        microbatches=training.microbatches,
    )
    speed = Speed()
    writers = [speed, *make_writers(workdir, total, "train")]
    try:
        train(
            *(training.objective, training.tx, training.mesh, iterator, config, workdir, writers),
            evaluate=evaluate,
        )
    finally:
        for writer in writers:
            writer.close()
    return summary(speed.segments, bare_rates)


def summary(segments: list[tuple[float, float]], bare_rates: list[float]) -> dict[str, float]:
    """Medians of the segments without the first, which lacks the step that compiles."""
    pairs = list(zip(segments, bare_rates, strict=True))[1:]
    return {
        "steps_per_second": statistics.median(loop for (loop, _), _ in pairs),
        "bare_steps_per_second": statistics.median(bare for _, bare in pairs),
        "share_of_bare": statistics.median(loop / bare for (loop, _), bare in pairs),
        "input_wait_share": statistics.median(wait for (_, wait), _ in pairs),
    }


def batches(data: str, objective, config, batch_size: int, folder: pathlib.Path):
    """The iterator of one of DATA."""
    if data == "random":
        return FakeBatches(objective.batch_spec(batch_size))
    tokenizer = objective.task.tokenizer
    pairs = folder / f"pairs_{tokenizer.num_tokens}_{tokenizer.codebook_size}"
    write_pairs(
        pairs,
        "real",
        num_pairs=_PAIRS,
        num_tokens=tokenizer.num_tokens,
        num_codes=tokenizer.codebook_size,
        num_shards=4,
    )
    described = pipeline.DataConfig(
        folders={"real": str(pairs)}, batch_size=batch_size, text_length=config.data.text_length
    )
    return pipeline.train_iterator(described, config.model_name)


def measure(
    config, data: str, batch_size: int, steps: int, repeats: int, folder: pathlib.Path
) -> dict[str, float]:
    """`compare` on one of DATA."""
    training = training_of(config)
    iterator = batches(data, training.objective, config, batch_size, folder)
    with tempfile.TemporaryDirectory() as workdir:
        return compare(training, iterator, steps, repeats, workdir)


def figures_of(found: Mapping[str, float], where: str) -> list[Figure]:
    """The loop beside bare steps, and the input wait."""
    idle = max(0.0, 1 - found["share_of_bare"])
    return [
        Figure(
            f"training loop, {where}",
            found["steps_per_second"],
            "steps/s",
            found["share_of_bare"],
            "bare steps",
            f"the device idles {idle:.1%}",
        ),
        Figure(
            f"waiting for input, {where}",
            100 * found["input_wait_share"],
            "%",
            note="asked: below 1 %",
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", required=True, help="of `synth2 train`, of a generator or VLM")
    parser.add_argument("--batch", type=int, help="rows; else those of the config")
    parser.add_argument("--steps", type=int, default=20, help="of one segment")
    parser.add_argument("--repeats", type=int, default=8, help="segments; their median counts")
    parser.add_argument("--data", default=",".join(DATA))
    parser.add_argument("--folder", default="workdir/train_loop", help="of the random pairs")
    given = parser.parse_args()
    kinds = chosen("--data", given.data, DATA)
    config = config_lib.load_config(given.config)
    batch_size = given.batch or config.data.batch_size
    scale, model = names_of(given.config)
    figures, rows = [], {}
    for data in kinds:
        missing = [name for name in NEEDS if importlib.util.find_spec(name) is None]
        if data == "pairs" and missing:
            print(f"skipped pairs: {', '.join(missing)} not installed")
            continue
        folder = pathlib.Path(given.folder)
        rows[data] = measure(config, data, batch_size, given.steps, given.repeats, folder)
        kind = "random batches" if data == "random" else "pairs from a folder"
        where = f"{scale} {model}, batch {batch_size}, {kind}"
        figures += figures_of(rows[data], where)
    result = {"config": given.config, "batch_size": batch_size, "data": rows}
    print(write_result(f"train_loop_{scale}_{model}", result, figures))


if __name__ == "__main__":
    run_as_command(main)
