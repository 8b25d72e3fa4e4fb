"""Opens the data that a config describes. Fake data needs no TensorFlow.

Legend: B batch rows of this process, T text tokens, E width of stored features.
"""

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from synth2_jax.config import check_counts, check_seeds
from synth2_jax.data import records, views
from synth2_jax.errors import UserError, naming, nearest
from synth2_jax.sharding import ALL_ROWS, DataLayout
from synth2_jax.text.prompts import CAPTION_PROMPT
from synth2_jax.text.vocabulary import Vocabulary, vocabulary_path

if TYPE_CHECKING:
    import seqio

    from synth2_jax.data.fake_batches import FakeBatches
    from synth2_jax.data.stream import Stream
    from synth2_jax.data.train_batches import TrainIterator

_SOURCES = ("seqio", "fake")
_MAX_SHUFFLE_BUFFER = 100_000_000

Opened = Mapping[str, records.Manifest | views.View]  # by the name of the task


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The data to train or evaluate on.

    Attributes:
      source: "seqio", or "fake" for random batches of the right shapes.
      mixture: name of a task or mixture: of `folders`, of `rates`, of `modules`, or a built-in one
        (scenes_images, scenes_text). May be left out with a single folder.
      split: of each task in it.
      folders: {task name: folder of pairs, or of a view of pairs}; each becomes a task.
      rates: {task or mixture name: rate}; when given, they become the mixture `mixture`. In the
        place of a task's rate, ((step, rate), ...) changes it linearly from step to step, and
        jumps where two points have one step: ((400, 0), (400, 0.5)).
      modules: Python modules to import first, which register tasks and mixtures of their own.
      batch_size: rows of all processes together.
      seed: of shuffling and mixing.
      shuffle_buffer: examples of each folder that wait to be shuffled. They are in each saved
        position: about 1.5 KB an example of 256 image tokens, half of it after compression; images
        in place of tokens are 200 KB each at 256 pixels, stored features of a caption of 20 tokens
        160 KB at a width of 4096.
      num_epochs: None for ever; a mixture ends with the first of its tasks that ends.
      vocabulary: a built-in name or the path of a SentencePiece model file; later stages that use
        the model read it, and `prompt`, from its run.
      prompt: before each caption in the text of the VLM and the language model.
      deal: how several processes share the data. "examples": batches are the same on any mesh and
        number of processes, and a run resumes exactly when it changes; each process reads all data.
        "shards": each data shard of the mesh reads files of its own, for pods whose input would
        not keep up (see input_wait_share).
      text_length: T: prompt, caption and eos; longer captions are cut.
      images_per_text: I: of a VLM's training, how many pairs, one after the other, make one text,
        which prepares it for few-shot prompts (see data/packing.py). A row then has I images and
        I * (T + 1) - 1 tokens.
    """

    source: str = "seqio"
    mixture: str = ""
    split: str = "train"
    folders: Mapping[str, str] = dataclasses.field(default_factory=dict)
    rates: Mapping[str, float | tuple] = dataclasses.field(default_factory=dict)
    modules: tuple[str, ...] | str = ()
    batch_size: int = 64
    seed: int = 0
    shuffle_buffer: int = 2048
    num_epochs: int | None = None
    vocabulary: str = "scenes"
    prompt: str = CAPTION_PROMPT
    text_length: int = 48
    images_per_text: int = 1
    deal: Literal["examples", "shards"] = "examples"

    def __post_init__(self):
        if self.source not in _SOURCES:
            raise ValueError(f"source: unknown {self.source!r}; {nearest(self.source, _SOURCES)}")
        counts = ("batch_size", "shuffle_buffer", "text_length", "images_per_text", "num_epochs")
        check_counts(self, *counts)
        if self.shuffle_buffer > _MAX_SHUFFLE_BUFFER:  # TensorFlow allocates it at once
            raise ValueError(
                f"shuffle_buffer: found {self.shuffle_buffer}, expected at most "
                f"{_MAX_SHUFFLE_BUFFER} examples in memory"
            )
        check_seeds(self, "seed")
        if self.num_epochs is not None and self.deal == "shards":
            # Processes whose shards hold fewer examples would end before the others.
            raise ValueError(
                f"num_epochs: found {self.num_epochs}, expected none with `deal`=shards: "
                "processes would not end together"
            )

    @property
    def module_names(self) -> tuple[str, ...]:
        """The names in `modules`, which may also be one comma-separated string."""
        if isinstance(self.modules, str):
            return tuple(name.strip() for name in self.modules.split(",") if name.strip())
        return tuple(self.modules)

    @property
    def schedule(self) -> dict[str, tuple]:
        """The rates that change from step to step."""
        return {k: rate for k, rate in self.rates.items() if not isinstance(rate, int | float)}


def train_iterator(
    config: DataConfig,
    model_name: str,
    *,
    batch_spec: Mapping[str, Any] | None = None,
    limits: Mapping[str, int] | None = None,
    layout: DataLayout = ALL_ROWS,
    **made_by: Any,
) -> "TrainIterator | FakeBatches":
    """Shuffled, repeated, mixed batches with `get_state` and `set_state`; see `TrainIterator`.

    Args:
      config: what to read.
      model_name: "tokenizer", "language_model", "generator" or "vlm".
      batch_spec: {name: ShapeDtypeStruct} of a whole batch, for fake data.
      limits: {name: limit} of the integers: fake data is drawn below them, and a token of real data
        beyond is an error.
      layout: which rows of every batch this process reads.
      made_by: `tokenizer_fingerprint` and `text_encoder` of the pairs, see `_stream`.

    Raises:
      UserError: unknown names, no examples, pairs of another tokenizer or text encoder, missing or
        malformed files.
    """
    if config.source == "fake":
        from synth2_jax.data.fake_batches import FakeBatches

        if batch_spec is None:
            raise UserError("--config.data.source=fake: needs the shapes of a batch, found none")
        return FakeBatches(batch_spec, config.seed, limits, layout)
    stream, identity = _stream(config, model_name, limits, layout, **made_by)
    from synth2_jax.data.train_batches import TrainIterator

    return TrainIterator(stream, identity)


def eval_batches(
    config: DataConfig,
    model_name: str,
    *,
    limits: Mapping[str, int] | None = None,
    layout: DataLayout = ALL_ROWS,
    with_keys: bool = False,
    **made_by: Any,
) -> Iterator[dict[str, np.ndarray]]:
    """One pass in order, with `valid` bool[B]; see `eval_batches.evaluation_batches`.

    Ignores `seed`, `shuffle_buffer`, `num_epochs` and rates. Arguments and errors as in
    `train_iterator`; `with_keys` adds the examples' keys, an array of str.
    """
    if config.source == "fake":
        raise UserError("--config.data.source=fake: has no end, so there is nothing to evaluate")
    stream, _ = _stream(config, model_name, limits, layout, **made_by)
    from synth2_jax.data.eval_batches import evaluation_batches

    return evaluation_batches(stream, with_keys=with_keys)


def stored_text_encoder(config: DataConfig) -> dict[str, Any]:
    """Returns the encoder of the captions in a config's folders: {"fingerprint", "width": E, ...}.

    It has the keys `records.ENCODED_BY` of `records.Provenance.text_encoder`.

    Raises:
      UserError: captions of a folder without features, or with those of another text encoder,
        vocabulary or length than another folder's or the config's.
    """
    opened = _open_folders(config)
    for name, manifest in opened.items():
        if found := manifest.provenance.text_encoder:
            text_encoder = {key: found[key] for key in records.ENCODED_BY}
            _check_encoded(config, opened, text_encoder, str(config.folders[name]))
            return text_encoder
    raise UserError(
        f"--config.data.folders: found captions without features in "
        f"{sorted(config.folders.values())}, expected what `synth2 encode_captions` writes"
    )


def describe(config: DataConfig) -> dict[str, Any]:
    """Describes the data: {"kind", "name", "split", "features": {name: text}, "tasks": [...]}.

    A task is {"name", "share": of the draws (None if a schedule changes it), "examples": number
    (None if unknown), "shards": number}. Errors as in `train_iterator`.
    """
    provider = _provider(config)
    from synth2_jax.data import mixtures

    mixtures.check_split(provider, config.split)
    tasks = mixtures.tasks_of(provider)
    rates = [provider.get_rate(task) if len(tasks) > 1 else 1.0 for task in tasks]
    return {
        "kind": "task" if tasks == [provider] else "mixture",
        "name": provider.name,
        "split": config.split,
        "features": {
            name: f"{feature.dtype.name}, rank {feature.rank}"
            for name, feature in provider.output_features.items()
        },
        "tasks": [
            {
                "name": task.name,
                "share": None if config.schedule else rate / sum(rates),
                "examples": task.num_input_examples(config.split),
                "shards": len(task.source.list_shards(config.split)),
            }
            for task, rate in zip(tasks, rates, strict=True)
        ],
    }


def first_examples(config: DataConfig, count: int) -> list[dict[str, Any]]:
    """Returns the task features of the first examples that training draws; text as str."""
    provider = _provider(config)
    from synth2_jax.data.stream import draw_examples

    key = f"--config.data.mixture={provider.name}"
    drawn = draw_examples(provider, config.split, count, key, shuffle=True, seed=config.seed)
    arrays = ({name: tensor.numpy() for name, tensor in row.items()} for row in drawn)
    return [
        {k: v.decode("utf-8", "replace") if isinstance(v, bytes) else v for k, v in row.items()}
        for row in arrays
    ]


def _open_folders(config: DataConfig) -> Opened:
    opened = {}
    for name, folder in config.folders.items():
        if not folder:
            raise UserError(f"--config.data.folders.{name}: no folder of pairs given")
        with naming(f"--config.data.folders.{name}", folder):
            opened[name] = views.open_pairs(folder)
    return opened


def _stream(
    config: DataConfig,
    model_name: str,
    limits: Mapping[str, int] | None,
    layout: DataLayout,
    *,
    tokenizer_fingerprint: str | None = None,
    text_encoder: Mapping[str, Any] | None = None,
) -> "tuple[Stream, dict[str, Any]]":
    """Registers the tasks of a config; returns the stream and the identity of its data.

    Pairs made with any tokenizer but `tokenizer_fingerprint` are refused; None takes them all.
    With a `text_encoder` of `stored_text_encoder`, a generator's batches hold the stored features
    of the captions, and captions encoded in any other way are refused.
    """
    opened = _open_folders(config)
    for name, manifest in opened.items():
        # Any tokenizer can encode images.
        if tokenizer_fingerprint is not None and not manifest.provenance.image_size:
            with naming(f"--config.data.folders.{name}", folder := config.folders[name]):
                records.check_tokenizer(manifest, tokenizer_fingerprint, folder)
    if text_encoder is not None:
        _check_encoded(config, opened, text_encoder)
    provider = _provider(config, encoded=text_encoder is not None)
    if model_name != "tokenizer":  # reads no text
        _check_vocabulary(config, provider)
    from synth2_jax.data.stream import Stream

    width = text_encoder["width"] if text_encoder else 0
    stream = Stream(config, provider, model_name, layout, limits or {}, width)
    identity = {"folders": {name: manifest.fingerprint for name, manifest in opened.items()}}
    if "caption" in stream.converter.TASK_FEATURES and config.vocabulary:
        path = pathlib.Path(vocabulary_path(config.vocabulary))
        identity["vocabulary"] = records.sha256_of(path)[:16]
    if text_encoder is not None:
        identity["text_encoder"] = dict(text_encoder)
    return stream, identity


def _check_encoded(
    config: DataConfig, opened: Opened, text_encoder: Mapping[str, Any], as_in: str = ""
) -> None:
    """Raises UserError unless this encoder made all features, with the config's vocabulary."""
    for name, manifest in opened.items():
        with naming(f"--config.data.folders.{name}", folder := config.folders[name]):
            records.check_text_features(manifest.provenance, text_encoder, folder, as_in)
    vocabulary = vocabulary_path(config.vocabulary)
    expected = {
        "text_length": (config.text_length, ""),
        "vocabulary": (records.sha256_of(pathlib.Path(vocabulary)), f" of {vocabulary}"),
    }
    for key, (value, of) in expected.items():
        if text_encoder[key] != value:
            raise UserError(
                f"--config.data.{key}: found {value}{of}, expected {text_encoder[key]} as the "
                f"captions of {as_in or sorted(config.folders.values())} were encoded"
            )


def _check_vocabulary(config: DataConfig, provider: "seqio.Task | seqio.Mixture") -> None:
    """Raises UserError unless each task has the same vocabulary as the model."""
    from synth2_jax.data import mixtures

    expected = pathlib.Path(vocabulary_path(config.vocabulary))
    for task in mixtures.tasks_of(provider):
        if (caption := task.output_features.get("caption")) is None:
            continue  # the converter says which features a task lacks
        file = getattr(caption.vocabulary, "sentencepiece_model_file", None)
        if not file or pathlib.Path(file).read_bytes() != expected.read_bytes():
            found = f"{file} ({Vocabulary(file).size} pieces)" if file else str(caption.vocabulary)
            raise UserError(
                f"--config.data.vocabulary: found {expected} ({Vocabulary(str(expected)).size} "
                f"pieces), but the captions of task {task.name!r} have the vocabulary {found}. "
                "Give both the same SentencePiece model."
            )


def _provider(config: DataConfig, *, encoded: bool = False) -> "seqio.Task | seqio.Mixture":
    """Registers the tasks of a config; what imports SeqIO comes after this, which silences it."""
    from synth2_jax.data import tensorflow_cpu  # noqa: F401

    from synth2_jax.data import mixtures, tasks  # isort: skip

    # Tasks of an earlier run in the same process are replaced.
    tasks.add_scenes_tasks(config.vocabulary, replace=True)
    for name, folder in config.folders.items():
        with naming(f"--config.data.folders.{name}", folder):
            tasks.add_pairs_task(
                name,
                str(folder),
                config.vocabulary,
                config.prompt,
                shuffle_buffer=config.shuffle_buffer,
                encoded=encoded,
                replace=True,
            )
    mixtures.import_modules(config.module_names)
    name = config.mixture
    if not name:
        if len(config.folders) != 1 or config.rates:
            raise UserError(
                f"--config.data.mixture: none given, with {len(config.folders)} folders and "
                f"{len(config.rates)} rates; expected the name of a task or mixture"
            )
        (name,) = config.folders
    if not config.rates:
        return mixtures.resolve(name)
    for task, points in config.schedule.items():
        mixtures.check_schedule(task, points)
    # Where no step is known, the largest rate of a schedule is used.
    largest = {task: max(rate for _, rate in points) for task, points in config.schedule.items()}
    return mixtures.add_mixture(name, {**config.rates, **largest}, replace=True)
