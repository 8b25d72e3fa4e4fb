"""VLM training fed from embeddings against the same step fed through pixels, in one run.

    python benchmarks/embedding_space.py [--rounds=20]
    python benchmarks/embedding_space.py --config=configs/paper/vlm.py --batch=128

Prints steps a second and their ratio, and writes benchmarks/results/DEVICE/embedding_space.json,
of another config than the Scenes VLM's embedding_space_NAME.json.
The paper reports 2.08 against 1.66 steps/s, 1.25x (a second-hand pair of rates).
"""

import argparse
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.result import Figure, names_of, run_as_command, write_result  # noqa: E402
from synth2_jax import config as config_lib  # noqa: E402
from synth2_jax.experiments.image_space import speed_by_space  # noqa: E402
from synth2_jax.stages import train  # noqa: E402

SCENES = "configs/scenes/vlm.py"


def measure(config: str, batch_size: int | None, rounds: int) -> dict:
    """Steps a second of both; without a batch size at the config's own."""
    held, _ = train.build(config_lib.load_config(config))
    model, batch_size = held.model, batch_size or held.data.batch_size
    speed = speed_by_space(model, batch_size, rounds=rounds)
    return {
        "steps_per_second": speed,
        "ratio": speed["embedding"] / speed["pixel"],
        "batch_size": batch_size,
        "rounds": rounds,
        "model": model,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default=SCENES, help="of `synth2 train`, of a VLM")
    parser.add_argument("--batch", type=int, help="rows; else those of the config")
    parser.add_argument("--rounds", type=int, default=20)
    given = parser.parse_args()
    result = measure(given.config, given.batch, given.rounds)
    scale, model = names_of(given.config)
    name = "" if given.config == SCENES else f"_{scale}"
    speed = result["steps_per_second"]
    where = f"{scale} {model}, batch {result['batch_size']}"
    figures = [
        Figure(f"training from embeddings, {where}", speed["embedding"], "steps/s"),
        Figure(f"training through pixels, {where}", speed["pixel"], "steps/s"),
        Figure(f"embeddings over pixels, {where}", result["ratio"], "x", note="the paper: 1.25x"),
    ]
    print(write_result(f"embedding_space{name}", result, figures))


if __name__ == "__main__":
    run_as_command(main)
