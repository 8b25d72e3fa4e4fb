"""The section `config.model` of each model.

Legend: T text tokens of a caption, I images a text.
"""

import dataclasses
from typing import Literal

from synth2_jax import config as config_lib
from synth2_jax.errors import nearest
from synth2_jax.losses.vq_loss import VQLossConfig
from synth2_jax.models.discriminator import DiscriminatorConfig
from synth2_jax.models.language_model import LanguageModelConfig
from synth2_jax.models.mask_schedule import SCHEDULES
from synth2_jax.models.maskgit import GeneratorConfig
from synth2_jax.models.vgg import VGGConfig
from synth2_jax.models.vlm import VLMConfig
from synth2_jax.models.vq_tokenizer import VQTokenizerConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """Keys that config.model of every model has; the task of a model of yours inherits them.

    Attributes:
      freeze: regular expressions; training leaves each parameter as it is that has one of them in
        its path, such as ("^tokenizer/", "^vlm/resampler/"). None freezes the pretrained parts, ()
        nothing. A part that is frozen whole has no dropout; one that is not may still start from
        `pretrained`. The perceptual network of a tokenizer is always frozen.
    """

    freeze: tuple[str, ...] | None = None

    def __post_init__(self):
        config_lib.check_patterns(self, "freeze")


@dataclasses.dataclass(frozen=True)
class TokenizerTask(Task):
    """config.model of a tokenizer.

    Attributes:
      tokenizer: what is trained.
      loss: weights of its losses.
      discriminator: where `loss.adversarial_weight` is above 0, and only there.
      perceptual: the network whose features the perceptual loss compares; where
        `loss.perceptual_weight` is above 0, and only there.
      quantize_start: the first step that quantizes; before it an autoencoder is trained, whose
        outputs then give the first codes.
    """

    tokenizer: VQTokenizerConfig
    loss: VQLossConfig = VQLossConfig()
    discriminator: DiscriminatorConfig | None = None
    perceptual: VGGConfig | None = None
    quantize_start: int = 0

    def __post_init__(self):
        super().__post_init__()
        parts = {"discriminator": "adversarial_weight", "perceptual": "perceptual_weight"}
        for part, name in parts.items():
            weight, is_given = getattr(self.loss, name), getattr(self, part) is not None
            if weight and not is_given:
                raise ValueError(f"loss.{name}: found {weight}, expected 0 without `{part}`")
            if is_given and not weight:
                raise ValueError(f"{part}: found a section, expected none with `loss.{name}`=0")


@dataclasses.dataclass(frozen=True)
class LanguageModelTask(Task):
    """config.model of a language model.

    Attributes:
      language_model: what is trained.
      text_length: T.
    """

    language_model: LanguageModelConfig
    text_length: int

    def __post_init__(self):
        super().__post_init__()
        config_lib.check_counts(self, "text_length")


@dataclasses.dataclass(frozen=True)
class GeneratorTask(Task):
    """config.model of a generator.

    Attributes:
      tokenizer: of the image tokens; frozen.
      generator: the caption encoder and the image transformer.
      text_length: T.
      freeze_text_encoder: whether the caption encoder is a pretrained one that stays as it is
        (Muse: T5-XXL); else it is trained with the rest. If `freeze` is given, it must select it.
      stored_text_features: whether the pairs hold what the frozen caption encoder makes of their
        captions, so that neither the step nor the checkpoints hold the encoder.
      mask_schedule: see models/mask_schedule.py.
      caption_dropout: share of captions replaced by the null caption, for guidance (Muse: 0.1).
      label_smoothing: MaskGIT: 0.1.
      absent_code_weight: see losses/generator_loss.py; 1 is MaskGIT's loss.
    """

    tokenizer: VQTokenizerConfig
    generator: GeneratorConfig
    text_length: int
    freeze_text_encoder: bool = False
    stored_text_features: bool = False
    mask_schedule: str = "cosine"
    caption_dropout: float = 0.1
    label_smoothing: float = 0.1
    absent_code_weight: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        config_lib.check_counts(self, "text_length")
        if self.mask_schedule not in SCHEDULES:
            near = nearest(self.mask_schedule, SCHEDULES)
            raise ValueError(f"mask_schedule: unknown {self.mask_schedule!r}; {near}")
        if not 0 <= self.absent_code_weight <= 1:
            raise ValueError(
                f"absent_code_weight: found {self.absent_code_weight}, expected 0 to 1"
            )
        if self.stored_text_features and not self.freeze_text_encoder:
            raise ValueError(
                "stored_text_features: found True, expected False without `freeze_text_encoder`: "
                "what is stored stays as it is"
            )


@dataclasses.dataclass(frozen=True)
class VLMTask(Task):
    """config.model of a VLM.

    Attributes:
      tokenizer: of the image tokens; frozen.
      vlm: the language model (frozen by default), resampler and gated cross-attention.
      text_length: T.
      images_per_text: I, as `data.images_per_text`.
      image_space: "embedding" looks codebook vectors up; "pixel" decodes the tokens to pixels and
        encodes these again first, which is what a generator that renders its images costs.
    """

    tokenizer: VQTokenizerConfig
    vlm: VLMConfig
    text_length: int
    images_per_text: int = 1
    image_space: Literal["embedding", "pixel"] = "embedding"

    def __post_init__(self):
        super().__post_init__()
        config_lib.check_counts(self, "text_length", "images_per_text")

    @property
    def row_length(self) -> int:
        """Text tokens of a row: its captions, and a start token between them."""
        return self.images_per_text * (self.text_length + 1) - 1
