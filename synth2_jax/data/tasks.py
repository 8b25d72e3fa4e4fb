"""SeqIO tasks: where examples come from and which features they have.

Nothing is registered by importing this module. docs/your_data.md shows a task of your own.

Legend: N image tokens, H W pixels.
"""

import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import seqio
import tensorflow_text as tf_text

from synth2_jax.data import preprocessors, records, views
from synth2_jax.data.tensorflow_cpu import quiet, tf
from synth2_jax.domains.scenes import dataset as scenes
from synth2_jax.errors import UserError
from synth2_jax.text.prompts import CAPTION_PROMPT, class_prompt
from synth2_jax.text.vocabulary import vocabulary_path

SCENES_IMAGES = "scenes_images"
SCENES_TEXT = "scenes_text"
_VALIDATION_TEXTS = 256
_STRING = seqio.ContinuousFeature(dtype=tf.string, rank=0)

Arrays = Mapping[str, np.ndarray]


def sentencepiece(vocabulary: str) -> seqio.SentencePieceVocabulary:
    """Returns SeqIO's vocabulary for a built-in name or a model file."""
    return _SentencePieceVocabulary(vocabulary_path(vocabulary), extra_ids=0)


def text_features(vocabulary: str) -> dict[str, seqio.Feature]:
    """Returns prompt, caption, key: strings; the converter uses the vocabulary of `caption`."""
    text = seqio.Feature(sentencepiece(vocabulary), add_eos=False, dtype=tf.string, rank=0)
    return {"prompt": text, "caption": text, "key": _STRING}


def pair_features(vocabulary: str) -> dict[str, seqio.Feature]:
    """Returns image_tokens i32[N], source ("real" or "synthetic"), and `text_features`.

    A task may also have stored features of its captions, "text_features", bytes (see `records`).
    """
    tokens = seqio.ContinuousFeature(dtype=tf.int32, rank=1)
    return {"image_tokens": tokens, "source": _STRING, **text_features(vocabulary)}


def image_features() -> dict[str, seqio.Feature]:
    """Returns image u8[H,W,3]."""
    return {"image": seqio.ContinuousFeature(dtype=tf.uint8, rank=3)}


def add_pairs_task(
    name: str,
    folder: str,
    vocabulary: str,
    prompt: str = CAPTION_PROMPT,
    *,
    shuffle_buffer: int = 2048,
    encoded: bool = False,
    replace: bool = False,
) -> seqio.Task:
    """Registers a folder of pairs (see `records`), or a view of one, as a task.

    Its split is the manifest's. `prompt` comes before each caption in the VLM's and the language
    model's text; `shuffle_buffer` examples wait in memory, and in each saved position, to be
    shuffled; `encoded` also reads the stored features of the captions; `replace` allows that
    another task has this name.

    Raises:
      UserError: the folder is not complete, or another task has this name.
    """
    manifest = views.open_pairs(folder)
    decode, features = preprocessors.decode_pairs, pair_features(vocabulary)
    if isinstance(manifest, views.View):
        decode = views.decode_pairs
    elif manifest.provenance.image_size:
        decode = functools.partial(decode, images=True)
        del features["image_tokens"]
        features |= image_features()
    arguments = {
        "folder": str(pathlib.Path(folder).resolve()),
        "contents": manifest.fingerprint,
        "vocabulary": vocabulary_path(vocabulary),
        "prompt": prompt,
        "shuffle_buffer": shuffle_buffer,
    }
    if encoded:
        arguments["encoded"] = True
        features[records.TEXT_FEATURES] = _STRING
    return _register(
        name,
        source=lambda: ShardSource(manifest, arguments),
        arguments=arguments,
        preprocessors=[functools.partial(decode, prompt=prompt, text_features=encoded)],
        output_features=features,
        shuffle_buffer_size=shuffle_buffer,
        replace=replace,
    )


def add_scenes_tasks(vocabulary: str = "scenes", *, replace: bool = False) -> None:
    """Registers `scenes_images` (train, validation, test) and `scenes_text` (train, validation)."""
    names = {"train": "images", "validation": "validation", "test": "test"}
    images = {split: functools.partial(_scenes_images, name) for split, name in names.items()}
    count = scenes.SPLITS["text"]
    texts = {
        "train": functools.partial(_scenes_text, 0, count),
        "validation": functools.partial(_scenes_text, count, count + _VALIDATION_TEXTS),
    }
    text = {"scenes": "text", "vocabulary": vocabulary_path(vocabulary)}
    for name, splits, arguments, features in (
        (SCENES_IMAGES, images, {"scenes": "images"}, image_features()),
        (SCENES_TEXT, texts, text, text_features(vocabulary)),
    ):
        _register(
            name,
            source=functools.partial(ArraySource, splits, arguments),
            arguments=arguments,
            preprocessors=[],
            output_features=features,
            shuffle_buffer_size=None,  # the source itself shuffles all of its examples
            replace=replace,
        )


class ShardSource(seqio.FileDataSource):
    """The shards of one folder. Saved positions only hold their names, so the folder may move."""

    def __init__(self, manifest: records.Manifest | views.View, arguments: Mapping[str, object]):
        self.arguments = dict(arguments)
        # A process with only an empty shard would have nothing to read.
        filled = [shard.name for shard in manifest.shards if shard.num_pairs]
        self._shards = tuple(filled or [shard.name for shard in manifest.shards])
        folder = str(arguments["folder"])
        if isinstance(manifest, views.View):
            read = views.reader(manifest)
        else:
            read = lambda name: tf.data.TFRecordDataset(  # noqa: E731
                tf.strings.join([folder, name], separator="/")
            )
        super().__init__(
            read_file_fn=read,
            split_to_filepattern={manifest.provenance.split: self._shards},
            num_input_examples={manifest.provenance.split: manifest.num_pairs},
        )

    def list_shards(self, split: str) -> Sequence[str]:
        return self._shards


class ArraySource(seqio.DataSource):
    """Examples from arrays in memory, which are made when they are first read.

    Each epoch shuffles all examples again; a saved position only holds their indices. `splits` are
    {split: function that returns {feature: array with one row per example}}; `arguments` identify
    this source, for `_register`.
    """

    def __init__(self, splits: Mapping[str, Callable[[], Arrays]], arguments: Mapping[str, object]):
        super().__init__(splits=splits, performs_internal_shuffling=True)
        self.arguments = dict(arguments)
        self._arrays = {split: functools.cache(load) for split, load in splits.items()}

    @property
    def supports_arbitrary_sharding(self) -> bool:
        return True

    def list_shards(self, split: str) -> Sequence[str]:
        return [split]

    def get_dataset(
        self, split="train", shuffle=True, seed=None, shard_info=None, **unused
    ) -> tf.data.Dataset:
        arrays = self._arrays[split]()
        num_examples = len(next(iter(arrays.values())))
        # Constants of the graph, not of the iterator, are not in saved positions.
        tensors = {name: tf.constant(array) for name, array in arrays.items()}
        indices = tf.data.Dataset.range(num_examples)
        if shard_info:
            indices = indices.shard(shard_info.num_shards, shard_info.index)
        if shuffle:
            indices = indices.shuffle(num_examples, seed=seed)
        return preprocessors.map_blocks(
            indices,
            lambda indices_B: {name: tf.gather(t, indices_B) for name, t in tensors.items()},
        )


class _SentencePieceVocabulary(seqio.SentencePieceVocabulary):
    """Loads its model into TensorFlow once, instead of once in each iterator."""

    @property
    def tf_tokenizer(self) -> tf_text.SentencepieceTokenizer:
        return _tf_tokenizer(self.sp_model)


@functools.cache
def _tf_tokenizer(model: bytes) -> tf_text.SentencepieceTokenizer:
    # Outside of the graph that is being traced, so that messages of C++ can be hidden.
    with tf.init_scope(), quiet():
        return tf_text.SentencepieceTokenizer(model=model)


def _register(
    name: str,
    *,
    source: Callable[[], seqio.DataSource],
    arguments: Mapping[str, object],
    replace: bool,
    **task_arguments,
) -> seqio.Task:
    """Adds a task, unless one with the same `arguments` is there."""
    if name in seqio.TaskRegistry.names():
        found = getattr(seqio.TaskRegistry.get(name).source, "arguments", None)
        if found == arguments:
            return seqio.TaskRegistry.get(name)
        if found is None or not replace:
            raise UserError(
                f"--config.data.folders.{name}: a task of this name is registered with "
                f"{found or 'a source of its own'}, now asked for with {dict(arguments)}. Choose "
                "another name."
            )
        seqio.TaskRegistry.remove(name)
    try:
        return seqio.TaskRegistry.add(name, source=source(), **task_arguments)
    except ValueError as error:
        raise UserError(f"--config.data.folders.{name}: {error}") from error


def _scenes_images(split: str) -> Arrays:
    return {"image": scenes.images(split)}


def _scenes_text(start: int, stop: int) -> Arrays:
    """Returns lines with two prompts in turn, as the model learns both: any caption, or a class."""
    lines = scenes.texts(stop)[start:]
    prompts = [
        class_prompt(class_name) if index % 2 else CAPTION_PROMPT
        for index, (class_name, _) in enumerate(lines)
    ]
    return {
        "prompt": np.array(prompts, dtype=object),
        "caption": np.array([caption for _, caption in lines], dtype=object),
        "key": np.array([f"text-{index:06d}" for index in range(start, stop)], dtype=object),
    }
