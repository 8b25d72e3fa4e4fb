import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from synth2_jax.errors import UserError
from synth2_jax.losses.vq_loss import VQLossConfig, vq_loss
from synth2_jax.models.quantizer import seen_codes
from synth2_jax.models.vq_tokenizer import (
    AttentionBlock,
    ResBlock,
    VQTokenizer,
    VQTokenizerConfig,
    average_pool,
    convolution,
    depth_to_space,
    initial_model_state,
    normalized,
    parameter_shapes,
    space_to_depth,
    update_codebook,
    upsample,
)

TINY = VQTokenizerConfig(
    image_size=16,
    patch_size=4,
    filters=16,
    channel_multipliers=(1, 2),
    num_res_blocks=1,
    embedding_dim=6,
    codebook_size=20,
    norm_groups=4,
    reservoir_size=32,
)
CONFIGS = {
    "tiny": (TINY, 4),
    "patches": (dataclasses.replace(TINY, patch_size=8, channel_multipliers=(1,)), 4),
    "halvings": (dataclasses.replace(TINY, patch_size=1, channel_multipliers=(1, 1, 2)), 16),
    "conv": (dataclasses.replace(TINY, downsampling="conv", activation="relu"), 4),
    "normalized": (dataclasses.replace(TINY, l2_normalize_codes=True), 4),
    "taming": (
        dataclasses.replace(
            TINY,
            num_middle_blocks=2,
            extra_decoder_blocks=1,
            attention_levels=(1,),
            middle_attention=True,
            use_bias=True,
            shortcut_from_input=True,
            latent_channels=5,
            downsampling="conv_3x3",
        ),
        4,
    ),
    "bfloat16": (dataclasses.replace(TINY, dtype="bfloat16"), 4),
}


ATTENTION_AXES = {"embed", "heads", "kv"}


@pytest.fixture(scope="module")
def tiny():
    return _build(TINY)


def _build(config, batch=3):
    image = jax.random.uniform(jax.random.key(0), (batch, 16, 16, 3), minval=-1.0)
    model = VQTokenizer(config)
    return model, _random_params(lambda key: model.init(key, image, deterministic=True)), image


def _random_params(init):
    """Parameters of the shapes `init(key)` makes: compiling real initializers takes seconds."""
    rng = np.random.default_rng(0)

    def draw(leaf):
        scale = np.prod(leaf.shape[:-1]) ** -0.5 if leaf.ndim > 1 else 0.1
        return jnp.asarray(rng.normal(size=leaf.shape) * scale + (leaf.ndim == 1), jnp.float32)

    return jax.tree.map(draw, nn.unbox(jax.eval_shape(init, jax.random.key(0)))["params"])


def _apply(model, params, image):
    forward = jax.jit(lambda image: model.apply({"params": params}, image, deterministic=True))
    return forward(image)


def test_space_to_depth_of_a_literal_image():
    image = jnp.arange(16).reshape(1, 4, 4, 1)
    patches = space_to_depth(image, 2)
    np.testing.assert_array_equal(patches[0, 0], [[0, 1, 4, 5], [2, 3, 6, 7]])
    np.testing.assert_array_equal(depth_to_space(patches, 2), image)
    colours = jax.random.normal(jax.random.key(0), (2, 6, 12, 3))
    np.testing.assert_array_equal(depth_to_space(space_to_depth(colours, 3), 3), colours)


def test_pooling_and_upsampling_of_a_literal_grid():
    grid = jnp.array([[0.0, 2.0], [4.0, 10.0]]).reshape(1, 2, 2, 1)
    np.testing.assert_array_equal(average_pool(grid), [[[[4.0]]]])
    np.testing.assert_array_equal(upsample(grid)[0, :2, :, 0], [[0, 0, 2, 2], [0, 0, 2, 2]])
    np.testing.assert_array_equal(average_pool(upsample(grid)), grid)


@pytest.mark.parametrize("name", CONFIGS)
def test_shapes_and_dtypes(name):
    config, num_tokens = CONFIGS[name]
    assert config.num_tokens == num_tokens
    model = VQTokenizer(config)
    image = jnp.zeros((3, 16, 16, 3))

    def run(key):
        params = nn.unbox(model.init(key, image, deterministic=True))["params"]
        reconstruction, out = model.apply({"params": params}, image, deterministic=False)
        return params, reconstruction, out

    params, reconstruction, out = jax.eval_shape(run, jax.random.key(0))
    assert reconstruction.shape == image.shape and reconstruction.dtype == jnp.float32
    shapes = {key: (value.shape, value.dtype.name) for key, value in out.items()}
    assert shapes == {
        "ids_BN": ((3, num_tokens), "int32"),
        "encoded_BNC": ((3, num_tokens, 6), "float32"),
        "codes_BNC": ((3, num_tokens, 6), "float32"),
        "quantized_BNC": ((3, num_tokens, 6), "float32"),
        "distances_BNK": ((3, num_tokens, 20), "float32"),
    }
    assert params["quantizer"]["codebook"].shape == (20, 6)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


def test_the_default_is_the_256_pixel_tokenizer_with_16x16_tokens():
    config = VQTokenizerConfig()
    model = VQTokenizer(config)
    image = jax.ShapeDtypeStruct((2, 256, 256, 3), jnp.float32)

    def run(key, image):
        variables = nn.unbox(model.init(key, image, deterministic=True))
        ids = model.apply(variables, image, method="encode")
        embedded = model.apply(variables, ids, method="embed")
        return variables["params"], ids, embedded, model.apply(variables, ids, method="decode")

    params, ids, embedded, decoded = jax.eval_shape(run, jax.random.key(0), image)
    assert config.num_tokens == 256 and config.grid_size == 16
    assert ids.shape == (2, 256) and embedded.shape == (2, 256, 256)
    assert decoded.shape == image.shape
    assert params["quantizer"]["codebook"].shape == (8192, 256)
    assert params["encoder"]["block_0"]["conv_0"]["kernel"].shape == (3, 3, 128, 128)
    assert params["encoder"]["block_11"]["conv_1"]["kernel"].shape == (3, 3, 512, 512)
    assert params["decoder"]["upsample_3"]["kernel"].shape == (3, 3, 128, 128)


@pytest.mark.parametrize("name", ["tiny", "conv", "taming"])
def test_every_variable_has_logical_names_of_its_rank(name):
    model = VQTokenizer(CONFIGS[name][0])
    variables = jax.eval_shape(
        lambda key: {
            **model.init(key, jnp.zeros((1, 16, 16, 3)), deterministic=True),
            **initial_model_state(model.config),
        },
        jax.random.key(0),
    )
    boxes = jax.tree.leaves(variables, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))
    assert set(variables) == {"params", "codebook_stats"}
    for box in boxes:
        assert isinstance(box, nn.LogicallyPartitioned)
        assert len(box.names) == box.value.ndim
        assert set(box.names) <= {None, "codebook", "conv_in", "conv_out"} | ATTENTION_AXES
    assert variables["params"]["quantizer"]["codebook"].names == ("codebook", "embed")


@pytest.mark.parametrize("name", ["tiny", "normalized", "taming", "bfloat16"])
def test_ids_embeddings_and_images_agree(name):
    model, params, image = _build(CONFIGS[name][0])
    reconstruction, out = _apply(model, params, image)

    @jax.jit
    def encode_embed_decode(image):
        variables = {"params": params}
        ids = model.apply(variables, image, method="encode")
        embedded = model.apply(variables, ids, method="embed")
        return ids, embedded, model.apply(variables, ids, method="decode")

    ids, embedded, decoded = encode_embed_decode(image)
    np.testing.assert_array_equal(ids, out["ids_BN"])
    assert ids.shape == (3, 4)
    np.testing.assert_array_equal(embedded, out["quantized_BNC"])
    np.testing.assert_allclose(decoded, reconstruction, atol=1e-6)


def test_an_image_does_not_depend_on_its_batch(tiny):
    model, params, image = tiny
    whole, _ = _apply(model, params, image)
    alone, _ = _apply(model, params, image[1:2])
    np.testing.assert_allclose(whole[1:2], alone, atol=1e-5)


def test_ids_do_not_depend_on_the_batch():
    """Of bfloat16 encoders they did: compilers add up a batch of one in another order."""
    model, params, image = _build(
        dataclasses.replace(CONFIGS["bfloat16"][0], codebook_size=256), batch=128
    )
    encoded_BNC = _apply(model, params, image)[1]["encoded_BNC"]
    params["quantizer"]["codebook"] = 1.01 * encoded_BNC.reshape(-1, 6)[::2]
    encode = jax.jit(lambda image: model.apply({"params": params}, image, method="encode"))
    whole_BN = encode(image)
    assert len(np.unique(whole_BN)) > 100
    np.testing.assert_array_equal([encode(one[None])[0] for one in image], whole_BN)


def test_only_the_models_read_the_codebook_as_it_is_stored():
    """All others take `codes`, which are normalized where the config says so."""
    root = pathlib.Path(__file__).parents[2]
    files = [path for room in ("synth2_jax", "benchmarks") for path in (root / room).rglob("*.py")]
    readers = {path.name for path in files if '["quantizer"]["codebook"]' in path.read_text()}
    # start_up.py compiles for the shape alone.
    assert readers == {"vq_tokenizer.py", "start_up.py"}


@pytest.mark.parametrize("name", ["taming", "conv", "bfloat16"])
def test_all_products_that_decide_ids_are_float32_at_the_highest_precision(name):
    """A TPU's default of one pass in bfloat16 changes up to 1 % of the ids."""
    model, params, image = _build(CONFIGS[name][0])
    jaxpr = jax.make_jaxpr(lambda image: model.apply({"params": params}, image, method="encode"))
    products = list(_products(jaxpr(image).jaxpr))
    assert {eqn.primitive.name for eqn in products} == {"conv_general_dilated", "dot_general"}
    kernels = [p for path, p in parameter_shapes(model.config).items() if path.endswith("kernel")]
    assert len(products) > len(kernels) / 3
    for eqn in products:
        assert eqn.params["precision"] == (jax.lax.Precision.HIGHEST,) * 2, eqn
        assert {var.aval.dtype for var in eqn.invars} == {jnp.dtype("float32")}, eqn


def _products(jaxpr):
    """Equations of convolutions and of matrix products, those of inner functions too."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in ("conv_general_dilated", "dot_general"):
            yield eqn
        for value in eqn.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _products(inner)


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_with_kernels_of_one_cell_patches_do_not_know_their_places(kernel_size):
    """Moving patches moves tokens and does nothing else: group norms see all patches as a set."""
    config = dataclasses.replace(
        TINY, patch_size=4, channel_multipliers=(1,), kernel_size=kernel_size
    )
    model, params, image = _build(config)
    order = np.random.default_rng(0).permutation(config.num_tokens)

    def moved(picture):
        patches = space_to_depth(picture, 4)
        flat = patches.reshape(len(picture), config.num_tokens, -1)[:, order]
        return depth_to_space(flat.reshape(patches.shape), 4)

    reconstruction, out = _apply(model, params, image)
    moved_reconstruction, moved_out = _apply(model, params, moved(image))
    encoded = np.asarray(out["encoded_BNC"])
    difference = np.abs(moved_out["encoded_BNC"] - encoded[:, order]).max()
    assert (difference < 1e-5) == (kernel_size == 1)
    if kernel_size == 1:
        np.testing.assert_array_equal(moved_out["ids_BN"], out["ids_BN"][:, order])
        np.testing.assert_allclose(moved_reconstruction, moved(reconstruction), atol=1e-5)
        kernels = [x.shape for x in jax.tree.leaves(params) if x.ndim == 4]
        assert {shape[:2] for shape in kernels} == {(1, 1)}


def test_before_it_quantizes_it_is_an_autoencoder(tiny):
    model, params, image = tiny

    @jax.jit
    def run(quantize):
        variables = {"params": params}
        return model.apply(variables, image, deterministic=True, quantize=quantize)

    reconstruction, out = run(False)
    np.testing.assert_array_equal(out["quantized_BNC"], out["encoded_BNC"])
    quantized_reconstruction, quantized = run(True)
    np.testing.assert_array_equal(quantized["encoded_BNC"], out["encoded_BNC"])
    assert np.abs(quantized_reconstruction - reconstruction).max() > 1e-3
    default, _ = _apply(model, params, image)
    np.testing.assert_allclose(default, quantized_reconstruction, atol=1e-6)


def test_pixel_range_is_the_networks_own(tiny):
    model, params, image = tiny
    unit = VQTokenizer(dataclasses.replace(TINY, pixel_range=(0.0, 1.0)))
    signed_out, signed = _apply(model, params, image)
    # Given 2x - 1, the network of range (0, 1) sees x.
    unit_out, shifted = _apply(unit, params, 2.0 * image - 1.0)
    np.testing.assert_allclose(shifted["encoded_BNC"], signed["encoded_BNC"], atol=1e-5)
    np.testing.assert_array_equal(shifted["ids_BN"], signed["ids_BN"])
    np.testing.assert_allclose((unit_out + 1.0) / 2.0, signed_out, atol=1e-5)


def test_decoder_gradient_reaches_the_encoder_but_not_the_codebook(tiny):
    model, params, image = tiny

    def output(params):
        return jnp.sum(model.apply({"params": params}, image, deterministic=True)[0] ** 2)

    gradient = jax.jit(jax.grad(output))(params)
    np.testing.assert_array_equal(gradient["quantizer"]["codebook"], 0.0)
    for part in ("encoder", "decoder"):
        norms = [float(jnp.abs(leaf).sum()) for leaf in jax.tree.leaves(gradient[part])]
        assert max(norms) > 0


@pytest.mark.parametrize(
    "change, text",
    [
        ({"image_size": 20}, "image_size: found 20, expected a multiple of 8"),
        ({"image_size": 0}, "image_size: found 0, expected at least 1"),
        ({"channel_multipliers": (1, 0)}, "expected at least one level, each at least 1"),
        ({"norm_groups": 5}, "norm_groups: found 5"),
        ({"norm_groups": 0}, "norm_groups: found 0, expected at least 1"),
        ({"filters": 0}, "filters: found 0, expected at least 1"),
        ({"kernel_size": 0}, "kernel_size: found 0, expected at least 1"),
        ({"embedding_dim": 0}, "embedding_dim: found 0, expected at least 1"),
        ({"reservoir_size": 0}, "reservoir_size: found 0, expected at least 1"),
        ({"activation": "swich"}, "did you mean 'swish'"),
        ({"downsampling": "avg_pool"}, "did you mean 'average_pool'"),
        (
            {"code_choice": "dot_prod"},
            "code_choice: unknown 'dot_prod'; did you mean 'dot_product'",
        ),
        ({"dtype": "float16"}, "float16"),
        ({"codebook_size": 65537}, "codebook_size: found 65537"),
        ({"channel_multipliers": ()}, "at least one level"),
        ({"attention_levels": (0, 2)}, "attention_levels: found (0, 2.*, expected some of .0, 1."),
        ({"num_middle_blocks": 0}, "num_middle_blocks: found 0, expected at least 1"),
        ({"latent_channels": 0}, "latent_channels: found 0, expected at least 1"),
        ({"extra_decoder_blocks": -1}, "extra_decoder_blocks: found -1, expected at least 0"),
        ({"num_res_blocks": 10**9}, "num_res_blocks: found 1000000000, expected at most 1000"),
        ({"pixel_range": (1.0, -1.0)}, "pixel_range"),
    ],
)
def test_bad_configs_are_user_errors(change, text):
    with pytest.raises(UserError, match=text.replace("(", r"\(")):
        dataclasses.replace(TINY, **change)


def test_attention_is_of_every_cell_over_all():
    """Against loops in numpy."""
    block = AttentionBlock(TINY)
    x = np.random.default_rng(0).normal(size=(2, 3, 2, 8)).astype(np.float32)
    params = _random_params(lambda key: block.init(key, x))
    heads = {name: jax.tree.map(np.asarray, p) for name, p in params["self_attention"].items()}

    groups = x.reshape(2, 6, TINY.norm_groups, 2)
    mean = groups.mean((1, 3), keepdims=True)
    groups = (groups - mean) / np.sqrt(groups.var((1, 3), keepdims=True) + 1e-6)
    y = groups.reshape(2, 6, 8) * params["norm"]["scale"] + params["norm"]["bias"]
    query, key, value = (
        y @ heads[name]["kernel"][:, 0] + heads[name]["bias"][0]
        for name in ("query", "key", "value")
    )
    expected = x.reshape(2, 6, 8).copy()
    for row in range(2):
        for cell in range(6):
            weights = np.exp(key[row] @ query[row, cell] / np.sqrt(8))
            seen = (weights / weights.sum()) @ value[row]
            expected[row, cell] += seen @ heads["out"]["kernel"][0] + heads["out"]["bias"]
    found = block.apply({"params": params}, x)
    np.testing.assert_allclose(found.reshape(2, 6, 8), expected, atol=1e-5)


@pytest.mark.parametrize("from_input", [False, True])
def test_the_shortcut_is_of_the_input_or_of_what_is_added(from_input):
    config = dataclasses.replace(TINY, shortcut_from_input=from_input)
    block = ResBlock(config, 12)
    x = jax.random.normal(jax.random.key(0), (1, 3, 3, 8))
    params = _random_params(lambda key: block.init(key, x))
    params["conv_1"]["kernel"] = jnp.zeros((3, 3, 12, 12))
    shape = params["shortcut"]["kernel"].shape
    assert shape == ((1, 1, 8, 12) if from_input else (1, 1, 12, 12))
    of_input = x @ params["shortcut"]["kernel"][0, 0] if from_input else jnp.zeros((1, 3, 3, 12))
    np.testing.assert_allclose(block.apply({"params": params}, x), of_input, atol=1e-6)


def test_a_convolution_of_stride_2_is_padded_to_the_right_and_below():
    conv = convolution(1, 3, name="conv", dtype="float32", use_bias=False, stride=2)
    kernel = jnp.ones((3, 3, 1, 1))
    found = conv.apply({"params": {"kernel": kernel}}, jnp.ones((1, 4, 4, 1)))
    np.testing.assert_array_equal(found[0, :, :, 0], [[9, 6], [6, 4]])


def test_modules_of_other_vq_gans():
    shapes = parameter_shapes(CONFIGS["taming"][0])
    ends = ("conv_in", "norm_out", "conv_out")
    modules = {
        "encoder": {
            *(f"block_{i}" for i in range(4)),  # of each level one, and two in the middle
            *("downsample_0", "attention_1", "attention_2", "quant_conv", *ends),
        },
        "decoder": {
            *(f"block_{i}" for i in range(6)),  # two in the middle, and of each level two
            *("upsample_0", "attention_0", "attention_2", "attention_3", "post_quant_conv", *ends),
        },
    }
    for part, names in modules.items():
        assert {path.split("/")[1] for path in shapes if path.startswith(part)} == names
    kernels = {path for path in shapes if path.endswith("kernel")}
    assert {path.replace("kernel", "bias") for path in kernels} <= shapes.keys()
    assert shapes["encoder/conv_out/kernel"].shape == (3, 3, 32, 5)
    assert shapes["encoder/quant_conv/kernel"].shape == (1, 1, 5, 6)
    assert shapes["decoder/post_quant_conv/kernel"].shape == (1, 1, 6, 5)
    assert shapes["encoder/block_1/shortcut/kernel"].shape == (1, 1, 16, 32)
    assert shapes["encoder/attention_1/self_attention/query/kernel"].shape == (32, 1, 32)


def test_an_image_of_another_size_is_refused(tiny):
    model, params, _ = tiny
    with pytest.raises(ValueError, match=r"found shape \(1, 32, 32, 3\), expected"):
        model.apply({"params": params}, jnp.zeros((1, 32, 32, 3)), method="encode")


def test_revival_after_the_first_batch_starts_the_codebook_from_the_data(tiny):
    model, params, image = tiny

    _, out = _apply(model, params, image)
    used = np.unique(out["ids_BN"])
    unused = np.setdiff1d(np.arange(20), used)
    state, seen = nn.unbox(initial_model_state(TINY)), _seen(out, TINY)
    revived, new_state, count = update_codebook(params, state, seen, jax.random.key(5), TINY)
    codebook = revived["quantizer"]["codebook"]
    assert int(count) == len(unused) > 0
    np.testing.assert_array_equal(codebook[used], params["quantizer"]["codebook"][used])
    rows = out["encoded_BNC"].reshape(-1, 6)
    nearest = jnp.abs(codebook[unused][:, None] - rows).max(-1).min(-1)
    np.testing.assert_array_equal(nearest, 0.0)
    for part in ("encoder", "decoder"):
        assert revived[part] is params[part]
    again = update_codebook(revived, new_state, seen, jax.random.key(6), TINY)
    assert int(again[2]) == 0


def _seen(out, config):
    """Of a batch in one microbatch."""
    seen = seen_codes(out, True, config.reservoir_size)
    return jax.tree.map(lambda one: one[None], seen)


@pytest.mark.slow
def test_it_overfits_eight_images():
    # Two-colour images: left and right halves of random colours.
    colours = jax.random.uniform(jax.random.key(0), (8, 2, 3), minval=-1.0)
    image = jnp.repeat(jnp.repeat(colours[:, None], 16, axis=1), 8, axis=2)
    config = dataclasses.replace(TINY, patch_size=8, channel_multipliers=(1,), usage_decay=0.9)
    model = VQTokenizer(config)
    params = _random_params(lambda key: model.init(key, image, deterministic=True))
    weights = VQLossConfig(entropy_weight=0.0)
    tx = optax.adam(1e-2)

    @jax.jit
    def step(params, state, opt_state, key):
        def loss(params):
            reconstruction, out = model.apply({"params": params}, image, deterministic=False)
            losses = vq_loss(image, reconstruction, out, 0, weights)
            return losses["loss"][0] / losses["loss"][1], (losses, _seen(out, config))

        gradient, (losses, seen) = jax.grad(loss, has_aux=True)(params)
        updates, opt_state = tx.update(gradient, opt_state)
        params = optax.apply_updates(params, updates)
        params, state, _ = update_codebook(params, state, seen, key, config)
        return params, state, opt_state, losses["reconstruction"][0] / 8

    state, opt_state, history = nn.unbox(initial_model_state(config)), tx.init(params), []
    for i in range(60):
        key = jax.random.fold_in(jax.random.key(2), i)
        params, state, opt_state, reconstruction = step(params, state, opt_state, key)
        history.append(float(reconstruction))
    assert history[-1] < 0.1 * history[0], (history[0], history[-1])


def test_the_same_pixels_are_the_same_floats_in_every_program():
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    expected = pixels.astype(np.float32) / 127.5 - 1
    for found in (
        normalized(pixels),
        jax.jit(normalized)(pixels),
        jax.jit(lambda x: normalized(x) * 1.0)(pixels),
    ):
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected)
