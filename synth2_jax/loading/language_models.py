"""Language models that write captions, by their path: a run, an export, or a Gemma of others."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from synth2_jax import config as config_lib
from synth2_jax.data.pipeline import DataConfig
from synth2_jax.errors import UserError
from synth2_jax.fingerprint import fingerprint
from synth2_jax.loading.trained import load_trained, others_reader
from synth2_jax.models.gemma import GemmaConfig
from synth2_jax.models.language_model import LanguageModelConfig
from synth2_jax.text.vocabulary import Vocabulary, load_vocabulary
from synth2_jax.training.train_state import Params


@dataclasses.dataclass(frozen=True)
class LoadedLanguageModel:
    """A language model; `mixture` is its training data, "" if unknown."""

    config: LanguageModelConfig | GemmaConfig
    params: Params
    vocabulary: Vocabulary
    provenance: Mapping[str, Any]
    mixture: str = ""


def load_language_model(path: str, vocabulary: str) -> LoadedLanguageModel:
    """Loads a language model; `vocabulary` is the path of a Gemma's, "" for a run or an export.

    Raises:
      UserError: as `load_trained`; or a vocabulary that is missing or one too many.
    """
    reader = others_reader(path, "language_model") if path else None
    if reader is None:
        trained = load_trained(path, "language_model")
        if vocabulary:
            raise UserError(
                f"--config.vocabulary: found {vocabulary!r}, but {path} has its own. Remove the "
                "key."
            )
        data = config_lib.build(DataConfig, trained.config["data"])
        return LoadedLanguageModel(
            trained.objective.task.language_model,
            trained.params["language_model"],
            load_vocabulary(data.vocabulary),
            trained.provenance("language_model"),
            data.mixture,
        )
    if not vocabulary:
        raise UserError(f"--config.vocabulary: empty. Give the SentencePiece model of {path}.")
    config = reader.language_model_config(path)
    params = jax.tree.map(np.asarray, reader.load_language_model(path, config))
    provenance = {"checkpoint": pathlib.Path(path).name, "fingerprint": fingerprint(params)}
    return LoadedLanguageModel(config, params, load_vocabulary(vocabulary), provenance)
