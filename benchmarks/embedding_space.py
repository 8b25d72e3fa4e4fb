"""VLM training fed from embeddings against the same step fed through pixels, in one run.

    python benchmarks/embedding_space.py [--rounds=20]

Prints steps a second and their ratio, and writes benchmarks/results/DEVICE/embedding_space.json.
The paper reports 2.08 against 1.66 steps/s, 1.25x (a second-hand pair of rates).
"""

import argparse
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.result import write_result  # noqa: E402
from configs.scenes import vlm  # noqa: E402
from synth2_jax.stages.image_space import speed_by_space  # noqa: E402


def measure(rounds: int) -> dict:
    """Steps a second of both, on the Scenes VLM at its own batch size."""
    config = vlm.get_config()
    model = config.model.to_dict()
    speed = speed_by_space(model, config.data.batch_size, rounds=rounds)
    return {
        "steps_per_second": speed,
        "ratio": speed["embedding"] / speed["pixel"],
        "batch_size": config.data.batch_size,
        "rounds": rounds,
        "model": model,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    result = measure(parser.parse_args().rounds)
    path = write_result("embedding_space", result)
    speed = result["steps_per_second"]
    print(f"embedding {speed['embedding']:.2f} steps/s, pixel {speed['pixel']:.2f} steps/s")
    print(f"ratio {result['ratio']:.2f}  ({path})")


if __name__ == "__main__":
    main()
