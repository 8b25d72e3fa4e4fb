"""Trained models as Python objects, for people who want no stages.

    import synth2_jax

    vlm = synth2_jax.load_vlm("workdir/demo/vlm_real_synthetic")
    vlm.caption("photo.jpg")                     # one caption
    vlm.caption(["photo.jpg", "another.png"])    # one each

    generator = synth2_jax.load_generator("workdir/demo/generator")
    made = generator.generate(["a red circle", "a blue star"], seed=1)
    made.tokens, made.embeddings                 # what a VLM is trained on
    made.images                                  # pixels, decoded when they are asked for

A path is the workdir of a training run or a folder that `synth2 export` wrote. The first call
compiles for one batch size, to which every batch is filled up; rows are split over the devices of
this process. What cannot be done raises `synth2_jax.errors.UserError`, one line.

Legend: B images or captions, S side of the model's images in pixels, N image tokens, C codebook
width, T text tokens.
"""

import functools
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence

import jax
import numpy as np
from PIL import Image

from synth2_jax import config as config_lib
from synth2_jax import sharding
from synth2_jax.data.images import ImageLimits, decode_image, middle_square
from synth2_jax.data.pipeline import DataConfig
from synth2_jax.data.skipped import SkipError
from synth2_jax.errors import UserError
from synth2_jax.loading.caption_decode import caption_decode
from synth2_jax.loading.text_encoders import with_text_encoder
from synth2_jax.loading.trained import load_trained
from synth2_jax.models.mask_schedule import masked_counts
from synth2_jax.models.maskgit import Generator
from synth2_jax.models.vlm import VLM
from synth2_jax.models.vq_tokenizer import VQTokenizer
from synth2_jax.sampling.batches import in_batches
from synth2_jax.sampling.captions import make_caption
from synth2_jax.sampling.guidance import GuidanceConfig
from synth2_jax.sampling.image_tokens import make_generate
from synth2_jax.sampling.parallel_decode import ParallelDecodeConfig
from synth2_jax.sampling.pixels import make_decode, make_encode
from synth2_jax.sampling.text_decode import TextDecodeConfig
from synth2_jax.text.caption_ids import text_ids
from synth2_jax.text.vocabulary import load_vocabulary

Path = str | os.PathLike[str]
Picture = Path | bytes | Image.Image | np.ndarray

_ANY_SIZE = ImageLimits(min_side=1)
_ALL_DEVICES = sharding.MeshConfig()
_NUM_SEEDS = 2**32


def load_vlm(
    path: Path,
    *,
    batch_size: int = 32,
    decode: TextDecodeConfig | None = None,
    mesh: sharding.MeshConfig = _ALL_DEVICES,
) -> "TrainedVLM":
    """Loads a VLM that captions images.

    Args:
      path: the workdir of its training run, or an exported folder.
      batch_size: images at once, over all devices.
      decode: greedy or beam; None takes what the folder was exported with, or else the defaults,
        with captions at most as long as those of its training.
      mesh: how it lies on the devices of this process.

    Raises:
      UserError: no VLM there, one that is damaged, or a setting that does not fit.
    """
    loaded = _Loaded(path, "vlm", batch_size, mesh)
    if decode is None:
        told = loaded.trained.config.get("decode")
        decode = caption_decode(told, loaded.data, loaded.vocabulary, "decode")
    decode = config_lib.build(TextDecodeConfig, decode, "decode")
    if decode.method == "nucleus":
        raise UserError("decode.method: found nucleus, expected greedy or beam")
    return TrainedVLM(loaded, decode)


def load_generator(
    path: Path,
    *,
    batch_size: int = 32,
    sampler: ParallelDecodeConfig | None = None,
    guidance: GuidanceConfig | None = None,
    text_encoder: Path = "",
    mesh: sharding.MeshConfig = _ALL_DEVICES,
) -> "ImageGenerator":
    """Loads a generator that makes images of captions; arguments and errors as for `load_vlm`.

    Args:
      sampler: how tokens are drawn; None takes what the folder was exported with, or else the
        defaults.
      guidance: how closely images follow captions; None as for `sampler`.
      text_encoder: where the text encoder is, of a generator that was trained on stored features.
    """
    loaded = _Loaded(path, "generator", batch_size, mesh)
    where = {"mesh": loaded.mesh, "rules": loaded.rules, "where": "text_encoder"}
    trained = loaded.trained = with_text_encoder(loaded.trained, text_encoder, **where)
    told = trained.config
    sampler = config_lib.build(ParallelDecodeConfig, sampler or told.get("sampler"), "sampler")
    guidance = config_lib.build(GuidanceConfig, guidance or told.get("guidance"), "guidance")
    num_tokens = trained.objective.task.tokenizer.num_tokens
    masked_counts(sampler.schedule, sampler.num_steps, num_tokens)  # raises what will not do
    return ImageGenerator(loaded, sampler, guidance)


class _Loaded:
    """A model on the devices of this process, and the vocabulary that it was trained with."""

    def __init__(
        self, path: Path, model_name: str, batch_size: int, mesh_config: sharding.MeshConfig
    ):
        if batch_size < 1:
            raise UserError(f"batch_size: found {batch_size}, expected at least 1")
        self.batch_size = batch_size
        self.mesh = sharding.make_mesh(mesh_config, jax.local_devices())
        sharding.check_rows(batch_size, self.mesh, "batch_size")
        self.rules = sharding.axis_rules(mesh_config)
        self.trained = load_trained(path, model_name, mesh=self.mesh, rules=self.rules)
        self.data = config_lib.build(DataConfig, self.trained.config["data"])
        self.vocabulary = load_vocabulary(self.data.vocabulary)

    def compiled(self, function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
        """function(params, *arrays) as one of the arrays, whose rows are split over the mesh."""

        def on_mesh(params, *arrays):
            with sharding.constraints(self.mesh, self.rules):
                return function(params, *arrays)

        compiled, where = jax.jit(on_mesh), sharding.batch_sharding(self.mesh)
        return lambda *arrays: compiled(self.trained.params, *jax.device_put(arrays, where))


class TrainedVLM:
    """A VLM, as `load_vlm` returns it.

    Attributes:
      trained: the model, its parameters and where it comes from.
      image_size: S.
      decode: how captions are written.
    """

    def __init__(self, loaded: _Loaded, decode: TextDecodeConfig):
        self._loaded, self.decode = loaded, decode
        self.trained = trained = loaded.trained
        task = trained.objective.task
        self.image_size = task.tokenizer.image_size
        encode = make_encode(task.tokenizer)
        prompt_ids = loaded.vocabulary.encode(loaded.data.prompt)
        caption = make_caption(
            VLM(task.vlm), prompt_ids, decode, loaded.vocabulary.end_id(prompt_ids)
        )

        def caption_ids(params, images):
            image_tokens_BN = encode(params["tokenizer"], images)
            embeddings_BNC = trained.objective.image_embeddings(params, image_tokens_BN)
            return caption(params["vlm"], embeddings_BNC)[0]

        self._caption_ids = loaded.compiled(caption_ids)

    def caption(self, images: Picture | Sequence[Picture]) -> str | list[str]:
        """Writes one caption an image, which depends on that image alone.

        Args:
          images: one or many: picture files, by path or as bytes, or PIL images. Their middle
            square is scaled to S x S. Or u8[B, S, S, 3] or u8[S, S, 3] as they are. Files are
            read a batch at a time.

        Returns:
          a list, or a str when `images` is one file, PIL image or u8[S, S, 3].

        Raises:
          UserError: what is no picture, or an array of another shape or dtype.
        """
        images = np.asarray(images) if isinstance(images, jax.Array) else images
        one = isinstance(images, str | os.PathLike | bytes | Image.Image)
        one = one or (isinstance(images, np.ndarray) and images.ndim == 3)
        if not one and not (isinstance(images, Sequence) or np.ndim(images) == 4):
            raise UserError(
                f"images: found {type(images).__name__}, expected a path, a picture or a list of "
                "them, or uint8[B, S, S, 3]"
            )
        images = [images] if one else images

        def pixels(numbers: Sequence[int]) -> tuple[np.ndarray]:
            return (np.stack([self._pixels(images[i], f"images[{i}]") for i in numbers]),)

        batches = in_batches(self._caption_ids, range(len(images)), self._loaded.batch_size, pixels)
        captions = [
            self._loaded.vocabulary.decode(ids.tolist()) for ids_BT in batches for ids in ids_BT
        ]
        return captions[0] if one else captions

    def _pixels(self, image: Picture, where: str) -> np.ndarray:
        size = self.image_size
        try:
            if isinstance(image, str | os.PathLike):
                where = os.fspath(image)
                image = pathlib.Path(image).read_bytes()
            if isinstance(image, bytes):
                return decode_image(image, size, _ANY_SIZE)
            if isinstance(image, Image.Image):
                return middle_square(image, size)
            array = np.asarray(image)
        except (SkipError, OSError, ValueError) as error:
            reason = " ".join(f"{error}".split())
            raise UserError(f"{where}: expected a picture, found {reason}") from error
        if array.dtype != np.uint8 or array.shape != (size, size, 3):
            raise UserError(
                f"{where}: found {array.dtype}{list(array.shape)}, expected "
                f"uint8{[size, size, 3]}; only files and PIL images are scaled"
            )
        return array


Captioner = TrainedVLM  # its former name


class ImageGenerator:
    """A generator, as `load_generator` returns it.

    Attributes:
      trained: the model, its parameters and where it comes from.
      image_size: S.
      text_length: T; of a longer caption the beginning is read.
    """

    def __init__(self, loaded: _Loaded, sampler: ParallelDecodeConfig, guidance: GuidanceConfig):
        self._loaded = loaded
        self.trained = loaded.trained
        task = loaded.trained.objective.task
        self.image_size, self.text_length = task.tokenizer.image_size, task.text_length
        generate = make_generate(Generator(task.generator), sampler, guidance)
        decode = make_decode(task.tokenizer)
        tokenizer = VQTokenizer(task.tokenizer)

        def image_tokens(params, text_BT, seeds_B, numbers_B):
            key = lambda seed, number: jax.random.fold_in(jax.random.key(seed), number)  # noqa: E731
            keys_B = jax.vmap(key)(seeds_B, numbers_B)
            codebook_KC = tokenizer.apply({"params": params["tokenizer"]}, method="codes")
            return generate(params["generator"], codebook_KC, text_BT, text_BT != 0, keys_B)

        def embed(params, ids_BN):
            return tokenizer.apply({"params": params["tokenizer"]}, ids_BN, method="embed")

        def pixels(params, ids_BN):
            return decode(params["tokenizer"], ids_BN)

        functions = (image_tokens, embed, pixels)
        self._image_tokens, self._embed, self._decode = map(loaded.compiled, functions)

    def generate(self, captions: str | Sequence[str], seed: int = 0, first: int = 0) -> "Generated":
        """Makes an image of each caption, as `synth2 synthesize` does.

        Args:
          captions: one or many.
          seed: 0 to 2**32 - 1.
          first: number of the first caption. An image depends on its caption, the seed and its
            number alone, so a long list may be given in parts.

        Raises:
          UserError: a caption that leaves no token to read, or a number out of range.
        """
        if not isinstance(captions, Iterable) or isinstance(captions, bytes):
            raise UserError(f"captions: found {captions!r:.60}, expected a text or a list of texts")
        captions = [captions] if isinstance(captions, str) else list(captions)
        for number, caption in enumerate(captions):
            if not isinstance(caption, str) or not self._ids(caption):
                raise UserError(f"captions[{number}]: found {caption!r:.60}, expected a text")
        for number, more in ((seed, 0), (first, len(captions) - 1)):
            if not isinstance(number, int | np.integer) or not 0 <= number < _NUM_SEEDS - more:
                raise UserError(
                    f"found seed {seed!r:.40}, first {first!r:.40}, expected each an integer from "
                    "0 to 2**32 - 1"
                )

        def arrays(numbers: Sequence[int]) -> tuple[np.ndarray, ...]:
            texts = [captions[i] for i in numbers]
            text_BT = text_ids(texts, self._loaded.vocabulary, self.text_length)
            seeds_B = np.full(len(texts), seed, np.uint32)
            return text_BT, seeds_B, (first + np.asarray(numbers)).astype(np.uint32)

        batches = in_batches(
            self._image_tokens, range(len(captions)), self._loaded.batch_size, arrays
        )
        num_tokens = self.trained.objective.task.tokenizer.num_tokens
        tokens_BN = np.concatenate([np.zeros((0, num_tokens), np.int32), *batches])
        return Generated(tokens_BN, self)

    def _ids(self, caption: str) -> list[int]:
        try:
            caption.encode()
        except UnicodeEncodeError:  # half of a surrogate pair is no text
            return []
        return self._loaded.vocabulary.encode(caption)

    def _of_all(self, function: Callable[..., jax.Array], ids_BN: np.ndarray) -> np.ndarray:
        # Of no rows there is one batch to get dtype and shape from.
        rows = ids_BN if len(ids_BN) else np.zeros((1, ids_BN.shape[1]), np.int32)
        return np.concatenate(list(in_batches(function, rows, self._loaded.batch_size)))[
            : len(ids_BN)
        ]


class Generated:
    """Images that a generator made; `tokens` are i32[B, N]."""

    def __init__(self, tokens: np.ndarray, generator: ImageGenerator):
        self.tokens = tokens
        self._generator = generator

    def __len__(self) -> int:
        return len(self.tokens)

    @functools.cached_property
    def embeddings(self) -> np.ndarray:
        """f32[B, N, C], the tokens' codebook vectors: what a VLM reads in the place of an image."""
        return self._generator._of_all(self._generator._embed, self.tokens)

    @functools.cached_property
    def images(self) -> np.ndarray:
        """u8[B, S, S, 3]. Decoding costs more than the rest: it is done when first asked for."""
        return self._generator._of_all(self._generator._decode, self.tokens)
