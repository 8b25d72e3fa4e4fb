"""What a fuzz campaign damages, the command that then reads it, and what may come of it.

A case ends well when the command refuses in one line (exit code 2), when it gives what the
undamaged input gives, or when its result differs as `Target.may_differ` allows: sources, texts and
configs are the user's to change, and nothing promises that they are as they were. Where a checksum
or a count does promise it, any other result is a silent change.
"""

import ast
import dataclasses
import hashlib
import json
import pathlib
import random
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.fuzzing import corpus
from benchmarks.fuzzing.mutations import CONFIG_VALUES, damage_file
from synth2_jax import command_line, main
from synth2_jax.data import records

Command = Callable[[pathlib.Path, pathlib.Path], Sequence[str]]
Result = Callable[[pathlib.Path, str], Any]
MaterialResult = Mapping[str, Any]


def anything(before: Any, after: Any, damaged: str) -> str:
    """Nothing promises what the result is."""
    del before, after, damaged
    return ""


def nothing(before: Any, after: Any, damaged: str) -> str:
    """A checksum or a count promises the same result."""
    del damaged
    return "" if before == after else f"{after!r:.300} in place of {before!r:.300}"


@dataclasses.dataclass(frozen=True)
class Target:
    """One kind of input.

    Attributes:
      name: for --targets.
      weight: its share of the cases.
      inputs: folder of the corpus that each case gets a copy of.
      command: (folder of the case, corpus) -> the stage and its arguments.
      files: patterns of the files that are damaged; none of a command line.
      result: (folder of the case, what was printed) -> JSON values.
      may_differ: (undamaged result, result, the file damaged) -> what is wrong with it, or "".
      damage_arguments: (arguments, rng) -> damaged arguments, and how; where no file is damaged.
    """

    name: str
    weight: int
    inputs: str
    command: Command
    files: tuple[str, ...] = ()
    result: Result = lambda case, printed: printed
    may_differ: Callable[[Any, Any, str], str] = nothing
    damage_arguments: Callable[[list[str], random.Random], tuple[list[str], str]] | None = None

    def damage(
        self, case: pathlib.Path, arguments: list[str], rng: random.Random
    ) -> tuple[list[str], str, str]:
        """Damages the case; returns (arguments, the file damaged, how)."""
        if self.damage_arguments:
            arguments, how = self.damage_arguments(arguments, rng)
            return arguments, "", how
        found = sorted(
            path
            for pattern in self.files
            for path in case.glob(pattern)
            if path.is_file() and not path.is_symlink()
        )
        path = rng.choice(found)
        return arguments, str(path.relative_to(case)), damage_file(path, rng)


# Results


def pairs_written(case: pathlib.Path, printed: str) -> Any:
    """{key: caption and image} of the pairs in out/, and how many were left out."""
    del printed
    (folder,) = (case / "out").iterdir()
    manifest = records.verify(folder)
    pairs = {
        pair.key: [pair.caption, hashlib.sha256(pair.image).hexdigest()[:16]]
        for pair in records.read_pairs(folder)
    }
    return {"pairs": pairs, "skipped": sum(manifest.skipped.values())}


def file_hash(name: str) -> Result:
    return lambda case, printed: hashlib.sha256((case / name).read_bytes()).hexdigest()


def lines_that(pattern: str) -> Result:
    """The printed lines that begin with the pattern."""
    return lambda case, printed: [line for line in printed.splitlines() if re.match(pattern, line)]


# What may differ

PICTURES = (".png", ".jpg", ".webp", ".gif", ".bmp", ".tif")


def all_counted(before: Any, after: Any, damaged: str) -> str:
    """Of a damaged image: the others are as they were, and each one is counted."""
    if not damaged.endswith(PICTURES):
        return ""
    total = len(before["pairs"]) + before["skipped"]
    found = len(after["pairs"]) + after["skipped"]
    if found != total:
        return f"{found} of {total} pairs are accounted for"
    kept = [key for key, value in after["pairs"].items() if before["pairs"].get(key) == value]
    if len(kept) < total - 1:
        return f"one image was damaged, and {total - len(kept)} pairs are not as they were"
    return ""


# Commands


def tokenize(kind: str, path: str) -> Command:
    return lambda case, built: ["tokenize", *corpus.tokenizing(built, case, kind, path)]


def source(
    name: str, weight: int, path: str, kind: str = "", files: tuple[str, ...] = ()
) -> Target:
    return Target(
        f"source-{name}",
        weight,
        f"sources/{name}",
        tokenize(kind or name, path),
        files or (path,),
        pairs_written,
        all_counted,
    )


def mixture(folder: str) -> Command:
    """Reads a folder of pairs, or a view, as a training does."""
    return lambda case, built: [
        "inspect",
        "real",
        f"--config={corpus.CONFIGS / 'vlm.py'}",
        f"--config.data.folders.real={case}/{folder}",
    ]


def train(case: pathlib.Path, built: pathlib.Path) -> list[str]:
    return ["train", *corpus.TRAINING, f"--workdir={case}", "--config.train.steps=3"]


def last_parameters(case: pathlib.Path, printed: str) -> Any:
    from synth2_jax.loading.trained import load_trained

    del printed
    return load_trained(case, "language_model").fingerprint("language_model")


def export_file(case: pathlib.Path, built: pathlib.Path) -> list[str]:
    return ["export", f"{case}/run", f"--output={case}/out.safetensors"]


# Config overrides


def _keys(section: Any, prefix: str = "") -> list[str]:
    keys = []
    for key, value in section.items():
        keys.append(f"{prefix}{key}")
        if hasattr(value, "items"):
            keys += _keys(value, f"{prefix}{key}.")
    return keys


# Whose config is not in the file of the stage.
_CONFIG_FILES = {
    "synthesize": "synthesis/token_generator.py",
    "evaluate": "evaluation/scorer.py",
    "filter": "evaluation/pair_scores.py",
}


def config_keys(arguments: Sequence[str]) -> list[str]:
    """Of the config that a command line gives, and those of its stage's dataclasses."""
    config = main.read_config(command_line.parse(["synth2", *arguments]))
    name = arguments[0]
    file = _CONFIG_FILES.get(name, f"{command_line.STAGES[name].room}/{name}.py")
    stage = pathlib.Path(main.__file__).parent / file
    fields = [
        node.target.id
        for node in ast.walk(ast.parse(stage.read_text("utf-8")))
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    ]
    return sorted({*_keys(config), *fields})


def overrides(arguments: list[str], rng: random.Random) -> tuple[list[str], str]:
    """One or two keys of the config get values that they were not made for."""
    added = []
    for _ in range(rng.choice([1, 1, 1, 2])):
        key = rng.choice(config_keys(arguments))
        draw = rng.random()
        if draw < 0.1:
            place = rng.randrange(len(key) + 1)
            key = key[:place] + rng.choice(["x", ".", "..", "\u00e9", " ", "[0]"]) + key[place:]
        elif draw < 0.15:
            key = f"{key}.x"
        added.append(f"--config.{key}={rng.choice(CONFIG_VALUES)}")
    return [*arguments, *added], " ".join(added)


def options(arguments: list[str], rng: random.Random) -> tuple[list[str], str]:
    """One of the stage's own options, or of synth2's."""
    names = [*command_line.STAGES[arguments[0]].options, "workdir", "config", "verbose", "nonsense"]
    name = rng.choice(names)
    added = f"--{name}={rng.choice(CONFIG_VALUES)}"
    if name in ("workdir", "output"):  # nothing outside of the case is written
        added = f"--{name}=" + rng.choice(["", "/dev/null", "/proc/x", "/etc/passwd/x"])
    return [*arguments, added], added


def configured(name: str, weight: int, inputs: str, command: Command) -> Target:
    return Target(
        f"config-{name}", weight, inputs, command, (), lambda *_: None, anything, overrides
    )


def with_options(name: str, weight: int, inputs: str, command: Command) -> Target:
    return Target(
        f"options-{name}", weight, inputs, command, (), lambda *_: None, anything, options
    )


def filtering(case: pathlib.Path, built: pathlib.Path) -> list[str]:
    arguments = corpus.filtering(case)
    arguments[3] = f"--config.vlm={built}/runs/vlm"
    return ["filter", *arguments]


def writing(case: pathlib.Path, built: pathlib.Path) -> list[str]:
    return ["captions", *corpus.writing(case)]


def compare(case: pathlib.Path, built: pathlib.Path) -> list[str]:
    return ["report", f"--workdir={case}/out", f"--captions=a={case}", "--classes=scenes"]


def inspect(folder: str, *more: str) -> Command:
    return lambda case, built: ["inspect", f"{case}/{folder}", *more]


def ask(case: pathlib.Path, built: pathlib.Path) -> list[str]:
    return ["captions", *corpus.asking(case)]


def synthesize(case: pathlib.Path, built: pathlib.Path) -> list[str]:
    return [
        "synthesize",
        f"--config={corpus.CONFIGS / 'synthesize.py'}",
        f"--workdir={case}/out",
        f"--config.generator={built}/runs/generator",
        f"--config.captions={case}",
        *("--config.sampler.num_steps=1", "--config.batch_size=8", "--config.num_shards=1"),
    ]


def number_of_pairs(case: pathlib.Path, printed: str) -> Any:
    del printed
    return records.verify(case / "out").num_pairs


_SUMMARY = r"[\d,]+ pairs|sources|  \S+-\d"

TARGETS = (
    Target(
        "synthesize",
        2,
        "captions",
        synthesize,
        ("captions.jsonl", "captions.jsonl", "manifest.json"),
        number_of_pairs,
    ),
    Target(
        "journal",
        4,
        "server",
        ask,
        ("answers.jsonl",),
        lambda case, printed: (case / "captions.jsonl").read_text("utf-8"),
        anything,
    ),
    Target(
        "server",
        4,
        "server",
        lambda case, built: [*ask(case, built), "--config.seed=1"],
        ("answer.json",),
        lambda case, printed: (case / "captions.jsonl").read_text("utf-8"),
        anything,
    ),
    source("coco", 6, "a.json"),
    source("nocaps", 2, "a.json"),
    source("karpathy", 4, "a.json"),
    source("flickr30k", 4, "a.csv"),
    source("vqa", 5, "a.json", files=("a.json", "questions.json")),
    source("json_lines", 6, "a.jsonl"),
    source("webdataset", 8, "*.tar*"),
    source("tfrecord", 5, "a.tfrecord"),
    source("pictures", 10, "a.jsonl", "json_lines", ("*.[!j]*", "*.jpg")),
    Target(
        "pairs",
        6,
        "filter/pairs",
        inspect(""),
        ("*.tfrecord", "manifest.json", "manifest.json"),
        lines_that(_SUMMARY),
    ),
    Target(
        "mixture",
        4,
        "filter",
        mixture("pairs"),
        ("pairs/*.tfrecord", "pairs/manifest.json"),
        lines_that("  caption="),
    ),
    Target(
        "view",
        6,
        "filter",
        mixture("view"),
        ("view/*.rows", "view/view.json"),
        lines_that("  caption="),
    ),
    Target(
        "inspect-view",
        3,
        "filter",
        inspect("view"),
        ("view/view.json", "view/*.rows"),
        lines_that("a view"),
    ),
    Target(
        "scores",
        6,
        "filter",
        filtering,
        ("pairs/scores/*/*", "pairs/scores/*/*", "view/*.json", "pairs/manifest.json"),
        lambda case, printed: json.loads((case / "view" / "view.json").read_bytes())["shards"],
    ),
    Target(
        "progress",
        6,
        "unfinished",
        lambda case, built: [
            *("tokenize", *corpus.tokenizing(built, case, "json_lines", "json_lines/a.jsonl")),
            "--config.num_shards=2",
        ],
        ("out/train/progress/*",),
        pairs_written,
    ),
    Target(
        "captions",
        5,
        "captions",
        compare,
        ("captions.jsonl", "manifest.json"),
        lambda case, printed: json.loads((case / "out/captions.json").read_bytes())["sets"],
        anything,
    ),
    Target(
        "drafts",
        4,
        "captions",
        writing,
        ("drafts.jsonl", "manifest.json"),
        lambda case, printed: (case / "captions.jsonl").read_text(),
        anything,
    ),
    Target(
        "report",
        5,
        "report",
        lambda case, built: ["report", f"--workdir={case}"],
        ("report/*.json",),
        lambda case, printed: None,
        anything,
    ),
    Target(
        "export",
        6,
        "exports/vlm",
        inspect("", "--fingerprints=true"),
        ("*",),
        lines_that("(?!exported|.*config)"),
        anything,
    ),
    Target(
        "load-export",
        6,
        "exports/tokenizer",
        lambda case, built: [
            *("tokenize", *corpus.tokenizing(built, case, "json_lines", "a.jsonl")),
            f"--config.source.path={built}/sources/json_lines/a.jsonl",
            f"--config.tokenizer={case}",
            "--config.on_the_fly=false",
        ],
        ("model.safetensors", "training.json", "README.md"),
        pairs_written,
    ),
    Target(
        "maskgit",
        3,
        "maskgit",
        lambda case, built: [
            *("tokenize", *corpus.tokenizing(built, case, "json_lines", "a.jsonl")),
            f"--config.source.path={built}/sources/json_lines/a.jsonl",
            f"--config.tokenizer={case}/tokenizer_checkpoint",
            "--config.image_size=16",
        ],
        ("tokenizer_checkpoint",),
        pairs_written,
        anything,
    ),
    Target(
        "checkpoint",
        6,
        "runs/vlm",
        lambda case, built: ["export", f"{case}", f"--output={case}/out.safetensors"],
        ("checkpoints/**/*",),
        file_hash("out.safetensors"),
    ),
    Target(
        "inspect-run",
        3,
        "runs/vlm",
        inspect("", "--fingerprints=true"),
        ("checkpoints/**/*",),
        lines_that("(?! )"),
    ),
    Target(
        "resume", 2, "runs/trained", train, ("checkpoints/**/*", "checkpoints/*/*"), last_parameters
    ),
    Target(
        "metrics",
        2,
        "runs/trained",
        lambda case, built: ["export", f"{case}", f"--output={case}/out"],
        ("metrics.jsonl",),
        file_hash("out/model.safetensors"),
    ),
    Target(
        "vocabulary",
        4,
        "vocabulary",
        lambda case, built: [
            *mixture("x")(case, built)[:3],
            f"--config.data.folders.real={built}/filter/pairs",
            f"--config.data.vocabulary={case}/scenes.model",
        ],
        ("scenes.model",),
        lambda case, printed: None,
        anything,
    ),
    configured("tokenize", 8, "sources/json_lines", tokenize("json_lines", "a.jsonl")),
    configured("filter", 5, "filter", filtering),
    configured("captions", 6, "captions", writing),
    configured("train", 3, "runs/trained", train),
    configured("mixture", 3, "filter", mixture("pairs")),
    with_options("report", 3, "captions", compare),
    with_options("inspect", 3, "filter", inspect("pairs")),
    with_options(
        "export", 2, "runs/vlm", lambda case, built: ["export", f"{case}", f"--output={case}/out"]
    ),
)
