"""Training steps on one machine: steps and pairs a second, FLOPs by formula, share of the limit.

    python benchmarks/train_step.py --config=configs/scenes/generator.py
    python benchmarks/train_step.py --config=configs/paper/vlm.py --batch=128

The step is that of `synth2 train`, on random batches. FLOPs are what the model needs (frozen parts
without their weights' gradients), so that rematerialization counts against the share. Writes
benchmarks/results/DEVICE/train_step_NAME.json.
"""

import argparse
import pathlib
import sys

import jax
import jax.numpy as jnp

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import device_limits  # noqa: E402
from benchmarks.bare_steps import BareSteps, training_of  # noqa: E402
from benchmarks.result import names_of, run_as_command, write_result  # noqa: E402
from synth2_jax import config as config_lib  # noqa: E402
from synth2_jax.data.fake_batches import FakeBatches  # noqa: E402
from synth2_jax.errors import UserError  # noqa: E402
from synth2_jax.planning import model_flops  # noqa: E402
from synth2_jax.training import train_state  # noqa: E402
from synth2_jax.training.tasks import GeneratorTask, VLMTask  # noqa: E402


def measure(config, batch_size: int, steps: int, repeats: int) -> dict:
    """Median of `repeats` runs of `steps` steps each; the host waits at the end of a run alone."""
    training = training_of(config)
    objective = training.objective
    flops = model_flops.train_step(objective.task, batch_size)
    if flops is None:
        raise UserError(
            f"--config.model_name: found {config.model_name!r}, whose step has no formula of "
            "FLOPs; expected generator, vlm or language_model"
        )
    batch = next(FakeBatches(objective.batch_spec(batch_size)))
    bare = BareSteps(training, batch)
    seconds = device_limits.seconds(lambda: bare.run(steps), repeats) / steps
    trained, frozen = train_state.split_params(bare.state.params, objective.frozen)
    written = sum(leaf.nbytes for leaf in jax.tree.leaves((trained, bare.state.opt_state)))
    num_params = sum(leaf.size for leaf in jax.tree.leaves(bare.state.params))
    return {
        "batch_size": batch_size,
        "microbatches": training.microbatches,
        "dtype": computes_in(objective.task),
        "parameters": num_params,
        "seconds_per_step": seconds,
        "steps_per_second": 1 / seconds,
        "pairs_per_second": batch_size / seconds,
        "flops_per_step": flops.total,
        "flops_per_second": flops.total / seconds,
        "bytes_per_step": 2 * written + sum(leaf.nbytes for leaf in jax.tree.leaves(frozen)),
    }


def computes_in(task: object) -> str:
    """The dtype of a task's products, which the limit is measured in."""
    if isinstance(task, GeneratorTask):
        return task.generator.maskgit.dtype
    model = task.vlm.language_model if isinstance(task, VLMTask) else task.language_model
    return model.dtype


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", required=True, help="of `synth2 train`")
    parser.add_argument("--batch", type=int, help="rows; else those of the config")
    parser.add_argument("--steps", type=int, default=10, help="of one run")
    parser.add_argument("--repeats", type=int, default=5, help="runs, of which the median counts")
    given = parser.parse_args()
    config = config_lib.load_config(given.config)
    result = measure(config, given.batch or config.data.batch_size, given.steps, given.repeats)
    limits = device_limits.measure(jnp.dtype(result["dtype"]))
    folder, model = names_of(given.config)
    work = {name: result[f"{name}_per_step"] for name in ("seconds", "flops", "bytes")}
    name = f"training step, {folder} {model}, batch {result['batch_size']}"
    figure = device_limits.limited(name, result["steps_per_second"], "steps/s", work, limits)
    result |= {"config": given.config, "limits": limits}
    print(write_result(f"train_step_{folder}_{model}", result, [figure]))


if __name__ == "__main__":
    run_as_command(main)
