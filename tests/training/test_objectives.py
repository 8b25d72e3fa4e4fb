"""The four objectives: finite losses, gradients exactly where training is, and what losses see.

Legend: B batch, N image tokens, K codebook size.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synth2_jax.data.fake_batches import FakeBatches
from synth2_jax.data.packing import pack
from synth2_jax.errors import UserError
from synth2_jax.models.text_encoder import TextEncoder
from synth2_jax.testing.toy_objective import one_device_mesh
from synth2_jax.training import train_state
from synth2_jax.training.metrics import mean
from synth2_jax.training.objectives import OBJECTIVES, make_objective
from synth2_jax.training.optimizer import OptimizerConfig, make_optimizer
from synth2_jax.training.train_step import RNG_STREAMS, make_train_step

B, K = 4, 16
WIDTH = {
    **{"num_layers": 1, "embed_dim": 16, "num_heads": 2, "head_dim": 8, "mlp_dim": 16},
    "scan_layers": False,  # compiles faster
}
TOKENIZER = {
    **{"image_size": 8, "patch_size": 4, "filters": 8, "channel_multipliers": (1,)},
    **{"num_res_blocks": 1, "kernel_size": 1, "embedding_dim": 4, "codebook_size": K},
    **{"norm_groups": 2, "reservoir_size": 32},
}
LANGUAGE_MODEL = {"vocab_size": 16, **WIDTH}
MASKGIT = {"codebook_size": K, "num_tokens": 4, "token_embedding": "codebook", **WIDTH}
VLM = {
    **{"language_model": LANGUAGE_MODEL, "resampler": {"num_latents": 2, **WIDTH}},
    **{"image_embedding_dim": 4, "num_image_tokens": 4},
}
SECTIONS = {
    "tokenizer": {"tokenizer": TOKENIZER},
    "language_model": {"language_model": LANGUAGE_MODEL, "text_length": 6},
    "generator": {
        "tokenizer": TOKENIZER,
        "generator": {"text_encoder": LANGUAGE_MODEL, "maskgit": MASKGIT},
        "text_length": 6,
        "caption_dropout": 0.5,
    },
    "vlm": {"tokenizer": TOKENIZER, "vlm": VLM, "text_length": 6},
}
ADVERSARIAL = {
    "tokenizer": TOKENIZER,
    "loss": {"adversarial_weight": 0.1, "r1_weight": 1.0},
    "discriminator": {"image_size": 8, "filters": 4, "channel_multipliers": (1,)},
}
PERCEPTUAL = {
    "tokenizer": TOKENIZER,
    "loss": {"perceptual_weight": 0.1},
    "perceptual": {"widths": (4, 6), "convs": (2, 1)},
}
TOKENIZERS = {"adversarial": ADVERSARIAL, "perceptual": PERCEPTUAL}
RNGS = {name: jax.random.fold_in(jax.random.key(7), i) for i, name in enumerate(RNG_STREAMS)}


class Case:
    """An objective with parameters and a batch.

    Parameters are numpy's, of the right shapes: compiling the real initializers takes seconds.
    Gates of cross-attention are closed, as they are at first.
    """

    def __init__(self, name, changes=None, *, initialize=False):
        self.objective = make_objective(name, {**SECTIONS[name], **(changes or {})})

        def init(key):
            return nn.unbox(self.objective.init(key))

        if initialize:
            variables = dict(jax.jit(init)(jax.random.key(0)))
        else:
            variables = draw(jax.eval_shape(init, jax.random.key(0)))
        self.params = variables.pop("params")
        self.model_state = variables
        limits = {"image_tokens": K}
        self.batch = next(FakeBatches(self.objective.batch_spec(B), limits=limits))
        self._loss = jax.jit(self.objective.loss, static_argnames="train")

    def opened(self):
        """The parameters with all gates of cross-attention at 1."""
        flat = train_state.flatten(self.params)
        return train_state.unflatten(
            {p: jnp.ones_like(x) if p.endswith("_gate") else x for p, x in flat.items()}
        )

    def step(self, params=None, *, train=False, step=0, rngs=RNGS, **changes):
        """(metrics, what was seen) of the batch with some arrays changed."""
        params = self.params if params is None else params
        batch = {**self.batch, **changes}
        return self._loss(params, batch, rngs, jnp.int32(step), train=train)

    def after_update(self, seen):
        """(params, model_state) after a batch of one microbatch."""
        seen = jax.tree.map(lambda one: one[None], seen)
        key = RNGS["after_update"]
        return self.objective.after_update(self.params, self.model_state, seen, key)

    def gradient(self, params, is_trained, metric="loss", **changes):
        """(mean of a metric, its gradient by path) for the paths that `is_trained`."""
        flat = train_state.flatten(params)
        trained = {path: leaf for path, leaf in flat.items() if is_trained(path)}
        fixed = {path: leaf for path, leaf in flat.items() if path not in trained}
        batch = {**self.batch, **changes}

        @jax.jit
        def value_and_grad(trained):
            def loss(trained):
                params = train_state.join_params(trained, fixed)
                metrics, _ = self.objective.loss(params, batch, RNGS, jnp.int32(0), train=True)
                return mean(metrics[metric])

            return jax.value_and_grad(loss)(trained)

        return value_and_grad(trained)

    def metrics(self, *args, **kwargs):
        return self.step(*args, **kwargs)[0]

    def loss(self, *args, **kwargs):
        return float(mean(self.metrics(*args, **kwargs)["loss"]))


def draw(shapes, seed=0):
    """Random parameters and statistics of zero."""
    rng = np.random.default_rng(seed)

    def parameter(path, leaf):
        if path.endswith("_gate"):
            return jnp.zeros(leaf.shape)
        noise = rng.normal(size=leaf.shape)
        if leaf.ndim < 2 or "norm" in path:
            return jnp.float32(1 + 0.1 * noise)
        return jnp.float32(noise * np.prod(leaf.shape[:-1]) ** -0.5)

    params = {p: parameter(p, x) for p, x in train_state.flatten(shapes["params"]).items()}
    state = {name: tree for name, tree in shapes.items() if name != "params"}
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), state)
    return {"params": train_state.unflatten(params), **zeros}


@pytest.fixture(scope="module")
def cases():
    found = {name: Case(name) for name in SECTIONS}
    found |= {name: Case("tokenizer", section) for name, section in TOKENIZERS.items()}
    return found


@pytest.mark.parametrize("name", [*SECTIONS, *TOKENIZERS])
def test_losses_are_finite_and_the_gradient_reaches_every_trainable_parameter(cases, name):
    case = cases[name]
    for train in (True, False):
        metrics = case.metrics(train=train)
        for total, count in metrics.values():
            assert total.shape == count.shape == () and np.isfinite([total, count]).all()
        assert metrics["loss"][1] > 0
    trainable, _ = train_state.split_params(case.params, case.objective.frozen)
    _, gradient = case.gradient(case.opened(), trainable.__contains__)
    norms = {path: float(jnp.abs(leaf).max()) for path, leaf in gradient.items()}
    assert np.isfinite(list(norms.values())).all() and norms.keys() == trainable.keys()
    assert [path for path, norm in norms.items() if norm == 0] == []


FROZEN = {
    "generator": {"tokenizer"},
    "vlm": {"tokenizer", "vlm/language_model"},
    "perceptual": {"perceptual"},
}


@pytest.mark.parametrize("name", [*SECTIONS, *TOKENIZERS])
def test_layouts_are_named_and_only_what_is_trained_has_optimizer_state(cases, name):
    case = cases[name]
    trainable, frozen = train_state.split_params(case.params, case.objective.frozen)
    parts = {"/".join(path.split("/")[: 2 if path.startswith("vlm") else 1]) for path in frozen}
    assert parts == FROZEN.get(name, set())
    layout = train_state.state_layout(
        case.objective, make_optimizer(OptimizerConfig()), one_device_mesh()
    )
    shapes = jax.tree.map(jnp.shape, case.params)
    assert jax.tree.map(lambda leaf: leaf.shape, layout.params) == shapes
    assert moments_of(layout) == trainable.keys()


def moments_of(layout):
    adam = layout.opt_state[1]
    of_networks = adam.values() if isinstance(adam, dict) else [adam]
    return set().union(*(state.mu for state in of_networks))


def test_a_pretrained_caption_encoder_stays_as_it_is():
    """Its parameters have no moments and no gradient; the projection of its output is trained."""
    objective = make_objective("generator", {**SECTIONS["generator"], "freeze_text_encoder": True})
    layout = train_state.state_layout(
        objective, make_optimizer(OptimizerConfig()), one_device_mesh()
    )
    encoder = {path for path in train_state.flatten(layout.params) if "/text_encoder/" in path}
    assert encoder and not encoder & moments_of(layout)
    assert "generator/maskgit/text_projection/kernel" in moments_of(layout)


# --- tokenizer ---


def test_before_quantize_start_the_tokenizer_is_an_autoencoder(cases):
    late = Case("tokenizer", {"quantize_start": 5, "loss": {"entropy_weight": 0.0}})
    early = cases["tokenizer"]
    before, seen_before = late.step(step=4, train=True)
    # Nothing is quantized: no distance to the codes is a loss, and no code has been counted.
    assert float(before["codebook"][0]) == float(before["commitment"][0]) == 0
    assert float(before["loss"][0]) == float(before["reconstruction"][0])
    np.testing.assert_array_equal(seen_before["counts_K"], 0)
    after, seen_after = late.step(step=5, train=True)
    assert float(after["codebook"][0]) > 0
    assert seen_after["counts_K"].sum() == B * 4
    # From then on it is what it would have been without the start.
    for name, pair in early.metrics(step=5, train=True).items():
        if name in after and name != "loss":
            np.testing.assert_array_equal(pair, after[name])
    # Revival waits for the first quantized batch.
    same, _ = late.after_update(seen_before)
    codebook = late.params["tokenizer"]["quantizer"]["codebook"]
    np.testing.assert_array_equal(same["tokenizer"]["quantizer"]["codebook"], codebook)
    revived, _ = late.after_update(seen_after)
    assert (revived["tokenizer"]["quantizer"]["codebook"] != codebook).any()
    # Evaluation always quantizes.
    assert float(late.metrics(train=False, step=0)["codebook"][0]) > 0


def test_a_batch_in_microbatches_is_counted_once():
    changes = {"tokenizer": {**TOKENIZER, "revive_share": 0.0, "usage_decay": 0.75}}
    case = Case("tokenizer", changes)
    tx = make_optimizer(OptimizerConfig(learning_rate=1e-9))
    opt_state = tx.init(train_state.split_params(case.params, ())[0])
    rng = jax.random.key_data(jax.random.key(0))
    state = train_state.TrainState(jnp.int32(0), case.params, opt_state, case.model_state, rng)
    step = jax.jit(make_train_step(case.objective, tx, microbatches=2))
    images = (case.batch["image"], 0.5 * case.batch["image"][:, ::-1])
    counts = [case.step(train=True, image=image)[1]["counts_K"] for image in images]
    usage, expected = [], [counts[0], 0.75 * counts[0] + 0.25 * counts[1]]
    for image in images:
        state, _ = step(state, {"image": image})
        usage.append(state.model_state["codebook_stats"]["quantizer"]["usage"])
    np.testing.assert_allclose(usage, expected, rtol=1e-6)


def test_the_perceptual_loss_is_one_more_term_in_the_features_of_its_network(cases):
    plain, case = cases["tokenizer"], cases["perceptual"]
    before, found = plain.metrics({"tokenizer": case.params["tokenizer"]}), case.metrics()
    assert found.keys() - before.keys() == {"perceptual"} and float(found["perceptual"][0]) > 0
    expected = float(before["loss"][0]) + 0.1 * float(found["perceptual"][0])
    assert float(found["loss"][0]) == pytest.approx(expected, rel=1e-6)
    # Another network sees the same reconstructions in another way.
    another = draw({"params": case.params}, seed=1)["params"]
    other = case.metrics({**case.params, "perceptual": another["perceptual"]})
    assert float(other["perceptual"][0]) != pytest.approx(float(found["perceptual"][0]), rel=1e-3)
    np.testing.assert_array_equal(other["reconstruction"], found["reconstruction"])


def test_the_perceptual_loss_alone_moves_encoder_and_decoder(cases):
    case = cases["perceptual"]
    _, gradient = case.gradient(
        case.params, lambda path: path.startswith("tokenizer/"), "perceptual"
    )
    moved = {path.split("/")[1] for path, leaf in gradient.items() if jnp.abs(leaf).max() > 0}
    # The codes are passed over, straight through, on the way to the encoder.
    assert moved == {"encoder", "decoder"}


@pytest.mark.parametrize(
    "weight, part, section",
    [
        ("adversarial_weight", "discriminator", ADVERSARIAL["discriminator"]),
        ("perceptual_weight", "perceptual", PERCEPTUAL["perceptual"]),
    ],
)
def test_a_second_network_goes_with_its_weight(weight, part, section):
    for change in ({part: section}, {"loss": {weight: 0.1}}):
        with pytest.raises(UserError, match="^--config.model.*: found .*, expected ") as error:
            make_objective("tokenizer", {**SECTIONS["tokenizer"], **change})
        for key in (part, f"loss.{weight}"):
            assert f"--config.model.{key}" in str(error.value)


# --- language model ---


def test_the_language_model_reads_what_came_before_and_nothing_later(cases):
    case = cases["language_model"]
    only_last = np.zeros_like(case.batch["loss_mask"])
    only_last[:, -1] = True
    before = case.loss(loss_mask=only_last)
    tokens = case.batch["text_tokens"].copy()
    tokens[:, 0] = 2 + (tokens[:, 0] - 1) % 14
    assert case.loss(loss_mask=only_last, text_tokens=tokens) != before
    # The loss of the first token sees none that come later.
    only_first = np.zeros_like(only_last)
    only_first[:, 0] = True
    tokens = case.batch["text_tokens"].copy()
    before = case.loss(loss_mask=only_first)
    tokens[:, 1:] = 3
    assert case.loss(loss_mask=only_first, text_tokens=tokens) == pytest.approx(before, abs=1e-6)


# --- generator ---


@pytest.mark.slow
def test_an_untrained_generator_is_at_chance():
    xent = float(mean(Case("generator", initialize=True).metrics()["xent"]))
    assert xent == pytest.approx(np.log(K), rel=0.1)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_dropped_captions_are_not_read_and_evaluation_drops_none(share):
    case = Case("generator", {"caption_dropout": share})
    other = {"text_tokens": (case.batch["text_tokens"] + 3) % 14 + 2}
    assert (case.loss(train=True, **other) == case.loss(train=True)) == (share == 1.0)
    assert case.loss(train=False, **other) != case.loss(train=False)


@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_caption_encoder_has_no_dropout(frozen):
    parts = SECTIONS["generator"]["generator"]
    text_encoder = {**parts["text_encoder"], "dropout_rate": 0.5}
    changes = {"freeze_text_encoder": frozen, "generator": {**parts, "text_encoder": text_encoder}}
    case = Case("generator", changes)
    moved = {**RNGS, "dropout": jax.random.key(99)}
    assert (case.loss(train=True, rngs=moved) == case.loss(train=True)) == frozen
    assert case.loss(train=False, rngs=moved) == case.loss(train=False)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_stored_features_stand_for_the_encoder_in_the_step(dtype):
    """The same loss and gradients; of a float32 encoder, up to the rounding of its features."""
    parts = SECTIONS["generator"]["generator"]
    text_encoder = {**parts["text_encoder"], "dtype": dtype, "dropout_rate": 0.5}
    changes = {"generator": {**parts, "text_encoder": text_encoder}, "freeze_text_encoder": True}
    whole = Case("generator", changes)
    stored = Case("generator", {**changes, "stored_text_features": True})
    encoder = TextEncoder(whole.objective.task.generator.text_encoder)
    tokens_BT, mask_BT = whole.batch["text_tokens"], np.arange(6) < np.array([[1], [3], [5], [6]])
    variables = {"params": whole.params["generator"]["text_encoder"]}
    encode = jax.jit(functools.partial(encoder.apply, deterministic=True))
    features = encode(variables, tokens_BT, mask_BT)
    features = np.where(mask_BT[..., None], features.astype(jnp.bfloat16), 0)
    text = {"text_tokens": tokens_BT, "text_mask": mask_BT}
    text |= {"image_tokens": whole.batch["image_tokens"]}
    trained, _ = train_state.split_params(whole.params, whole.objective.frozen)
    without = dict(whole.params["generator"])
    del without["text_encoder"]
    found = [
        whole.gradient(whole.params, trained.__contains__, **text),
        stored.gradient(
            {**whole.params, "generator": without},
            trained.__contains__,
            **text,
            text_features=features,
        ),
    ]
    tolerance = {"bfloat16": {"rtol": 1e-6, "atol": 1e-7}, "float32": {"rtol": 2e-2, "atol": 2e-3}}
    tolerance = tolerance[dtype]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), *found)


def test_with_stored_features_the_encoder_is_nowhere():
    case = Case("generator", {"freeze_text_encoder": True, "stored_text_features": True})
    assert set(case.params["generator"]) == {"maskgit"}
    assert case.batch["text_features"].shape == (B, 6, 16)
    assert case.batch["text_features"].dtype == jnp.bfloat16
    assert np.isfinite(case.loss(train=True))
    # The features are the caption; its tokens are not read.
    other = (case.batch["text_tokens"] + 3) % 14 + 2
    assert case.loss(text_tokens=other) == case.loss()
    assert case.loss(text_features=-case.batch["text_features"]) != case.loss()


def test_only_training_smooths_labels_and_masks_come_from_their_stream_alone(cases):
    case = cases["generator"]
    assert case.loss(train=False) == pytest.approx(float(mean(case.metrics()["xent"])), rel=1e-6)
    smooth = case.metrics(train=True)
    assert float(mean(smooth["loss"])) != pytest.approx(float(mean(smooth["xent"])), rel=1e-6)
    moved = {**RNGS, "mask": jax.random.key(99)}
    assert case.loss(rngs=moved) != case.loss()
    moved = {name: RNGS["mask"] if name == "mask" else jax.random.key(99) for name in RNGS}
    assert case.loss(rngs=moved) == case.loss()


# --- vlm ---


def test_a_new_vlm_is_its_language_model(cases):
    vlm, bare = cases["vlm"], cases["language_model"]
    params = {"language_model": vlm.params["vlm"]["language_model"]}
    text = {name: vlm.batch[name] for name in ("text_tokens", "loss_mask")}
    assert vlm.loss() == pytest.approx(bare.loss(params, **text), abs=1e-5)


def test_an_opened_vlm_reads_the_image_of_its_own_row(cases):
    case = cases["vlm"]
    opened, ids_BN = case.opened(), case.batch["image_tokens"]
    before = case.loss(opened)
    assert case.loss(opened, image_tokens=np.roll(ids_BN, 1, axis=0)) != before
    assert case.loss(image_tokens=np.roll(ids_BN, 1, axis=0)) == case.loss()  # closed gates
    # The loss of one row is that of its own image: the other rows' change nothing.
    row = np.zeros_like(case.batch["loss_mask"])
    row[1] = True
    others = ids_BN.copy()
    others[[0, 2, 3]] = (others[[0, 2, 3]] + 1) % K
    alone = case.loss(opened, loss_mask=row)
    assert case.loss(opened, loss_mask=row, image_tokens=others) == pytest.approx(alone, abs=1e-6)


def test_what_is_synthetic_changes_metrics_but_no_loss(cases):
    case = cases["vlm"]
    flags = np.array([True, False, False, True])
    before, after = case.metrics(is_synthetic=flags), case.metrics(is_synthetic=~flags)
    np.testing.assert_array_equal(before["loss"], after["loss"])
    np.testing.assert_allclose(before["loss_synthetic"], after["loss_real"], rtol=1e-6)
    np.testing.assert_allclose(
        np.add(before["loss_synthetic"], before["loss_real"]), before["loss"], rtol=1e-5
    )


def test_pixel_space_is_embedding_space_where_decoding_and_encoding_undo_each_other(cases):
    """Most tokens of an untrained tokenizer come back as others; some are fixed points."""
    embedding = cases["vlm"]
    pixel = Case("vlm", {"image_space": "pixel"})
    params = embedding.opened()
    codebook_KC = np.asarray(params["tokenizer"]["quantizer"]["codebook"])

    @jax.jit
    def through_pixels(ids_BN):
        return pixel.objective.image_embeddings(params, ids_BN)

    def ids_of(embedded_BNC):
        distances = ((np.asarray(embedded_BNC)[..., None, :] - codebook_KC) ** 2).sum(-1)
        assert distances.min(-1).max() < 1e-6  # they are rows of the codebook
        return distances.argmin(-1).astype(np.int32)

    ids_BN = np.random.default_rng(0).integers(0, K, (64, 4), dtype=np.int32)
    again_BN = ids_of(through_pixels(ids_BN))
    assert (again_BN != ids_BN).any()
    for _ in range(10):
        ids_BN, again_BN = again_BN, ids_of(through_pixels(again_BN))
    fixed_BN = ids_BN[(ids_BN == again_BN).all(axis=1)][:B]
    assert len(fixed_BN)
    fixed_BN = np.resize(fixed_BN, (B, 4))
    moved_BN = np.random.default_rng(0).integers(0, K, (B, 4), dtype=np.int32)
    in_pixels = pixel.loss(params, image_tokens=fixed_BN)
    assert in_pixels == pytest.approx(embedding.loss(params, image_tokens=fixed_BN), abs=1e-6)
    assert pixel.loss(params, image_tokens=moved_BN) != pytest.approx(
        embedding.loss(params, image_tokens=moved_BN), abs=1e-6
    )


@pytest.fixture(scope="module")
def two_images():
    """A VLM of two images a text, and 2 B pairs with texts of one to five tokens."""
    case = Case("vlm", {"images_per_text": 2})
    rng = np.random.default_rng(3)
    texts = rng.integers(2, 16, (2 * B, 6), dtype=np.int32)
    texts *= np.arange(6) < rng.integers(1, 6, (2 * B, 1))
    pairs = {
        "image_tokens": rng.integers(0, K, (2 * B, 4), dtype=np.int32),
        "text_tokens": texts,
        "loss_mask": texts != 0,
        "is_synthetic": rng.random(2 * B) < 0.5,
    }
    case.batch = pack(pairs, 2)
    return case, pairs


def test_packed_batches_are_as_the_model_takes_them(two_images):
    case, _ = two_images
    spec = case.objective.batch_spec(B)
    assert {k: (v.shape, v.dtype) for k, v in case.batch.items()} == {
        k: (v.shape, v.dtype) for k, v in spec.items()
    }
    images = case.objective.batch_spec(B, from_images=True)["image"]
    assert images.shape == (B, 2, 8, 8, 3)
    fake = next(FakeBatches(spec, limits=case.objective.limits))
    assert np.isfinite(case.loss(**fake))


def test_the_first_caption_of_a_text_is_learned_as_from_one_image(cases, two_images):
    case, pairs = two_images
    params = cases["vlm"].opened()
    first = {name: array[::2] for name, array in pairs.items()}
    mask = case.batch["loss_mask"] & (case.batch["image_of_text"] == 1)
    alone = cases["vlm"].loss(params, **first)
    assert case.loss(params, loss_mask=mask) == pytest.approx(alone, abs=1e-6)
    # What comes later is not seen.
    moved = case.batch["image_tokens"].copy()
    moved[:, 1] = (moved[:, 1] + 1) % K
    assert case.loss(params, loss_mask=mask, image_tokens=moved) == pytest.approx(alone, abs=1e-6)


def test_a_caption_reads_its_own_image_alone(two_images):
    """Words before it have read theirs: so attention among words is closed."""
    case, _ = two_images
    params = case.opened()
    layers = train_state.flatten(params)
    out = next(p for p in layers if p.startswith("vlm/language_model") and p.endswith("out/kernel"))
    params = train_state.unflatten({**layers, out: jnp.zeros_like(layers[out])})
    mask = case.batch["loss_mask"] & (case.batch["image_of_text"] == 2)
    losses = [case.loss(params, loss_mask=mask)]
    for image in (0, 1):
        moved = case.batch["image_tokens"].copy()
        moved[:, image] = (moved[:, image] + 1) % K
        losses.append(case.loss(params, loss_mask=mask, image_tokens=moved))
    assert losses[1] == pytest.approx(losses[0], abs=1e-6)
    assert losses[2] != pytest.approx(losses[0], abs=1e-4)


def test_losses_of_packed_captions_are_counted_by_the_source_of_each(two_images):
    case, pairs = two_images
    metrics = case.metrics()
    tokens_B = (pairs["loss_mask"]).sum(axis=1)
    for source, flags in {
        "synthetic": pairs["is_synthetic"],
        "real": ~pairs["is_synthetic"],
    }.items():
        assert metrics[f"loss_{source}"][1] == tokens_B[flags].sum()
    parts = np.add(metrics["loss_synthetic"], metrics["loss_real"])
    np.testing.assert_allclose(parts, metrics["loss"], rtol=1e-5)


@pytest.mark.parametrize("image_space", ["embedding", "pixel"])
def test_images_of_a_text_are_embedded_one_by_one(cases, image_space):
    objective = make_objective("vlm", {**SECTIONS["vlm"], "image_space": image_space})
    params = cases["vlm"].params
    embed = jax.jit(functools.partial(objective.image_embeddings, params))
    ids_BIN = np.random.default_rng(0).integers(0, K, (2, 3, 4), dtype=np.int32)
    expected = embed(ids_BIN.reshape(6, 4)).reshape(2, 3, 4, -1)
    np.testing.assert_array_equal(embed(ids_BIN), expected)


# --- both ---


@pytest.mark.parametrize("name", ["generator", "vlm"])
def test_of_normalized_codes_only_the_directions_count(name):
    """The generator must see what the tokenizer compares and the VLM embeds."""
    case = Case(name, {"tokenizer": {**TOKENIZER, "l2_normalize_codes": True}})
    tokenizer = case.params["tokenizer"]
    stretched_KC = tokenizer["quantizer"]["codebook"] * np.linspace(0.5, 2, K)[:, None]
    quantizer = {"codebook": stretched_KC.astype(np.float32)}
    params = {**case.opened(), "tokenizer": {**tokenizer, "quantizer": quantizer}}
    assert case.loss(params) == pytest.approx(case.loss(case.opened()), rel=1e-6)
    plain = Case(name)
    assert plain.loss(params) != pytest.approx(plain.loss(case.opened()), rel=1e-6)


# --- mistakes ---


@pytest.mark.parametrize(
    "name, change, text",
    [
        ("vml", {}, "--config.model_name: 'vml' unknown; did you mean 'vlm'?"),
        ("vlm", {"image_spaec": "pixel"}, "--config.model.image_spaec: unknown key; did you mean"),
        ("vlm", {"image_space": "pixels"}, "did you mean 'pixel'?"),
        ("generator", {"mask_schedule": "cosin"}, "did you mean 'cosine'?"),
        (
            "generator",
            {"stored_text_features": True},
            "stored_text_features: found True, expected False without --config.model.freeze_text",
        ),
        (
            "generator",
            {"tokenizer": {**TOKENIZER, "codebook_size": 8}},
            "--config.model.generator.maskgit.codebook_size: found 16, expected 8 as in "
            "--config.model.tokenizer.codebook_size",
        ),
        (
            "vlm",
            {"tokenizer": {**TOKENIZER, "patch_size": 2}},
            "--config.model.vlm.num_image_tokens: found 4, expected 16 as in "
            "--config.model.tokenizer.num_tokens",
        ),
        (
            "vlm",
            {"tokenizer": {**TOKENIZER, "embedding_dim": 8}},
            "--config.model.vlm.image_embedding_dim: found 4, expected 8 as in "
            "--config.model.tokenizer.embedding_dim; leave it out to take that",
        ),
    ],
)
def test_mistakes_are_one_line(name, change, text):
    section = {**SECTIONS.get(name, SECTIONS["vlm"]), **change}
    with pytest.raises(UserError) as error:
        make_objective(name, section)
    assert text in str(error.value) and "\n" not in str(error.value)


def test_every_objective_is_tested_here():
    assert OBJECTIVES.keys() == SECTIONS.keys()
