"""The pretrained parts that a model is built on: from paths to places among its parameters."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from jax.sharding import Mesh

from synth2_jax import sharding
from synth2_jax.errors import UserError, naming
from synth2_jax.fingerprint import fingerprint, with_settings
from synth2_jax.interop.tensor_files import open_safetensors
from synth2_jax.loading.text_encoders import load_text_encoder
from synth2_jax.loading.trained import load_part
from synth2_jax.models import vgg
from synth2_jax.training.train_state import Objective, Params, Part

# What each key of PretrainedConfig may name.
SOURCES: Mapping[str, str] = {
    "tokenizer": "a trained tokenizer or a third-party VQ-GAN",
    "text_encoder": "a T5, or a trained generator for its text encoder",
    "language_model": "a trained language_model or a Gemma",
    "perceptual": "a .safetensors file of torchvision's vgg16",
}


@dataclasses.dataclass(frozen=True)
class PretrainedConfig:
    """Paths of the pretrained parts; "" for no such part.

    Training leaves them as they are, or starts from them (`config.model.freeze`).

    Attributes:
      tokenizer: workdir or export of a trained tokenizer; or a third-party VQ-GAN (see
        docs/other_models.md). "taming:", "ibq:" or "open_muse:" in front of the path says whose it
        is where its files do not.
      text_encoder: of a generator: a T5 of t5x or Hugging Face; or a trained generator, for its
        text encoder. With stored features it says where to find what made them, for later stages.
      language_model: workdir or export of a trained language model; a Gemma 3 of the package gemma
        or Hugging Face.
      perceptual: .safetensors file of torchvision's vgg16 (`VGG16_Weights.IMAGENET1K_V1`), for a
        tokenizer with a perceptual loss.
    """

    tokenizer: str = ""
    text_encoder: str = ""
    language_model: str = ""
    perceptual: str = ""


def load_pretrained(
    config: PretrainedConfig,
    objective: Objective,
    mesh: Mesh,
    rules: sharding.AxisRules,
    *,
    may_be_random: bool = False,
    held: Mapping[str, str] = MappingProxyType({}),
) -> tuple[dict[str, Params], dict[str, str]]:
    """Loads the parts that an objective is built on, from their paths.

    With `may_be_random` a part without a path is left out, to start from random numbers: speed and
    sharding do not depend on what the frozen parameters are. So is a part that is trained. `held`
    are the fingerprints of parts that `init.from` gives: they need no path, and a path to another
    part is refused.

    Returns:
      The parts by their paths in the parameter tree, and by name the fingerprints of those that are
      frozen (`built_on`).

    Raises:
      UserError: a path for a part that the model has not; none for one that is frozen; a part that
        does not fit.
    """
    # With stored features the model has no text encoder, but later stages want to know its path.
    named = {"text_encoder"} if getattr(objective.task, "stored_text_features", False) else set()
    for name in SOURCES:
        source = getattr(config, name)
        if source and name not in objective.parts and name not in named:
            raise UserError(
                f"--config.pretrained.{name}: found {source!r}, expected nothing: this "
                f"{objective.batches} has no such part"
            )
    params, built_on = {}, {}
    for name, part in objective.parts.items():
        source = getattr(config, name)
        if source:
            with naming(f"--config.pretrained.{name}", source):
                params[part.path] = _load(name, part, source, objective, mesh, rules)
            digest = with_settings(name, fingerprint(params[part.path]), part.config)
            if held.get(name, digest) != digest:
                raise UserError(
                    f"--config.pretrained.{name}: found fingerprint {digest} in {source}, expected "
                    f"{held[name]} as in --config.init.from. Leave it out to take that part, or "
                    f"replace the part by --config.init.exclude=^{part.path}/"
                )
            if objective.is_frozen(name):  # else it is the run's own from the first step on
                built_on[name] = digest
        elif name in held:
            built_on |= {name: held[name]} if objective.is_frozen(name) else {}
        elif objective.is_frozen(name) and not may_be_random:
            raise UserError(f"--config.pretrained.{name}: empty, expected {SOURCES[name]}")
    return params, built_on


def _load(
    name: str, part: Part, source: str, objective: Objective, mesh: Mesh, rules: sharding.AxisRules
) -> Params:
    if name == "perceptual":
        features = {
            name: np.asarray(tensor)
            for name, tensor in open_safetensors(source).items()
            if name.startswith("features.")
        }
        return vgg.from_torchvision(features, part.config, source)
    if name == "text_encoder":
        where = "--config.pretrained.text_encoder"
        return load_text_encoder(source, part.config, mesh=mesh, rules=rules, where=where).params
    return load_part(source, name, part.config, objective, part.path, mesh=mesh, rules=rules)
