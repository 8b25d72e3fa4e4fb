"""`synth2 tokenize` of inputs as people have them: every pair that is found is kept or counted."""

import gzip
import json
import pathlib
import struct
import zlib

import numpy as np
import pytest

from synth2_jax import main
from synth2_jax.data import image_pairs, records
from synth2_jax.data.skipped import reasons
from synth2_jax.data.sources.source import ImageText
from synth2_jax.loading.trained import load_trained
from synth2_jax.stages import tokenize
from synth2_jax.testing.image_files import picture, write_tar
from synth2_jax.testing.untrained_runs import write_untrained_run

CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "scenes" / "tokenize.py"
NUM = 6  # images of a case
HALF = "\ud83d"  # of a character, as JSON can have it


def drawing(number, format="PNG"):
    return picture(np.full((20, 20, 3), 40 * number, np.uint8), format)


def caption(number):
    return f"a circle number {number}"


def write_images(folder):
    (folder / "images").mkdir(parents=True)
    names = [f"{number:06d}.jpg" for number in range(NUM)]
    for number, name in enumerate(names):
        (folder / "images" / name).write_bytes(drawing(number, "JPEG"))
    return names


def write_web(path, name="{:03d}", endings=("jpg", "txt"), more=()):
    """A tar of NUM examples; `more` are further (name, contents) before them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    members = list(more)
    for number in range(NUM):
        for ending in endings:
            pixels = ending.endswith(("jpg", "png", "jfif"))
            contents = drawing(number) if pixels else caption(number).encode()
            members.append((f"{name.format(number)}.{ending}", contents))
    write_tar(path, members)


def write_tfrecords(path, numbers, compression=None):
    from synth2_jax.data.tensorflow_cpu import tf

    with tf.io.TFRecordWriter(str(path), compression) as file:
        for number in numbers:
            values = {"image/encoded": drawing(number), "caption": caption(number).encode()}
            lists = {name: tf.train.BytesList(value=[value]) for name, value in values.items()}
            features = {name: tf.train.Feature(bytes_list=found) for name, found in lists.items()}
            example = tf.train.Example(features=tf.train.Features(feature=features))
            file.write(example.SerializeToString())


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def rows_of(names):
    return [{"image": f"images/{name}", "caption": caption(n)} for n, name in enumerate(names)]


def coco(names, **changes):
    """COCO's annotations; `changes` replace a field of the second image's rows."""
    images = [{"id": number, "file_name": name} for number, name in enumerate(names)]
    rows = [{"image_id": n, "caption": caption(n)} for n in range(len(names))]
    for place in (images[1], rows[1]):
        place.update({key: value for key, value in changes.items() if key in place})
    return json.dumps({"images": images, "annotations": rows})


def dotted_names(folder):
    write_web(folder / "dots.tar", "img_v1.0_{:03d}")
    write_web(folder / "mixed.tar", "a.b{:03d}", more=[("ab.jpg", drawing(1)), ("ab.txt", b"ab")])
    write_web(folder / "parts.tar", endings=("a.png", "cls", "jpg", "seg.png", "txt", "z.png"))
    write_web(folder / "unknown.tar", endings=("jfif", "cap"))
    write_web(folder / "macos.tar", more=[("._000.jpg", b"\0\5\x16\7"), (".DS_Store", b"Bud1")])
    write_web(folder / "latin.tar", more=[("caf\udce9.jpg", drawing(1)), ("caf\udce9.txt", b"a")])
    (folder / "empty.jsonl").write_text("")


def shards_of_tfds(folder):
    for shard in range(3):
        name = f"mypairs-train.tfrecord-{shard:05d}-of-00003"
        write_tfrecords(folder / name, range(2 * shard, 2 * shard + 2))


def compressed_tfrecords(folder):
    write_tfrecords(folder / "data.tfrecord.gz", range(NUM), "GZIP")
    contents = gzip.decompress((folder / "data.tfrecord.gz").read_bytes())
    (folder / "cut.tfrecord.gz").write_bytes(gzip.compress(contents[:-5]))


def current_folder(folder):
    names = write_images(folder)
    write_lines(folder / "captions.jsonl", rows_of(names))
    (folder / "here.json").write_text(coco([f"images/{name}" for name in names]))


def values_of_other_types(folder):
    names = write_images(folder)
    for name, bad in (("null", None), ("nan", float("nan")), ("number", 2024), ("half", HALF)):
        (folder / f"caption_{name}.json").write_text(coco(names, caption=bad))
        (folder / f"file_name_{name}.json").write_text(coco(names, file_name=bad))
    (folder / "id_of_a_list.json").write_text(coco(names, image_id=[1]))
    sentences = [[{"raw": caption(n)}, {"raw": None if n == 1 else "b"}] for n in range(NUM)]
    rows = [
        {"filename": name, "imgid": n, "split": "train", "sentences": sentences[n]}
        for n, name in enumerate(names)
    ]
    (folder / "karpathy.json").write_text(json.dumps({"images": rows}))
    rows = rows_of(names)
    for name, change in (
        ("caption_null", {"caption": None}),
        ("caption_number", {"caption": [7, "two"]}),
        ("image_half", {"image": f"caf{HALF}.jpg"}),
        ("key_half", {"id": f"k{HALF}"}),
        ("key_nan", {"id": float("nan")}),
    ):
        write_lines(folder / f"{name}.jsonl", [rows[0], {**rows[1], **change}, *rows[2:]])


def questions(folder):
    write_images(folder)
    (folder / "secret.jpg").write_bytes(drawing(0))
    asked = [{"question_id": n, "image_id": n, "question": "what is it?"} for n in range(NUM)]
    given = [{"question_id": n, "answers": [{"answer": "red"}]} for n in range(NUM)]

    def write(name, rows, **change):
        rows = [rows[0], {**rows[1], **change}, *rows[2:]]
        key = "questions" if "question" in rows[0] else "annotations"
        (folder / f"{name}.json").write_text(json.dumps({key: rows}))

    write("questions", asked)
    write("questions_half", asked, question=f"what is it {HALF}?")
    write("questions_out", asked, image_id="../secret")
    write("questions_text", asked, image_id="1", question_id="1")
    write("answers", given)
    write("answers_number", given, answers=[{"answer": 2}])
    write("answers_none", given, answers=[])


def csv_of_flickr(folder):
    names = write_images(folder)
    lines = [f"{name}| {k}| {caption(n)} ." for n, name in enumerate(names) for k in range(2)]
    lines[3] = f"{names[1]}| 4   A dog runs across the grass ."
    head = "image_name| comment_number| comment"
    (folder / "results.csv").write_text("\n".join([head, *lines]) + "\n")
    (folder / "bom.csv").write_bytes("\r\n".join(["\ufeff" + head, *lines, ""]).encode())
    lines = [f"{name},{caption(n)}" for n, name in enumerate(names)]
    (folder / "captions.txt").write_text("\n".join(["image,caption", *lines]))
    text = "\ufeff" + "".join(json.dumps(row) + "\r\n" for row in rows_of(names))
    (folder / "bom.jsonl").write_bytes(text.encode())


def brackets(folder):
    write_web(folder / "cc3m [v1.0], {final}" / "a.tar")
    write_web(folder / "run[1]" / "a.tar")


def damaged_metadata(folder):
    (folder / "images").mkdir(parents=True)
    text = zlib.compress(b"a" * (2 << 20))
    chunks = [(b"eXIf", b"\0\x08\0\x02\x01\x12")]
    chunks += [(b"zTXt", b"c\0\0" + text), (b"iCCP", b"i\0\0" + text)]
    contents = [drawing(3, "JPEG")[:-2], b"\n" + drawing(4, "JPEG"), drawing(5)]
    for number, (name, body) in enumerate(chunks):
        png = drawing(number)
        chunk = struct.pack(">L", len(body)) + name + body
        chunk += struct.pack(">L", zlib.crc32(name + body))
        start = png.index(b"IDAT") - 4
        contents.append(png[:start] + chunk + png[start:])
    names = [f"{number}.png" for number in range(NUM)]
    for name, image in zip(names, contents, strict=True):
        (folder / "images" / name).write_bytes(image)
    write_lines(folder / "captions.jsonl", rows_of(names))


def ids_of_coco(folder):
    names = write_images(folder)
    values = json.loads(coco(names))
    for row in values["images"][::2]:
        row["id"] = str(row["id"])
    (folder / "half_text.json").write_text(json.dumps(values))
    for row in values["annotations"]:
        row["image_id"] = names[row["image_id"]]
    (folder / "file_names.json").write_text(json.dumps(values))
    paths = [str(folder / "images" / name) for name in names]
    (folder / "absolute.json").write_text(coco(paths))
    (folder / "out.json").write_text(coco(names, file_name="../secret.jpg"))
    write_lines(folder / "absolute.jsonl", [{"image": p, "caption": "a circle"} for p in paths])
    rows = [{"image": f"images\\{name}", "caption": "a"} for name in names]
    write_lines(folder / "backslash.jsonl", rows)


ONE_LESS = NUM - 1
# (case, format, path, pairs kept, pairs skipped by reason). Images are in the folder "images".
CASES = [
    (dotted_names, "webdataset", "dots.tar", NUM, {}),
    (dotted_names, "webdataset", "mixed.tar", NUM + 1, {}),
    (dotted_names, "webdataset", "parts.tar", NUM, {}),
    (dotted_names, "webdataset", "unknown.tar", 0, {"no known ending": NUM}),
    (dotted_names, "webdataset", "macos.tar", NUM, {}),
    (dotted_names, "webdataset", "latin.tar", NUM, {"key not UTF-8": 1}),
    (dotted_names, "json_lines", "empty.jsonl", 0, {}),
    (shards_of_tfds, "tfrecord", "mypairs-train.tfrecord-*", NUM, {}),
    (compressed_tfrecords, "tfrecord", "data.tfrecord.gz", NUM, {}),
    (compressed_tfrecords, "tfrecord", "cut.tfrecord.gz", ONE_LESS, {"damaged TFRecord": 1}),
    (current_folder, "json_lines", "./captions.jsonl", NUM, {}),
    (current_folder, "json_lines", "captions.jsonl", NUM, {}),
    (current_folder, "coco", "here.json", NUM, {}),
    *(
        (values_of_other_types, format, path, ONE_LESS, {reason: 1})
        for format, path, reason in (
            ("coco", "caption_null.json", "caption not text"),
            ("coco", "caption_nan.json", "caption not text"),
            ("coco", "caption_number.json", "caption not text"),
            ("coco", "caption_half.json", "caption not UTF-8"),
            ("coco", "file_name_null.json", "image name not text"),
            ("coco", "file_name_nan.json", "image name not text"),
            ("coco", "file_name_number.json", "image name not text"),
            ("coco", "file_name_half.json", "image name not UTF-8"),
            ("json_lines", "caption_null.jsonl", "no caption"),
            ("json_lines", "image_half.jsonl", "image name not UTF-8"),
            ("json_lines", "key_half.jsonl", "key not UTF-8"),
            ("json_lines", "key_nan.jsonl", "key not text or a number"),
        )
    ),
    (values_of_other_types, "json_lines", "caption_number.jsonl", NUM, {"caption not text": 1}),
    (values_of_other_types, "karpathy", "karpathy.json", 2 * NUM - 1, {"caption not text": 1}),
    (
        *(values_of_other_types, "coco", "id_of_a_list.json", ONE_LESS),
        {"image_id not text or a number": 1, "no caption": 1},
    ),
    (questions, "vqa", "answers.json questions.json", NUM, {}),
    (questions, "vqa", "answers.json questions_text.json", NUM, {}),
    (questions, "vqa", "answers.json questions_half.json", ONE_LESS, {"question not UTF-8": 1}),
    (
        *(questions, "vqa", "answers.json questions_out.json", ONE_LESS),
        {"image_id not as in source.images": 1},
    ),
    (
        *(questions, "vqa", "answers.json questions_out.json {image_id}.jpg", 0),
        {"image file missing": ONE_LESS, "image outside of the folder": 1},
    ),
    (questions, "vqa", "answers_number.json questions.json", ONE_LESS, {"caption not text": 1}),
    (questions, "vqa", "answers_none.json questions.json", ONE_LESS, {"no answer": 1}),
    *(
        (csv_of_flickr, "flickr30k", name, 2 * NUM - 1, {"line not an image and a caption": 1})
        for name in ("results.csv", "bom.csv")
    ),
    (csv_of_flickr, "flickr30k", "captions.txt", NUM, {}),
    (csv_of_flickr, "json_lines", "bom.jsonl", NUM, {}),
    (brackets, "webdataset", "cc3m [v1.0], {final}/a.tar", NUM, {}),
    (brackets, "webdataset", "run[1]/a.tar", NUM, {}),
    (brackets, "webdataset", "run[1]/*.tar", NUM, {}),
    (damaged_metadata, "json_lines", "captions.jsonl", NUM, {}),
    (ids_of_coco, "coco", "half_text.json", NUM, {}),
    (ids_of_coco, "coco", "file_names.json", 0, {"no caption": NUM, "no such image": NUM}),
    (ids_of_coco, "coco", "absolute.json", NUM, {}),
    (ids_of_coco, "coco", "out.json", ONE_LESS, {"image outside of the folder": 1}),
    (ids_of_coco, "json_lines", "absolute.jsonl", NUM, {}),
    (ids_of_coco, "json_lines", "backslash.jsonl", 0, {"image file missing": NUM}),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_untrained_run(folder, "tokenizer")
    return load_trained(folder, "tokenizer")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder of a case, written when it is first asked for."""
    folders = {}

    def folder(case):
        if case not in folders:
            folders[case] = tmp_path_factory.mktemp(case.__name__)
            case(folders[case])
        return folders[case]

    return folder


@pytest.fixture
def run(trained, written, monkeypatch, capfd):
    """run(workdir, case, format, path, ...) -> (exit code, what was printed)."""
    monkeypatch.setattr(tokenize, "load_tokenizer", lambda path, **told: trained)

    def tokenized(workdir, case, format, path, **overrides):
        monkeypatch.chdir(written(case))
        path, *more = path.split(" ") if format == "vqa" else [path]
        given = {"source.format": format, "source.path": path}
        if format == "vqa":
            given["source.questions"] = more[0]
            given["source.images"] = f"images/{more[1] if more[1:] else '{image_id:06d}.jpg'}"
        elif format != "json_lines":  # there it is the folder of the lines
            given["source.images"] = "." if path == "here.json" else "images"
        given |= {"splits": "train", "num_shards": 2, "max_skipped": 1.0, **overrides}
        argv = ["synth2", "tokenize", f"--config={CONFIG}", "--on-the-fly", f"--workdir={workdir}"]
        argv += [f"--config.{key}={value}" for key, value in ({"tokenizer": "any"} | given).items()]
        capfd.readouterr()
        code = main.main(argv)
        printed = capfd.readouterr()
        assert "Traceback" not in printed.err
        return code, printed.out if code == 0 else printed.err.splitlines()[-1]

    return tokenized


@pytest.mark.parametrize(
    ("case", "format", "path", "kept", "skipped"),
    CASES,
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_every_pair_is_kept_or_counted(run, tmp_path, case, format, path, kept, skipped):
    code, line = run(tmp_path, case, format, path)
    lost = sum(skipped.values())
    if kept:
        assert (code, line) == (
            0,
            f"tokenize train: found {kept + lost} pairs, kept {kept}, skipped {lost} "
            f"({reasons(skipped)})\n",
        )
        manifest = records.verify(tmp_path / "train")
        assert (manifest.num_pairs, manifest.skipped) == (kept, skipped)
    else:
        why = f"all {lost} are skipped ({reasons(skipped)}); " if lost else "the source is empty"
        assert code == 2 and line.startswith(f"synth2: pairs {tmp_path / 'train'}: no pairs, {why}")
        assert not (tmp_path / "train" / "manifest.json").exists()


def test_pairs_are_those_of_the_case(run, tmp_path):
    assert run(tmp_path, dotted_names, "webdataset", "mixed.tar")[0] == 0
    pairs = {pair.key: pair.caption for pair in records.read_pairs(tmp_path / "train")}
    expected = {f"mixed/a.b{n:03d}-0": caption(n) for n in range(NUM)}
    assert pairs == {"mixed/ab-0": "ab", **expected}
    asked = run(tmp_path / "asked", questions, "vqa", "answers.json questions.json")
    assert asked[0] == 0
    found = records.read_pairs(tmp_path / "asked" / "train")
    assert {pair.prompt for pair in found} == {"Question: what is it? Answer:"}


def test_a_command_that_found_nothing_does_not_stop_the_corrected_one(run, tmp_path):
    wrong = {"source.caption_field": "cap", "num_shards": 3}
    code, line = run(tmp_path, dotted_names, "webdataset", "dots.tar", **wrong)
    assert code == 2 and "no caption 6" in line
    assert line.endswith("the first is dots/img_v1.0_000: looked for cap, found jpg, txt")
    assert run(tmp_path, dotted_names, "webdataset", "dots.tar")[0] == 0
    assert records.verify(tmp_path / "train").num_pairs == NUM
    # Pairs are never removed: what differs is named, and nothing else.
    code, line = run(tmp_path, dotted_names, "webdataset", "dots.tar", **wrong)
    assert code == 2 and line == (
        f"synth2: pairs {tmp_path / 'train'}: found pairs of captions.fields.caption_field '', "
        "expected 'cap'; delete the folder or choose another"
    )


def test_a_stage_that_loses_a_pair_fails(run, monkeypatch, tmp_path):
    pairs = image_pairs.pairs
    monkeypatch.setattr(
        image_pairs, "pairs", lambda *args: (r for r in pairs(*args) if "003" not in str(r))
    )
    with pytest.raises(AssertionError, match="shard 0: lost 1 pairs"):
        run(tmp_path, dotted_names, "webdataset", "dots.tar")
    assert not list((tmp_path / "train").glob("*.tfrecord"))


def test_large_files_do_not_wait_in_memory(monkeypatch):
    monkeypatch.setattr(image_pairs, "_MAX_HELD", 100)
    begun = []

    def items():
        for number in range(10):
            begun.append(number)
            yield 0, ImageText(str(number), bytes(60), [b"a circle"])

    results = image_pairs.in_threads(lambda item: item.key, items(), window=8, num_threads=2)
    for number, result in enumerate(results):
        assert result == (0, str(number))
        assert len(begun) <= number + 2
