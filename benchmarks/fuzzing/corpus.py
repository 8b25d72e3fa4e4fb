"""The inputs that a fuzz campaign damages: small, and made by the stages themselves.

FOLDER/runs/NAME          workdirs of untrained models, and `trained`, one of two steps
FOLDER/filter/pairs       pairs with scores, and FOLDER/filter/view, a view of them
FOLDER/unfinished         the same pairs before their manifest is written
FOLDER/exports/NAME       of two of the runs
FOLDER/sources/FORMAT     eight images with captions in each format of annotations
FOLDER/captions, FOLDER/server, FOLDER/report, FOLDER/vocabulary
"""

import contextlib
import csv
import http.server
import io
import json
import os
import pathlib
import shutil
import tarfile
import threading
from unittest import mock

import numpy as np
from PIL import Image

from synth2_jax import main
from synth2_jax.data import records
from synth2_jax.data.pair_writer import PairWriter, write_pairs
from synth2_jax.errors import UserError
from synth2_jax.files import write_json, write_json_lines
from synth2_jax.loading.trained import load_trained
from synth2_jax.testing.untrained_runs import MODELS, write_untrained_run
from synth2_jax.text.vocabulary import BUILT_IN

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs" / "scenes"
REPORT = ROOT / "tests" / "data" / "fuzz" / "report"
MASKGIT = ROOT / "tests" / "data" / "maskgit" / "tokenizer_checkpoint"
NUM_IMAGES = 8
NUM_PAIRS = 12
COLORS = ("red", "blue", "green", "white")
TRAINING = (  # a run of this many steps, in a second or two
    f"--config={CONFIGS / 'language_model.py'}:tiny",
    *("--config.train.log_every=1", "--config.data.batch_size=4"),
    *("--config.data.shuffle_buffer=4", "--config.train.microbatches=1"),
    *("--config.optimizer.schedule=constant", "--config.train.checkpoint_every=1"),
    *(
        f"--config.model.language_model.{name}={value}"
        for name, value in {
            "num_layers": 1,
            "embed_dim": 16,
            "num_heads": 2,
            "head_dim": 8,
            "mlp_dim": 16,
        }.items()
    ),
)


def build(folder: pathlib.Path) -> None:
    """Writes all of it to an empty folder."""
    for name in MODELS:
        write_untrained_run(folder / "runs" / name, name)
    run("train", *TRAINING, f"--workdir={folder}/runs/trained", "--config.train.steps=2")
    _pairs(folder)
    _captions(folder)
    _server(folder / "server")
    for name in ("tokenizer", "vlm"):
        run("export", f"{folder}/runs/{name}", f"--output={folder}/exports/{name}")
    for write in (_annotations, _json_lines, _tars, _tf_records, _pictures):
        write(folder / "sources")
    _unfinished(folder)
    (folder / "vocabulary").mkdir()
    shutil.copy(BUILT_IN["scenes"], folder / "vocabulary" / "scenes.model")
    shutil.copytree(REPORT, folder / "report" / "report")
    (folder / "maskgit").mkdir()
    shutil.copy(MASKGIT, folder / "maskgit")


def run(stage: str, *arguments: str) -> None:
    """One stage, which must succeed."""
    code = main.main(["synth2", stage, *arguments])
    if code:
        raise AssertionError(f"synth2 {stage} {' '.join(arguments)}: exit code {code}")


def picture(number: int, size: int = 16) -> Image.Image:
    """A square of one of four colours; every number has pixels of its own."""
    pixels = np.full((size, size, 3), 255, np.uint8)
    pixels[4:12, 4:12, number % 3] = 10 * number
    return Image.fromarray(pixels)


def encoded(number: int, file_format: str = "PNG", **options) -> bytes:
    contents = io.BytesIO()
    picture(number).save(contents, file_format, **options)
    return contents.getvalue()


def caption(number: int) -> str:
    return f"a {COLORS[number % 4]} square, number {number}"


def _pairs(folder: pathlib.Path) -> None:
    vlm = load_trained(folder / "runs" / "vlm", "vlm")
    tokenizer = vlm.objective.task.tokenizer
    rng = np.random.default_rng(0)
    pairs = [
        records.Pair(
            f"real-{number:06d}-0",
            rng.integers(0, tokenizer.codebook_size, tokenizer.num_tokens),
            caption(number),
            "real",
        )
        for number in range(NUM_PAIRS)
    ]
    provenance = records.Provenance(
        vlm.fingerprint("tokenizer"), tokenizer.num_tokens, tokenizer.codebook_size
    )
    write_pairs(folder / "filter" / "pairs", pairs, provenance, num_shards=2)
    run("filter", *filtering(folder / "filter"))


def _unfinished(folder: pathlib.Path) -> None:
    """Pairs as a kill leaves them when all shards are written and the manifest is not."""
    _json_lines(folder / "unfinished")
    with mock.patch.object(PairWriter, "finish", side_effect=UserError("killed")):
        argv = tokenizing(folder, folder / "unfinished", "json_lines", "json_lines/a.jsonl")
        assert main.main(["synth2", "tokenize", *argv, "--config.num_shards=2"]) == 2


def tokenizing(corpus: pathlib.Path, folder: pathlib.Path, kind: str, path: str) -> list[str]:
    """`synth2 tokenize` on a source in the folder, by an untrained tokenizer, images stored."""
    images = {"coco": "images", "karpathy": "images", "flickr30k": "images", "nocaps": "images"}
    arguments = [
        f"--config={CONFIGS / 'tokenize.py'}",
        f"--workdir={folder}/out",
        f"--config.tokenizer={corpus}/exports/tokenizer",
        f"--config.source.format={kind}",
        f"--config.source.path={folder}/{path}",
        *("--config.splits=train", "--config.max_skipped=1.0", "--config.num_shards=1"),
        *("--config.num_threads=2", "--on_the_fly"),
    ]
    if kind in images:
        arguments.append(f"--config.source.images={folder}/images")
    if kind == "vqa":
        arguments.append(f"--config.source.questions={folder}/questions.json")
        arguments.append(f"--config.source.images={folder}/images/{{image_id:06d}}.png")
    return arguments


def filtering(folder: pathlib.Path) -> list[str]:
    """`synth2 filter` on the corpus' pairs, by an untrained model."""
    return [
        f"--config={CONFIGS / 'filter.py'}",
        f"--workdir={folder}/view",
        f"--config.folder={folder}/pairs",
        f"--config.vlm={folder.parent / 'runs' / 'vlm'}",
        *("--config.scores=caption", "--config.by=caption", "--config.batch_size=4"),
    ]


def _captions(folder: pathlib.Path) -> None:
    rows = [{"caption": caption(number)} for number in range(NUM_IMAGES)]
    (folder / "captions").mkdir()
    write_json_lines(folder / "captions" / "drafts.jsonl", rows)
    run("captions", *writing(folder / "captions"))


def writing(folder: pathlib.Path) -> list[str]:
    """`synth2 captions` from the drafts that are in the folder."""
    return [
        f"--config={CONFIGS / 'captions.py'}",
        f"--workdir={folder}",
        f"--config.text_file={folder}/drafts.jsonl",
        *("--config.captions_per_class=None", "--config.classes=red,blue,green,white"),
    ]


def _server(folder: pathlib.Path) -> None:
    """What a server of captions answers, and a journal of it."""
    folder.mkdir()
    choice = {"index": 0, "message": {"role": "assistant", "content": "a dog in the snow"}}
    answer = {
        "model": "m-0613",
        "choices": [choice | {"finish_reason": "stop"}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 4},
    }
    write_json(folder / "answer.json", answer)
    with contextlib.chdir(folder):
        run("captions", *asking(folder))


def asking(folder: pathlib.Path) -> list[str]:
    """`synth2 captions` from a server, once."""
    return [
        f"--config={ROOT / 'configs' / 'paper' / 'captions.py'}",
        f"--workdir={folder}",
        *("--config.classes=dog", "--config.captions_per_class=1", "--config.max_rounds=1"),
        *("--config.server.model=m", "--config.server.max_attempts=1"),
        "--config.server.timeout=5",
    ]


class _AnswerFromFile(http.server.BaseHTTPRequestHandler):
    """Sends answer.json of the folder that the process is in, whatever is asked."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        path = pathlib.Path("answer.json")
        contents = path.read_bytes() if path.is_file() else b""
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(contents)))
        self.end_headers()
        self.wfile.write(contents)

    def log_message(self, *arguments) -> None:
        del arguments


def start_server() -> None:
    """A server on this machine, whose address is in the environment from now on."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _AnswerFromFile)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    os.environ["OPENAI_BASE_URL"] = f"http://127.0.0.1:{server.server_port}/v1"
    os.environ["OPENAI_API_KEY"] = "sk-fuzz"


def _image_files(folder: pathlib.Path) -> list[str]:
    """Names of the images, half of them JPEG."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    names = []
    for number in range(NUM_IMAGES):
        ending = "jpg" if number % 2 else "png"
        names.append(f"{number:06d}.{ending}")
        contents = encoded(number, "JPEG", quality=95) if number % 2 else encoded(number)
        (folder / "images" / names[-1]).write_bytes(contents)
    return names


def _annotations(folder: pathlib.Path) -> None:
    names = _image_files(folder / "coco")
    for name in ("karpathy", "flickr30k", "nocaps", "vqa"):
        _image_files(folder / name)
    images = [{"id": n, "file_name": name} for n, name in enumerate(names)]
    annotations = [{"id": n, "image_id": n, "caption": caption(n)} for n in range(NUM_IMAGES)]
    write_json(folder / "coco" / "a.json", {"images": images, "annotations": annotations})
    domains = [{**image, "domain": "in-domain"} for image in images]
    write_json(folder / "nocaps" / "a.json", {"images": domains, "annotations": annotations})
    rows = [
        {"filename": name, "imgid": n, "split": "train", "sentences": [{"raw": caption(n)}]}
        for n, name in enumerate(names)
    ]
    write_json(folder / "karpathy" / "a.json", {"images": rows})
    with open(folder / "flickr30k" / "a.csv", "w", newline="") as file:
        lines = [["image_name", " comment_number", " comment"]]
        lines += [[name, " 0", f" {caption(n)}"] for n, name in enumerate(names)]
        csv.writer(file, delimiter="|", lineterminator="\n").writerows(lines)
    questions = [
        {"question_id": n, "image_id": n, "question": "What colour is it?"}
        for n in range(0, NUM_IMAGES, 2)
    ]
    answers = [
        {"question_id": n, "answers": [{"answer": COLORS[n % 4]}] * 10}
        for n in range(0, NUM_IMAGES, 2)
    ]
    write_json(folder / "vqa" / "questions.json", {"questions": questions})
    write_json(folder / "vqa" / "a.json", {"annotations": answers})


def _json_lines(folder: pathlib.Path) -> None:
    names = _image_files(folder / "json_lines")
    rows = [{"image": f"images/{name}", "caption": caption(n)} for n, name in enumerate(names)]
    write_json_lines(folder / "json_lines" / "a.jsonl", rows)


def _tars(folder: pathlib.Path) -> None:
    (folder / "webdataset").mkdir(parents=True)
    for ending, mode in (("tar", "w"), ("tar.gz", "w:gz")):
        with tarfile.open(folder / "webdataset" / f"a.{ending}", mode) as file:
            for number in range(NUM_IMAGES):
                name = f"{ending[-2:]}{number:06d}"
                text = json.dumps({"caption": caption(number)}).encode()
                if number % 2:
                    text = caption(number).encode()
                for suffix, data in (
                    ("png", encoded(number)),
                    ("txt" if number % 2 else "json", text),
                ):
                    member = tarfile.TarInfo(f"{name}.{suffix}")
                    member.size = len(data)
                    file.addfile(member, io.BytesIO(data))


def _tf_records(folder: pathlib.Path) -> None:
    from synth2_jax.data.tensorflow_cpu import tf

    def feature(value: bytes) -> tf.train.Feature:
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

    (folder / "tfrecord").mkdir(parents=True)
    with tf.io.TFRecordWriter(str(folder / "tfrecord" / "a.tfrecord")) as file:
        for number in range(NUM_IMAGES):
            values = {
                "image/encoded": feature(encoded(number)),
                "caption": feature(caption(number).encode()),
            }
            example = tf.train.Example(features=tf.train.Features(feature=values))
            file.write(example.SerializeToString())


def _pictures(folder: pathlib.Path) -> None:
    """Image files of every kind that is read, for JSON lines."""
    (folder / "pictures").mkdir(parents=True)
    kinds = {
        "png": encoded(0),
        "jpg": encoded(1, "JPEG", quality=95),
        "webp": encoded(2, "WEBP", lossless=True),
        "gif": encoded(3, "GIF"),
        "bmp": encoded(4, "BMP"),
        "tif": encoded(5, "TIFF"),
    }
    deep = io.BytesIO()
    Image.fromarray(np.full((16, 16), 40000, np.uint16)).save(deep, "PNG")
    kinds["deep.png"] = deep.getvalue()
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    kinds["exif.jpg"] = encoded(7, "JPEG", quality=95, exif=exif.tobytes())
    rows = []
    for number, (ending, contents) in enumerate(kinds.items()):
        name = f"{number}.{ending}"
        (folder / "pictures" / name).write_bytes(contents)
        rows.append({"image": name, "caption": caption(number), "key": str(number)})
    write_json_lines(folder / "pictures" / "a.jsonl", rows)
