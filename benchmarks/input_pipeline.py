"""Pairs a second of one process: a mixture of two sources, tokenized and packed into batches.

    python benchmarks/input_pipeline.py [--pairs=1000000] [--tokens=256] [--folder=workdir/input]

Writes random pairs once, then draws as many from a mixture of them as the VLM takes, and prints the
rate, where the time goes (the same without the stages after each, one after the other), and the
memory at the beginning and at the end. Writes benchmarks/results/DEVICE/input_pipeline.json.
"""

import argparse
import pathlib
import statistics
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.random_pairs import write_pairs  # noqa: E402
from benchmarks.result import Figure, run_as_command, write_result  # noqa: E402
from synth2_jax.data import pipeline, records  # noqa: E402

_BATCH = 256
_CODES = 8192


def write_sources(folder: pathlib.Path, num_pairs: int, num_tokens: int) -> dict[str, str]:
    """Two folders of half the pairs each, of random tokens and captions of Scenes."""
    for source in records.SOURCES:
        write_pairs(
            folder / source,
            source,
            num_pairs=num_pairs // 2,
            num_tokens=num_tokens,
            num_codes=_CODES,
            num_shards=16,
        )
    return {source: str(folder / source) for source in records.SOURCES}


def resident_mib() -> float:
    """Memory of this process now, where /proc says so; else 0."""
    status = pathlib.Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(x.split()[1]) / 1024 for x in lines if x.startswith("VmRSS")), 0.0)


def rate(batches, rows: int, seconds: float = 5.0) -> float:
    """Examples a second of an iterator of batches, after it has warmed up."""
    for _ in range(20):
        next(batches)
    start, count = time.perf_counter(), 0
    while time.perf_counter() < start + seconds:
        next(batches)
        count += rows
    return count / (time.perf_counter() - start)


def profile(config: pipeline.DataConfig) -> dict[str, float]:
    """Examples a second up to each stage of the pipeline."""
    from synth2_jax.data.mixtures import resolve
    from synth2_jax.data.tensorflow_cpu import tf

    provider = resolve("mixture")
    files = [str(path) for f in config.folders.values() for path in pathlib.Path(f).glob("*.tfre*")]
    one = provider.tasks[0]
    arguments = {"split": "train", "shuffle": True, "seed": 0, "num_epochs": None}
    stages = {
        "read": tf.data.TFRecordDataset(files).repeat(),
        "and decode, shuffle": one.get_dataset(**arguments, try_in_mem_cache=False),
        "and mix": provider.get_dataset(
            **arguments, trim_output_features=False, try_in_mem_cache=False
        ),
    }
    found = {name: rate(iter(ds.batch(_BATCH).prefetch(2)), _BATCH) for name, ds in stages.items()}
    return found | {"and tokenize, batch": rate(pipeline.train_iterator(config, "vlm"), _BATCH)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--folder", default="workdir/input")
    arguments = parser.parse_args()
    folders = write_sources(pathlib.Path(arguments.folder), arguments.pairs, arguments.tokens)
    config = pipeline.DataConfig(
        mixture="mixture",
        folders=folders,
        rates={"real": 0.3, "synthetic": 0.7},
        batch_size=_BATCH,
    )
    iterator = pipeline.train_iterator(config, "vlm")
    for _ in range(200):
        next(iterator)
    memory, rates, position = [resident_mib()], [], len(iterator.get_state())
    parts = 10
    for _ in range(parts):
        start = time.perf_counter()
        for _ in range(arguments.pairs // parts // _BATCH):
            next(iterator)
        rates.append(arguments.pairs // parts // _BATCH * _BATCH / (time.perf_counter() - start))
        memory.append(resident_mib())
        print(f"{rates[-1]:,.0f} pairs/s, {memory[-1]:,.0f} MiB", flush=True)
    result = {
        "pairs_per_second": statistics.median(rates),
        "pairs_per_second_by_tenth": rates,
        "resident_mib_by_tenth": memory,
        "position_mib": position / 2**20,
        "examples_per_second_up_to": profile(config),
        "pairs": arguments.pairs,
        "image_tokens": arguments.tokens,
        "batch_size": _BATCH,
    }
    for name, value in result["examples_per_second_up_to"].items():
        print(f"  {name:<20} {value:>10,.0f} examples/s")
    name = f"input pipeline, a mixture of 2 folders, {arguments.tokens} tokens an image"
    figure = Figure(name, result["pairs_per_second"], "pairs/s", note="one process")
    print(write_result("input_pipeline", result, [figure]))


if __name__ == "__main__":
    run_as_command(main)
