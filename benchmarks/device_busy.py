"""How much of the time `tokenize` and `synthesize` keep the device busy, after the first batch.

    python benchmarks/device_busy.py [--images=2000] [--size=256] [--batch=64] [--pairs=4000]
        [--tokenizer=configs/scenes/tokenizer.py] [--generator=configs/scenes/generator.py]
    python benchmarks/device_busy.py --tokenizer=configs/paper/tokenizer.py --images=32 --batch=4

Images are JPEG files in tar files, weights are random: neither changes what there is to do. On a
CPU, host and device share their cores. Writes benchmarks/results/DEVICE/device_busy_SCALE.json,
where SCALE is the folder of the tokenizer's config.
"""

import argparse
import io
import pathlib
import sys
import tarfile
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import flax.linen as nn  # noqa: E402
import jax  # noqa: E402
import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from benchmarks.result import write_result  # noqa: E402
from synth2_jax.config import load_config  # noqa: E402
from synth2_jax.data import pair_shards  # noqa: E402
from synth2_jax.data.pair_writer import PairWriter  # noqa: E402
from synth2_jax.data.records import Provenance  # noqa: E402
from synth2_jax.data.sources.source import SourceConfig, open_source  # noqa: E402
from synth2_jax.device_stream import BusyClock  # noqa: E402
from synth2_jax.domains.scenes import dataset  # noqa: E402
from synth2_jax.loading.run import Trained  # noqa: E402
from synth2_jax.progress import Progress  # noqa: E402
from synth2_jax.stages import tokenize, train  # noqa: E402
from synth2_jax.synthesis.token_generator import SynthesizeConfig, TokenGenerator  # noqa: E402

_TARS = 8


def untrained(path: str) -> Trained:
    """The model of a config file, with random weights."""
    config = load_config(path)
    cfg, objective = train.build(config)
    params = nn.unbox(jax.jit(objective.init)(jax.random.key(0))["params"])
    return Trained(objective, params, {**config.to_dict(), "model": cfg.model}, {}, path, 0)


def write_tars(folder: pathlib.Path, count: int, size: int) -> str:
    """Tar files of noisy JPEG files with captions; returns their pattern."""
    rng = np.random.default_rng(0)
    captions = [caption for _, caption in dataset.texts(count)]
    for number in range(_TARS):
        with tarfile.open(folder / f"{number:02d}.tar", "w") as tar:
            for index in range(count * number // _TARS, count * (number + 1) // _TARS):
                coarse = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
                file = io.BytesIO()
                coarse.resize((size, size), Image.Resampling.BICUBIC).save(file, "JPEG")
                texts = captions[index].encode()
                for ending, data in (("jpg", file.getvalue()), ("txt", texts)):
                    info = tarfile.TarInfo(f"{index:06d}.{ending}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return str(folder / "*.tar")


def measure_tokenize(path: str, count: int, size: int, batch: int) -> dict[str, float]:
    """Share of the time, and images a second over all."""
    trained = untrained(path)
    config = trained.objective.task.tokenizer
    with tempfile.TemporaryDirectory() as folder:
        pattern = write_tars(pathlib.Path(folder), count, size)
        source = open_source(SourceConfig("webdataset", pattern), "train", 1)
        writer = PairWriter(
            pathlib.Path(folder, "pairs"),
            Provenance("random", config.num_tokens, config.codebook_size),
            num_shards=source.num_shards,
        )
        cfg = tokenize.TokenizeConfig(tokenizer="", batch_size=batch)
        start = time.perf_counter()
        with BusyClock() as clock, Progress("tokenize", _TARS, "shards") as progress:
            shards = writer.missing()
            results = tokenize.tokenized(source, trained, cfg, shards, clock, progress)
            pair_shards.write_shards(writer, results)
        seconds = time.perf_counter() - start
    return {"busy": clock.share, "images_per_second": count / seconds}


def measure_synthesize(path: str, count: int) -> dict[str, float]:
    """Share of the time, and pairs a second over all."""
    trained = untrained(path)
    config = trained.objective.task.tokenizer
    captions = [caption for _, caption in dataset.texts(count)]
    generator = TokenGenerator(trained, SynthesizeConfig("", "", batch_size=256))
    bounds = np.linspace(0, count, _TARS + 1).astype(int)

    def requests():
        for shard in range(_TARS):
            for number in range(bounds[shard], bounds[shard + 1]):
                yield shard, (int(number), captions[number])
            yield shard, None

    with tempfile.TemporaryDirectory() as folder:
        provenance = Provenance("random", config.num_tokens, config.codebook_size)
        writer = PairWriter(folder, provenance, num_shards=_TARS)
        start = time.perf_counter()
        with BusyClock() as clock, Progress("synthesize", count, "pairs") as progress:
            pair_shards.write_shards(writer, generator.pairs(requests(), clock, progress))
        seconds = time.perf_counter() - start
    return {"busy": clock.share, "pairs_per_second": count / seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=4000)
    parser.add_argument("--tokenizer", default=str(ROOT / "configs/scenes/tokenizer.py"))
    parser.add_argument("--generator", default=str(ROOT / "configs/scenes/generator.py"))
    arguments = parser.parse_args()
    scale = pathlib.Path(arguments.tokenizer).parent.name
    result = {
        "tokenize": measure_tokenize(
            arguments.tokenizer, arguments.images, arguments.size, arguments.batch
        ),
        "synthesize": measure_synthesize(arguments.generator, arguments.pairs),
        **vars(arguments),
        "tokenizer": pathlib.Path(arguments.tokenizer).name,
        "generator": pathlib.Path(arguments.generator).name,
    }
    path = write_result(f"device_busy_{scale}", result)
    for stage in ("tokenize", "synthesize"):
        print(f"{stage}: the device was busy {result[stage]['busy']:.1%} of the time")
    print(path)


if __name__ == "__main__":
    main()
