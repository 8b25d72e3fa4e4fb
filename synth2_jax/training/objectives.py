"""The objectives: each model with its loss, its batches, and the pretrained parts it is built on.

Parameter trees by model (a checkpoint of each can be used alone):

    tokenizer        tokenizer, discriminator (when there is one), perceptual (frozen; likewise)
    language_model   language_model
    generator        generator (its text_encoder may be frozen, or left out where its features
                     are stored), tokenizer (frozen)
    vlm              vlm/{language_model (frozen), resampler, cross_attention}, tokenizer (frozen)

What is frozen here is so by default: `config.model.freeze` chooses.

Legend: B batch, N image tokens, T text tokens, E text width.
"""

import dataclasses
import functools
import operator
from collections.abc import Mapping, Set
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from synth2_jax import config as config_lib
from synth2_jax.errors import UserError, nearest
from synth2_jax.layers.dropout import without_dropout
from synth2_jax.losses.generator_loss import generator_loss, sample_mask
from synth2_jax.losses.vlm_loss import vlm_loss
from synth2_jax.losses.vq_loss import vq_loss
from synth2_jax.models.discriminator import Discriminator
from synth2_jax.models.gemma import GemmaConfig
from synth2_jax.models.language_model import LanguageModel, shift_right
from synth2_jax.models.maskgit import Generator
from synth2_jax.models.quantizer import seen_codes
from synth2_jax.models.vgg import VGG
from synth2_jax.models.vlm import VLM
from synth2_jax.models.vq_tokenizer import (
    VQTokenizer,
    VQTokenizerConfig,
    initial_model_state,
    normalized,
    update_codebook,
    used_model_state,
)
from synth2_jax.text.vocabulary import Vocabulary
from synth2_jax.training.base_objective import BaseObjective, Spec
from synth2_jax.training.tasks import GeneratorTask, LanguageModelTask, TokenizerTask, VLMTask
from synth2_jax.training.train_state import Objective, Params, Part
from synth2_jax.user_code import load_named

Metrics = dict[str, tuple[jax.Array, jax.Array]]
LossResult = tuple[Metrics, dict[str, Any]]
_CODEBOOK = "tokenizer/quantizer/codebook"


class TokenizerObjective(BaseObjective):
    """VQ-GAN: reconstruction, codebook, perceptual and, from a step on, adversarial losses."""

    task_class = TokenizerTask
    batches = "tokenizer"
    part_paths = {"perceptual": "perceptual"}
    fresh_only = {"quantize_start": _CODEBOOK}

    def __init__(self, task: TokenizerTask):
        super().__init__(task)
        self._model = VQTokenizer(task.tokenizer)
        self._discriminator = Discriminator(task.discriminator) if task.discriminator else None
        self._perceptual = None
        if task.perceptual:
            self.parts = {"perceptual": Part("perceptual", task.perceptual)}
            self._perceptual = VGG(task.perceptual)

    @property
    def frozen(self) -> tuple[str, ...]:
        # A perceptual network that is trained would learn to see no difference.
        always = (f"^{part.path}/" for part in self.parts.values())
        return tuple(dict.fromkeys((*super().frozen, *always)))

    def init(self, key: jax.Array) -> dict[str, Any]:
        keys = jax.random.split(key, 3)
        image = _blank_image(self.task.tokenizer)
        params = {"tokenizer": self._model.init(keys[0], image, deterministic=False)["params"]}
        if self._discriminator:
            params["discriminator"] = self._discriminator.init(keys[1], image)["params"]
        if self._perceptual:
            params["perceptual"] = self._perceptual.init(keys[2], image)["params"]
        return {"params": params, **initial_model_state(self.task.tokenizer)}

    def loss(self, params, batch, rngs, step, *, train: bool) -> LossResult:
        del rngs
        images, quantize = batch["image"], (step >= self.task.quantize_start) | (not train)
        reconstruction, intermediates = self._model.apply(
            {"params": params["tokenizer"]}, images, deterministic=not train, quantize=quantize
        )
        features = None
        if self._perceptual:
            features = functools.partial(self._perceptual.apply, {"params": params["perceptual"]})
        metrics = vq_loss(
            *(images, reconstruction, intermediates, step, self.task.loss),
            discriminator=self._discriminate if self._discriminator else None,
            discriminator_params=params.get("discriminator"),
            features=features,
        )
        return metrics, seen_codes(intermediates, quantize, self.task.tokenizer.reservoir_size)

    def after_update(
        self, params: Params, model_state: dict[str, Any], seen: dict[str, Any], rng: jax.Array
    ) -> tuple[Params, dict[str, Any]]:
        if self._leaves(_CODEBOOK):
            return params, model_state
        tokenizer, model_state, _ = update_codebook(
            params["tokenizer"], model_state, seen, rng, self.task.tokenizer
        )
        return {**params, "tokenizer": tokenizer}, model_state

    def loaded_state(self, model_state: dict[str, Any], loaded: Set[str]) -> dict[str, Any]:
        """Counts each code of a loaded codebook as used: the first batch must not replace any."""
        if _CODEBOOK not in loaded:
            return model_state
        return used_model_state(model_state)

    def batch_spec(self, batch_size: int) -> Spec:
        size = self.task.tokenizer.image_size
        return {"image": jax.ShapeDtypeStruct((batch_size, size, size, 3), jnp.float32)}

    def _discriminate(self, params: Params, image: jax.Array) -> jax.Array:
        return self._discriminator.apply({"params": params}, image)


class LanguageModelObjective(BaseObjective):
    """Next-token prediction on captions and prompts."""

    task_class = LanguageModelTask
    batches = "language_model"
    text_part = "language_model"

    def __init__(self, task: LanguageModelTask):
        super().__init__(task)
        self._model = LanguageModel(task.language_model)

    def init(self, key: jax.Array) -> dict[str, Any]:
        tokens = jnp.zeros((1, self.task.text_length), jnp.int32)
        variables = self._model.init(key, tokens, deterministic=True)
        return {"params": {"language_model": variables["params"]}}

    def loss(self, params, batch, rngs, step, *, train: bool) -> LossResult:
        del step
        logits_BTV = self._logits(params, rngs, train, shift_right(batch["text_tokens"]))
        return vlm_loss(logits_BTV, batch["text_tokens"], batch["loss_mask"]), {}

    def batch_spec(self, batch_size: int) -> Spec:
        return self._text_spec(batch_size, "loss_mask")


class ImageTokenObjective(BaseObjective):
    """Base of models of image tokens: a frozen tokenizer, which may run in the step."""

    def __init__(self, task: Any):
        super().__init__(task)
        self._tokenizer = VQTokenizer(task.tokenizer)

    def check_freeze(self, where: str) -> None:
        super().check_freeze(where)
        if not self.is_frozen("tokenizer"):
            raise UserError(
                f"{where}.freeze: found {self._freeze}, expected '^tokenizer/' too: pairs hold the "
                "tokenizer's ids, and no gradient passes through these"
            )

    def _init_tokenizer(self, key: jax.Array) -> Params:
        image = _blank_image(self.task.tokenizer)
        return self._tokenizer.init(key, image, deterministic=True)["params"]

    def _tokenize(self, method: str, params: Params, *arguments: jax.Array) -> jax.Array:
        return self._tokenizer.apply({"params": params["tokenizer"]}, *arguments, method=method)

    def _image_tokens(self, batch: Mapping[str, jax.Array], params: Params) -> jax.Array:
        """i32[..., N]: those of the batch, or made here of its images u8[..., H, W, 3]."""
        if "image" not in batch:
            return batch["image_tokens"]
        *rows, height, width, channels = batch["image"].shape
        images = batch["image"].reshape(-1, height, width, channels)
        return self._tokenize("encode", params, normalized(images)).reshape(*rows, -1)

    def _image_spec(self, *rows: int, from_images: bool) -> Spec:
        tokenizer = self.task.tokenizer
        if from_images:
            shape = (*rows, tokenizer.image_size, tokenizer.image_size, 3)
            return {"image": jax.ShapeDtypeStruct(shape, jnp.uint8)}
        return {"image_tokens": jax.ShapeDtypeStruct((*rows, tokenizer.num_tokens), jnp.int32)}


class GeneratorObjective(ImageTokenObjective):
    """Masked image tokens from the visible ones and the caption (Muse, section 2.3)."""

    task_class = GeneratorTask
    batches = "generator"
    text_part = "generator.text_encoder"
    part_paths = {"tokenizer": "tokenizer", "text_encoder": "generator/text_encoder"}
    same = {
        "generator.maskgit.codebook_size": "tokenizer.codebook_size",
        "generator.maskgit.num_tokens": "tokenizer.num_tokens",
    }

    def __init__(self, task: GeneratorTask):
        super().__init__(task)
        starts_new = task.freeze is None and not task.freeze_text_encoder
        if task.stored_text_features or starts_new:
            del self.parts["text_encoder"]
        self._model = Generator(task.generator)
        if self.is_frozen("text_encoder"):
            quiet = without_dropout(task.generator.text_encoder)
            self._model = Generator(dataclasses.replace(task.generator, text_encoder=quiet))

    def check_freeze(self, where: str) -> None:
        super().check_freeze(where)
        encoder = self.parts.get("text_encoder")
        if encoder and self.task.freeze_text_encoder and not self.is_frozen("text_encoder"):
            raise UserError(
                f"{where}.freeze: found {self._freeze}, expected '^{encoder.path}/' too with "
                f"{where}.freeze_text_encoder=True. Set that to False to train the text encoder"
            )

    def check_vocabulary(self, vocabulary: Vocabulary, where: str, given: Set[str]) -> None:
        is_pretrained = (
            self.task.stored_text_features
            or self.is_frozen("text_encoder")
            or "text_encoder" in given
        )
        check = vocabulary.check_table if is_pretrained else vocabulary.check_rows
        check(self._reader.vocab_size, f"{where}.{self.text_part}")

    def init(self, key: jax.Array) -> dict[str, Any]:
        keys = jax.random.split(key)
        tokenizer = self._init_tokenizer(keys[0])
        ids = jnp.zeros((1, self.task.tokenizer.num_tokens), jnp.int32)
        text = jnp.zeros((1, self.task.text_length), jnp.int32)
        features = self.batch_spec(1).get("text_features")
        features = features and jnp.zeros(features.shape, features.dtype)
        codebook_KC = self._tokenize("codes", {"tokenizer": nn.unbox(tokenizer)})
        inputs = (ids, text, text == 0, jnp.zeros(1, bool), codebook_KC, features)
        variables = self._model.init(keys[1], *inputs, deterministic=True)
        return {"params": {"generator": variables["params"], "tokenizer": tokenizer}}

    def loss(self, params, batch, rngs, step, *, train: bool) -> LossResult:
        del step
        task = self.task
        ids_BN = self._image_tokens(batch, params)
        masked_BN = sample_mask(rngs["mask"], *ids_BN.shape, task.mask_schedule)
        drop_B = jax.random.uniform(rngs["drop"], ids_BN.shape[:1]) < task.caption_dropout * train
        inputs_BN = jnp.where(masked_BN, task.generator.maskgit.mask_id, ids_BN)
        text = (batch["text_tokens"], batch["text_mask"], drop_B)
        codebook_KC = self._tokenize("codes", params)
        features = batch["text_features"] if task.stored_text_features else None
        logits_BNV = self._logits(params, rngs, train, inputs_BN, *text, codebook_KC, features)
        metrics = generator_loss(
            logits_BNV,
            ids_BN,
            masked_BN,
            label_smoothing=task.label_smoothing if train else 0.0,
            absent_code_weight=task.absent_code_weight if train else 1.0,
        )
        return metrics, {}

    def batch_spec(self, batch_size: int, *, from_images: bool = False) -> Spec:
        spec = self._image_spec(batch_size, from_images=from_images)
        spec |= self._text_spec(batch_size, "text_mask")
        if self.task.stored_text_features:
            width = self.task.generator.text_encoder.embed_dim
            shape = (batch_size, self.task.text_length, width)
            spec["text_features"] = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
        return spec


class VLMObjective(ImageTokenObjective):
    """Captions from image embeddings, by a frozen or a trained language model (Flamingo, 2.2)."""

    task_class = VLMTask
    batches = "vlm"
    text_part = "vlm.language_model"
    part_paths = {"tokenizer": "tokenizer", "language_model": "vlm/language_model"}
    same = {
        "vlm.image_embedding_dim": "tokenizer.embedding_dim",
        "vlm.num_image_tokens": "tokenizer.num_tokens",
    }

    def __init__(self, task: VLMTask):
        super().__init__(task)
        self._model = VLM(task.vlm)
        if self.is_frozen("language_model"):
            quiet = without_dropout(task.vlm.language_model)
            self._model = VLM(dataclasses.replace(task.vlm, language_model=quiet))

    def check_freeze(self, where: str) -> None:
        super().check_freeze(where)
        cfg, start = self.task.vlm, f"{self.part_paths['language_model']}/"
        frozen = self.is_frozen("language_model")
        if cfg.lora is not None:
            if not frozen:
                raise UserError(
                    f"{where}.vlm.lora: found adapters, expected none where {where}.freeze leaves "
                    f"the language model to train; '^{start}' freezes it"
                )
            inside = (path for path in self.boxed_shapes if path.startswith(start))
            cfg.lora.check_targets([p.removeprefix(start) for p in inside], f"{where}.vlm.lora")
        dtype = cfg.language_model.dtype
        if isinstance(cfg.language_model, GemmaConfig) and not frozen and dtype != "float32":
            raise UserError(
                f"{where}.vlm.language_model.dtype: found {dtype}, expected float32 to train a "
                "Gemma: its parameters have this dtype, and small steps are lost in it"
            )

    def init(self, key: jax.Array) -> dict[str, Any]:
        keys = jax.random.split(key)
        cfg = self.task.tokenizer
        embeddings = jnp.zeros((1, cfg.num_tokens, cfg.embedding_dim))
        text = jnp.zeros((1, self.task.text_length), jnp.int32)
        variables = self._model.init(keys[1], embeddings, text, deterministic=True)
        return {"params": {"vlm": variables["params"], "tokenizer": self._init_tokenizer(keys[0])}}

    def loss(self, params, batch, rngs, step, *, train: bool) -> LossResult:
        del step
        embeddings = self.image_embeddings(params, self._image_tokens(batch, params))
        text_BT, image_of_text_BT = batch["text_tokens"], batch.get("image_of_text")
        inputs = (embeddings, shift_right(text_BT), image_of_text_BT)
        logits_BTV = self._logits(params, rngs, train, *inputs)
        images = batch["is_synthetic"], image_of_text_BT
        return vlm_loss(logits_BTV, text_BT, batch["loss_mask"], *images), {}

    def image_embeddings(self, params: Params, image_tokens: jax.Array) -> jax.Array:
        """f32[..., N, C] of tokens [..., N]; the codebook is frozen: no gradient goes further."""
        image_tokens_BN = image_tokens.reshape(-1, image_tokens.shape[-1])
        if self.task.image_space == "pixel":
            pixels = self._tokenize("decode", params, image_tokens_BN)
            image_tokens_BN = self._tokenize("encode", params, jnp.clip(pixels, -1, 1))
        embeddings = self._tokenize("embed", params, image_tokens_BN)
        return embeddings.reshape(*image_tokens.shape, -1)

    def batch_spec(self, batch_size: int, *, from_images: bool = False) -> Spec:
        task, rows = self.task, (batch_size,)
        text = self._text_spec(batch_size, "loss_mask", task.row_length)
        if task.images_per_text > 1:
            rows, text["image_of_text"] = (*rows, task.images_per_text), text["text_tokens"]
        text["is_synthetic"] = jax.ShapeDtypeStruct(rows, jnp.bool_)
        return self._image_spec(*rows, from_images=from_images) | text


OBJECTIVES = {
    "tokenizer": TokenizerObjective,
    "language_model": LanguageModelObjective,
    "generator": GeneratorObjective,
    "vlm": VLMObjective,
}


def make_objective(model_name: str, section: Any, where: str = "--config") -> Objective:
    """Returns an objective, built from the section `WHERE.model` by its `task_class`.

    `model_name` is a key of OBJECTIVES; or MODULE:CLASS or FILE.py:CLASS, a BaseObjective of yours.

    Raises:
      UserError: an unknown name, or a section that does not fit it.
    """
    objective = objective_class(model_name, where)
    task = config_lib.build(objective.task_class, section, f"{where}.model")
    for key, other in objective.same.items():
        found, expected = operator.attrgetter(key, other)(task)
        if found != expected:
            raise UserError(
                f"{where}.model.{key}: found {found}, expected {expected} as in "
                f"{where}.model.{other}; leave it out to take that"
            )
    made = objective(task)
    made.check_freeze(f"{where}.model")
    return made


def objective_class(model_name: str, where: str = "--config") -> type[BaseObjective]:
    """Returns the class of that name; UserError as `make_objective`."""
    if ":" not in model_name:
        if model_name not in OBJECTIVES:
            near = nearest(model_name, OBJECTIVES)
            raise UserError(f"{where}.model_name: {model_name!r} unknown; {near}")
        return OBJECTIVES[model_name]
    found = load_named(model_name, f"{where}.model_name")
    if not (isinstance(found, type) and issubclass(found, BaseObjective)):
        raise UserError(f"{where}.model_name: {model_name} is no subclass of BaseObjective")
    return found


def _blank_image(config: VQTokenizerConfig) -> jax.Array:
    return jnp.zeros((1, config.image_size, config.image_size, 3))
