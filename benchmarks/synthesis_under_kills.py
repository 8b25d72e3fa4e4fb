"""Many synthetic pairs made while the process is killed at random, then every one of them checked.

    python benchmarks/synthesis_under_kills.py --generator=workdir/demo/generator \\
        [--pairs=1000000] [--shards=100] [--minutes-between-kills=3] [--folder=workdir/kills]

Runs `synth2 synthesize` with captions of Scenes and one unguided step a picture (what is tried is
not the pictures but that none is lost), kills it by SIGKILL after a random time, and starts it
again until it ends by itself. Then reads every pair: all hashes right, every number there once, its
caption the one of its number. Writes benchmarks/results/DEVICE/synthesis_under_kills.json.
"""

import argparse
import os
import pathlib
import random
import resource
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.result import write_result  # noqa: E402
from synth2_jax.data import records  # noqa: E402
from synth2_jax.files import write_json, write_json_lines  # noqa: E402
from synth2_jax.scenes import dataset  # noqa: E402

_SAMPLES = 50  # pictures of a caption


def write_captions(folder: pathlib.Path, count: int) -> list[str]:
    """Captions of Scenes, of which some occur more than once, as `synth2 captions` leaves them."""
    captions = [caption for _, caption in dataset.texts(count)]
    write_json_lines(folder / "captions.jsonl", [{"caption": caption} for caption in captions])
    write_json(folder / "manifest.json", {"source": "scenes/text"})
    return captions


def run_until_done(command: list[str], mean_seconds: float, log: pathlib.Path) -> tuple[int, float]:
    """(kills, seconds) until the command ends by itself."""
    kills, start, rng = 0, time.monotonic(), random.Random(0)
    with open(log, "ab") as output:
        while True:
            process = subprocess.Popen(command, stdout=output, stderr=output, cwd=ROOT)
            try:
                code = process.wait(timeout=rng.uniform(0.2, 1.8) * mean_seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                kills += 1
                print(f"kill {kills} after {time.monotonic() - start:.0f} s", flush=True)
                continue
            if code:
                raise SystemExit(f"synthesize ended with {code}, see {log}")
            return kills, time.monotonic() - start


def check(folder: pathlib.Path, captions: list[str], count: int) -> records.Manifest:
    """Raises AssertionError unless every pair is there, once, and as it should be."""
    manifest = records.verify(folder)
    assert manifest.num_pairs == count, f"{manifest.num_pairs:,} pairs, expected {count:,}"
    seen = bytearray(count)
    for pair in records.read_pairs(folder):
        number = int(pair.key.split("-")[1])
        assert not seen[number], f"{pair.key} is there twice"
        seen[number] = 1
        assert pair.caption == captions[number // _SAMPLES], f"{pair.key}: {pair.caption!r}"
    assert all(seen), f"{seen.count(0):,} pairs are lost"
    return manifest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--generator", required=True)
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--shards", type=int, default=100)
    parser.add_argument("--minutes-between-kills", type=float, default=3)
    parser.add_argument("--folder", default="workdir/kills")
    arguments = parser.parse_args()
    folder = pathlib.Path(arguments.folder).absolute()
    captions = write_captions(folder / "captions", arguments.pairs // _SAMPLES)
    count = len(captions) * _SAMPLES
    command = [
        *(sys.executable, "-m", "synth2_jax.main", "synthesize"),
        f"--config={ROOT / 'configs/scenes/synthesize.py'}",
        f"--workdir={folder / 'pairs'}",
        f"--config.generator={os.path.abspath(arguments.generator)}",
        f"--config.captions={folder / 'captions'}",
        f"--config.samples_per_caption={_SAMPLES}",
        f"--config.num_shards={arguments.shards}",
        "--config.sampler.num_steps=1",
        "--config.guidance.scale=0.0",
        "--config.batch_size=512",
        "--verbose",
    ]
    log = folder / "synthesize.log"
    kills, seconds = run_until_done(command, 60 * arguments.minutes_between_kills, log)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20  # of one process
    start = time.monotonic()
    manifest = check(folder / "pairs", captions, count)
    result = {
        "pairs": count,
        "kills": kills,
        "seconds": seconds,
        "pairs_per_second": count / seconds,
        "peak_memory_gib": peak,
        "seconds_to_check": time.monotonic() - start,
        "num_bytes": sum(shard.num_bytes for shard in manifest.shards),
    }
    path = write_result("synthesis_under_kills", result)
    print(f"{count:,} pairs, {kills} kills, {count / seconds:.0f} pairs/s: none lost, none twice")
    print(path)


if __name__ == "__main__":
    main()
