"""Frozen text encoders by the folder they lie in: to encode captions, and beside a generator.

A generator that is trained on stored features (`GeneratorTask.stored_text_features`) holds no text
encoder. Whoever gives it new captions completes it here, by the encoder that made the features.
"""

import dataclasses
import functools
import os

import jax
from jax.sharding import Mesh

from synth2_jax import config as config_lib
from synth2_jax import sharding
from synth2_jax.data.pipeline import DataConfig
from synth2_jax.errors import UserError
from synth2_jax.fingerprint import fingerprint
from synth2_jax.interop import t5x
from synth2_jax.layers.dropout import RATES
from synth2_jax.loading.run import Trained
from synth2_jax.loading.trained import load_trained, others_reader
from synth2_jax.models.text_encoder import TextEncoder, TextEncoderConfig
from synth2_jax.training import train_state
from synth2_jax.training.train_state import Params

_OF_TRAINING = (*RATES, "remat")  # what makes no other encoder


@dataclasses.dataclass(frozen=True)
class LoadedTextEncoder:
    """A text encoder; what its folder does not say is "" or None."""

    config: TextEncoderConfig
    params: Params  # numpy arrays, or parts of them on a mesh
    vocabulary: str = ""  # that it was trained with, as in data.vocabulary
    text_length: int | None = None  # tokens of a caption that it was trained with


def load_text_encoder(
    path: str | os.PathLike[str],
    config: TextEncoderConfig | None = None,
    *,
    mesh: Mesh | None = None,
    rules: sharding.AxisRules = sharding.AXIS_RULES,
    where: str = "--config.text_encoder",
) -> LoadedTextEncoder:
    """Loads the text encoder of a generator's run or export, or a third-party T5.

    Args:
      path: where it is, see `loading.trained.OTHERS`.
      config: what the encoder must be, up to dropout and remat; None takes what it is. A t5x
        checkpoint does not say that, and no T5 says the dtype of its activations.
      mesh: where to put it; without a mesh it is read as numpy arrays.
      where: what asks for it, for the message.

    Raises:
      UserError: nothing there that has a text encoder, or another one than `config`.
    """
    if path and (reader := others_reader(str(path), "text_encoder")):
        if config is None and reader is t5x:
            raise UserError(
                f"{where}: {path} is a t5x checkpoint, which does not say its sizes; expected them "
                "in the config, as in configs/paper/encode_captions.py"
            )
        config = config or reader.text_encoder_config(path)
        return LoadedTextEncoder(
            config, _placed(reader.load_text_encoder(path, config), config, mesh, rules)
        )
    trained = load_trained(path, "generator", mesh=mesh, rules=rules)
    task = trained.objective.task
    if task.stored_text_features:
        raise UserError(
            f"{where}: the generator in {path} reads stored features and has no text encoder, "
            f"expected text encoder {trained.built_on.get('text_encoder')}, which made them"
        )
    found = task.generator.text_encoder
    for field in dataclasses.fields(TextEncoderConfig) if config else ():
        values = getattr(found, field.name), getattr(config, field.name)
        if field.name not in _OF_TRAINING and values[0] != values[1]:
            raise UserError(
                f"{where}: {path} has a text encoder of {field.name} {values[0]!r}, expected "
                f"{values[1]!r}"
            )
    data = config_lib.build(DataConfig, trained.config["data"])
    params = trained.params["generator"]["text_encoder"]
    return LoadedTextEncoder(found, params, data.vocabulary, task.text_length)


def _placed(
    tree: Params, config: TextEncoderConfig, mesh: Mesh | None, rules: sharding.AxisRules
) -> Params:
    """Reads what was not read yet, in the model's dtypes: by what each device holds, or whole."""
    tokens_BT, mask_BT = (jax.ShapeDtypeStruct((1, 1), dtype) for dtype in ("int32", "bool"))
    init = functools.partial(TextEncoder(config).init, deterministic=True)
    boxed = jax.eval_shape(init, jax.random.key(0), tokens_BT, mask_BT)["params"]
    return jax.tree.map(train_state.place, tree, train_state.with_shardings(boxed, mesh, rules))


def with_text_encoder(
    trained: Trained,
    path: str | os.PathLike[str] = "",
    *,
    mesh: Mesh | None = None,
    rules: sharding.AxisRules = sharding.AXIS_RULES,
    where: str = "--config.text_encoder",
) -> Trained:
    """Returns a generator with its text encoder among its parameters, ready for captions.

    Its checkpoint's fingerprint is still that of `trained`: ask for it there.

    Args:
      trained: a generator; one that holds its text encoder is returned as it is.
      path: of the encoder, as in `load_text_encoder`; "" for what the generator's training config
        names in `pretrained.text_encoder`.
      where: what the path was given by, for the message.

    Raises:
      UserError: no path; a path where none is needed; or another text encoder than the one that
        made the features the generator was trained on.
    """
    task = trained.objective.task
    if not task.stored_text_features:
        if path:
            raise UserError(
                f"{where}: found {str(path)!r}, expected nothing: the generator in {trained.path} "
                "holds its text encoder"
            )
        return trained
    expected = trained.built_on.get("text_encoder")
    path = path or (trained.config.get("pretrained") or {}).get("text_encoder", "")
    if not path:
        raise UserError(
            f"{where}: empty, expected the folder of text encoder {expected}: the generator in "
            f"{trained.path} reads stored features and holds none"
        )
    encoder = load_text_encoder(
        path, task.generator.text_encoder, mesh=mesh, rules=rules, where=where
    )
    found = fingerprint(encoder.params)
    if expected not in (None, found):  # None: it was trained on fake data
        raise UserError(
            f"{where}: {path} is text encoder {found}, expected {expected}, whose features the "
            f"generator in {trained.path} was trained on"
        )
    generator = {**trained.params["generator"], "text_encoder": encoder.params}
    return dataclasses.replace(trained, params={**trained.params, "generator": generator})
