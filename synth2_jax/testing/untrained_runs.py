"""Workdirs as a training leaves them, of tiny models with random parameters, in a second or two."""

import os
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from synth2_jax.training.checkpoints import Checkpoints
from synth2_jax.training.objectives import make_objective
from synth2_jax.training.train_state import TrainState, flatten, split_params, unflatten

STEP = 3
_WIDTH = {
    **{"num_layers": 1, "embed_dim": 16, "num_heads": 2, "head_dim": 8, "mlp_dim": 16},
    "scan_layers": False,
}
_TEXT = {**_WIDTH, "vocab_size": 512}  # of the vocabulary "scenes"
_TOKENIZER = {
    **{"image_size": 16, "patch_size": 8, "filters": 8, "channel_multipliers": (1,)},
    **{"num_res_blocks": 1, "kernel_size": 1, "embedding_dim": 4, "codebook_size": 64},
    "norm_groups": 2,
}
_NUM_TOKENS = 4
MODELS: Mapping[str, Mapping[str, Any]] = {
    "tokenizer": {"tokenizer": _TOKENIZER},
    "language_model": {"language_model": _TEXT, "text_length": 12},
    "generator": {
        "tokenizer": _TOKENIZER,
        "generator": {
            "text_encoder": _TEXT,
            "maskgit": {**_WIDTH, "codebook_size": 64, "num_tokens": _NUM_TOKENS},
        },
        "text_length": 12,
    },
    "vlm": {
        "tokenizer": _TOKENIZER,
        "vlm": {
            "language_model": _TEXT,
            "resampler": {**_WIDTH, "num_latents": 2},
            "image_embedding_dim": 4,
            "num_image_tokens": _NUM_TOKENS,
        },
        "text_length": 12,
    },
}


class _NoData:
    def get_state(self) -> bytes:
        return b""


def write_untrained_run(
    workdir: str | os.PathLike[str],
    model_name: str,
    seed: int = 0,
    config: Mapping[str, Any] | None = None,
    with_average: bool = False,
) -> None:
    """Writes a workdir whose one checkpoint, of step STEP, holds random parameters.

    Gates that start at 0 are drawn too, so that every part of the model has a say in its output.

    Args:
      workdir: of the run.
      model_name: a key of MODELS.
      seed: of the parameters.
      config: sections that take the place of the run's own.
      with_average: whether the checkpoint has a moving average: half of each trainable parameter.
    """
    model = (config or {}).get("model", MODELS[model_name])
    objective = make_objective(model_name, model)
    rng = np.random.default_rng(seed)

    def drawn(path: str, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        mean = float(path.endswith("scale"))  # of a norm
        return rng.normal(mean, 0.5, leaf.shape).astype(leaf.dtype)

    # Shapes alone: to compile an init would take longer than all else.
    variables = dict(nn.unbox(jax.eval_shape(objective.init, jax.random.key(0))))
    params = {path: drawn(path, leaf) for path, leaf in flatten(variables.pop("params")).items()}
    model_state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), variables)
    resolved = {
        "model_name": model_name,
        "model": model,
        "data": {"source": "fake", "prompt": "Output:", "text_length": 12},
        "train": {"steps": STEP},
        **(config or {}),
    }
    trainable, _ = split_params(unflatten(params), objective.frozen)
    halves = unflatten({path: leaf / 2 for path, leaf in trainable.items()})
    state = TrainState(
        np.int32(STEP),
        unflatten(params),
        (),
        model_state,
        jax.random.key_data(jax.random.key(seed)),
        halves if with_average else {},
    )
    built_on = {name: "0" * 16 for name in objective.parts if objective.is_frozen(name)}
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save(jax.device_put(state), _NoData(), resolved, built_on)
