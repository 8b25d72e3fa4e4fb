"""What is frozen, adapted and trained: patterns, optimizer state, dropout, and a line about it."""

import contextlib
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synth2_jax.data.fake_batches import FakeBatches
from synth2_jax.errors import UserError
from synth2_jax.layers.lora import is_adapter
from synth2_jax.models.gemma import RELEASED
from synth2_jax.testing.toy_objective import one_device_mesh
from synth2_jax.testing.untrained_runs import MODELS
from synth2_jax.text.vocabulary import MAX_SPARE_ROWS, load_vocabulary
from synth2_jax.training import train_state
from synth2_jax.training.objectives import make_objective
from synth2_jax.training.optimizer import GroupConfig, OptimizerConfig, make_optimizer
from synth2_jax.training.train_step import RNG_STREAMS, make_train_step
from synth2_jax.training.what_is_trained import short, what_is_trained

TOKENIZER, ENCODER = "^tokenizer/", "^generator/text_encoder/"
LORA = {"vlm": {**MODELS["vlm"]["vlm"], "lora": {"rank": 2}}}
PERCEPTUAL = {
    "loss": {"perceptual_weight": 0.1},
    "perceptual": {"widths": (4,), "convs": (1,)},
}
# model, changes of its section, what of it is trained by the start of its paths
CASES = {
    "vlm": ("vlm", {}, ("vlm/resampler", "vlm/cross_attention")),
    "lora": ("vlm", LORA, ("vlm/resampler", "vlm/cross_attention", "lora")),
    "lora typed": (
        "vlm",
        {**LORA, "freeze": (TOKENIZER, "^vlm/language_model/", "^vlm/resampler/")},
        ("vlm/cross_attention", "lora"),
    ),
    "whole": ("vlm", {"freeze": (TOKENIZER,)}, ("vlm/",)),
    "resampler": (
        "vlm",
        {"freeze": (TOKENIZER, "^vlm/(language_model|cross_attention)/")},
        ("vlm/resampler",),
    ),
    "generator": ("generator", {}, ("generator/",)),
    "frozen encoder": ("generator", {"freeze_text_encoder": True}, ("generator/maskgit",)),
    "pattern": ("generator", {"freeze": (TOKENIZER, ENCODER)}, ("generator/maskgit",)),
    "both": (
        "generator",
        {"freeze": (TOKENIZER, ENCODER), "freeze_text_encoder": True},
        ("generator/maskgit",),
    ),
    "pretrained encoder": ("generator", {"freeze": (TOKENIZER,)}, ("generator/",)),
    "language model": ("language_model", {"freeze": ()}, ("language_model/",)),
    "codebook": (
        "tokenizer",
        {"freeze": ("^tokenizer/quantizer/",)},
        ("tokenizer/encoder", "tokenizer/decoder"),
    ),
    "perceptual": ("tokenizer", {**PERCEPTUAL, "freeze": ()}, ("tokenizer/",)),
    "perceptual, encoder": (
        "tokenizer",
        {**PERCEPTUAL, "freeze": ("^tokenizer/encoder/",)},
        ("tokenizer/quantizer", "tokenizer/decoder"),
    ),
}


@functools.cache
def made(name):
    model, changes, _ = CASES[name]
    return make_objective(model, {**MODELS[model], **changes})


def expected(name, paths):
    starts = CASES[name][2]
    return {p for p in paths if p.startswith(starts) or ("lora" in starts and is_adapter(p))}


def moments(layout):
    """The paths with a moment of Adam: of one network or of several."""
    adam = layout.opt_state[1]
    return set().union(*(one.mu for one in (adam.values() if isinstance(adam, dict) else [adam])))


@pytest.mark.parametrize("name", CASES)
def test_what_is_trained_has_optimizer_state_and_nothing_else_has(name):
    objective = made(name)
    tx = make_optimizer(OptimizerConfig())
    layout = train_state.state_layout(objective, tx, one_device_mesh())
    paths = train_state.flatten(layout.params)
    assert moments(layout) == expected(name, paths)


def test_a_part_is_frozen_only_if_all_of_it_is():
    parts = {name: made(name).parts.keys() for name in CASES}
    assert parts["generator"] == {"tokenizer"}
    assert parts["pretrained encoder"] == parts["pattern"] == {"tokenizer", "text_encoder"}
    frozen = {
        name: {part for part in made(name).parts if made(name).is_frozen(part)} for name in CASES
    }
    for name in ("vlm", "lora", "lora typed", "resampler"):
        assert frozen[name] == {"tokenizer", "language_model"}
    assert frozen["whole"] == frozen["pretrained encoder"] == {"tokenizer"}
    assert frozen["perceptual"] == frozen["perceptual, encoder"] == {"perceptual"}
    assert frozen["pattern"] == frozen["both"] == {"tokenizer", "text_encoder"}
    some = (TOKENIZER, "^vlm/language_model/(?!decoder)")
    assert not make_objective("vlm", {**MODELS["vlm"], "freeze": some}).is_frozen("language_model")


@pytest.mark.parametrize(
    "changes, pretrained, is_new",
    [
        ({}, (), True),
        ({"freeze": (TOKENIZER,)}, ("tokenizer",), True),
        ({"freeze": (TOKENIZER,)}, ("text_encoder",), False),
        ({"freeze": (TOKENIZER, ENCODER)}, (), False),
        ({"freeze_text_encoder": True}, (), False),
        ({"freeze_text_encoder": True, "stored_text_features": True}, (), False),
    ],
)
def test_a_new_text_encoder_may_have_rows_to_spare(changes, pretrained, is_new):
    vocabulary, parts = load_vocabulary("scenes"), MODELS["generator"]["generator"]
    text_encoder = {**parts["text_encoder"], "vocab_size": vocabulary.size + MAX_SPARE_ROWS + 1}
    changes = {**changes, "generator": {**parts, "text_encoder": text_encoder}}
    objective = make_objective("generator", {**MODELS["generator"], **changes})
    refused = pytest.raises(UserError, match="expected the vocabulary that it was trained with")
    with contextlib.nullcontext() if is_new else refused:
        objective.check_vocabulary(vocabulary, "--config.model", {*pretrained})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vlm", "lora", "whole", "resampler", "codebook", "perceptual"])
def test_steps_change_what_is_trained_and_no_bit_of_the_rest(name):
    objective = made(name)
    tx = make_optimizer(OptimizerConfig(learning_rate=0.1, weight_decay=0.1, weight_decay_skip=()))
    layout = train_state.state_layout(objective, tx, one_device_mesh())
    state = train_state.create_train_state(objective, tx, layout, seed=0)
    flat = train_state.flatten(state.params)
    # As in a VLM that was trained: behind gates at 0 the resampler gets no gradient.
    flat |= {path: leaf + 0.5 for path, leaf in flat.items() if path.endswith("_gate")}
    state = state.replace(params=train_state.unflatten(flat))
    before = {path: np.asarray(leaf) for path, leaf in flat.items()}
    batch = next(FakeBatches(objective.batch_spec(4)))
    step = jax.jit(make_train_step(objective, tx))
    for _ in range(3):
        state, _ = step(state, batch)
    after = train_state.flatten(state.params)
    moved = {path for path, leaf in before.items() if (leaf != after[path]).any()}
    assert moved == expected(name, before)


@pytest.mark.slow
def test_a_trained_language_model_has_dropout_and_a_frozen_one_has_none():
    section = MODELS["vlm"]["vlm"]
    language_model = {**section["language_model"], "dropout_rate": 0.5}
    changes = {"vlm": {**section, "language_model": language_model}}
    rng = np.random.default_rng(0)

    def losses(freeze):
        """By two dropout keys."""
        objective = make_objective("vlm", {**MODELS["vlm"], **changes, "freeze": freeze})
        shapes = nn.unbox(jax.eval_shape(objective.init, jax.random.key(0)))["params"]
        params = jax.tree.map(lambda leaf: np.float32(rng.normal(size=leaf.shape)), shapes)
        batch = next(FakeBatches(objective.batch_spec(2)))
        loss = jax.jit(functools.partial(objective.loss, train=True))
        keys = ({name: jax.random.key(seed) for name in RNG_STREAMS} for seed in (0, 1))
        return [float(loss(params, batch, rngs, 0)[0]["loss"][0]) for rngs in keys]

    frozen, whole = losses(None), losses((TOKENIZER,))
    assert frozen[0] == frozen[1] and whole[0] != whole[1]


def gemma():
    language_model = {**RELEASED["270m"].__dict__, "num_layers": 1}
    return {"vlm": {**MODELS["vlm"]["vlm"], "language_model": language_model}}


@pytest.mark.parametrize(
    "model, changes, message",
    [
        ("vlm", {"freeze": ("(",)}, "freeze: '(' is not a regular expression (missing ), un"),
        ("vlm", {"freeze": ("^tok/",)}, "freeze: '^tok/' matches no parameter, such as ['tok"),
        ("vlm", {"freeze": (".",)}, "freeze: ['.'] leave none of "),
        ("vlm", {"freeze": ()}, "freeze: found (), expected '^tokenizer/' too: pairs hold the"),
        ("generator", {"freeze": ("codebook",)}, "freeze: found ('codebook',), expected '^tok"),
        (
            "generator",
            {"freeze": (TOKENIZER,), "freeze_text_encoder": True},
            "freeze: found ('^tokenizer/',), expected '^generator/text_encoder/' too with "
            "--config.model.freeze_text_encoder=True. Set that to False to train the text encoder",
        ),
        ("vlm", {**LORA, "freeze": (TOKENIZER,)}, "vlm.lora: found adapters, expected none whe"),
        (
            "vlm",
            {"vlm": {**LORA["vlm"], "lora": {"targets": ("query", "valeu")}}},
            "vlm.lora.targets: 'valeu' matches no matrix of a linear layer; ",
        ),
        pytest.param(
            "vlm",
            {**gemma(), "freeze": (TOKENIZER,)},
            "vlm.language_model.dtype: found bfloat16, expected float32 to train a Gemma",
            marks=[pytest.mark.interop, pytest.mark.slow],
        ),
    ],
)
def test_mistakes_in_the_config(model, changes, message):
    with pytest.raises(UserError) as error:
        make_objective(model, {**MODELS[model], **changes})
    assert str(error.value).startswith(f"--config.model.{message}")


def test_one_line_says_what_is_trained():
    leaf = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)  # noqa: E731
    params = {
        "vlm": {
            "language_model": {"kernel": leaf(1000, 1000), "kernel_lora_a": leaf(1000, 8)},
            "resampler": {"kernel": leaf(100, 100), "scale": leaf(100)},
        },
        "tokenizer": {"codebook": leaf(5, 10)},
    }
    config = OptimizerConfig(groups=(GroupConfig("_lora_", 2.0), GroupConfig("scale", 0.5)))
    frozen = (TOKENIZER, "^vlm/language_model/")
    trained, _ = train_state.split_params(params, frozen)
    groups = make_optimizer(config).groups(trained)
    assert what_is_trained(params, frozen, groups) == (
        "training 18.1K of 1.02M parameters: vlm/resampler 10.1K, vlm/language_model (LoRA) 8K; "
        "group '_lora_' at 2 x the rate: 8K; group 'scale' at 0.5 x the rate: 100"
    )
    assert [short(n) for n in (999, 1_234_567, 4_500_000_000)] == ["999", "1.23M", "4.5B"]
