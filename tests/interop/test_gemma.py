"""Gemma against the package `gemma` and against transformers, on random weights of theirs.

The sizes are small, and so is the window: the texts are longer than it.
"""

import dataclasses
import functools
import importlib.metadata
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import traverse_util

from synth2_jax import sharding
from synth2_jax.caption_writing.drafts import Request
from synth2_jax.caption_writing.language_model import LanguageModelSource
from synth2_jax.errors import UserError
from synth2_jax.interop.gemma import language_model_config, load_language_model
from synth2_jax.models.gemma import RELEASED, GemmaConfig
from synth2_jax.models.language_model import init_cache
from synth2_jax.models.resampler import ResamplerConfig
from synth2_jax.models.vlm import VLM, VLMConfig
from synth2_jax.models.vq_tokenizer import VQTokenizerConfig
from synth2_jax.sampling.captions import make_caption
from synth2_jax.sampling.text_decode import TextDecodeConfig
from synth2_jax.testing.chat_vocabulary import chat_vocabulary
from synth2_jax.text.prompts import CHAT_CLASS_PROMPT
from synth2_jax.training.objectives import VLMObjective
from synth2_jax.training.tasks import VLMTask
from synth2_jax.training.train_state import create_train_state, state_layout

pytestmark = pytest.mark.interop

SMALL = GemmaConfig(
    vocab_size=53,
    num_layers=4,
    embed_dim=24,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    mlp_dim=40,
    sliding_window=4,
    local_layers=1,
    global_rope_scale=8.0,
    dtype="float32",
)
TOKENS = jax.random.randint(jax.random.key(2), (2, 13), 3, 53).at[:, 0].set(0)
IMAGES = jax.random.normal(jax.random.key(1), (2, 6, 5))  # B=2, N=6, C=5


@pytest.fixture(scope="module")
def gm():
    """The package; of what its checkpoints need, newer kauldrons have renamed one base class."""
    from gemma import gm
    from kauldron import kd

    if not hasattr(kd.ckpts, "AbstractPartialLoader"):
        kd.ckpts.AbstractPartialLoader = kd.ckpts.InitTransform
    return gm


@pytest.fixture(scope="module")
def package():
    return f"gemma {importlib.metadata.version('gemma')}"


def vlm_config(language_model=SMALL, every=2):
    sizes = dict(num_heads=2, head_dim=4, mlp_dim=16)
    return VLMConfig(
        language_model,
        ResamplerConfig(num_layers=1, embed_dim=12, num_latents=3, **sizes),
        image_embedding_dim=5,
        num_image_tokens=6,
        cross_attention_every=every,
    )


def init(cfg):
    return VLM(cfg).init(jax.random.key(0), IMAGES, TOKENS, deterministic=True)


@functools.partial(jax.jit, static_argnums=0)
def apply(cfg, variables, images=IMAGES, tokens=TOKENS):
    return VLM(cfg).apply(variables, images, tokens, deterministic=True)


@functools.partial(jax.jit, static_argnums=0)
def step(cfg, variables, tokens, cache, visual):
    return VLM(cfg).apply(variables, tokens, cache, visual, method="step")


def drawn(shapes):
    """Parameters as after training: no norm is the identity, and no two weights are alike."""
    leaves, tree = jax.tree.flatten(nn.unbox(shapes))
    rng = np.random.default_rng(0)
    return tree.unflatten(
        jnp.asarray(0.3 * rng.standard_normal(leaf.shape), leaf.dtype) for leaf in leaves
    )


@functools.cache
def variables_of(cfg, attention_gate=0.0, mlp_gate=0.0):
    """With gates as initialized, or at values as after training."""
    params = drawn(jax.eval_shape(lambda: init(cfg))["params"])
    gates = {"attention_gate": jnp.float32(attention_gate), "mlp_gate": jnp.float32(mlp_gate)}
    blocks = {name: {**block, **gates} for name, block in params["cross_attention"].items()}
    return {"params": {**params, "cross_attention": blocks}}


closed = variables_of
opened = functools.partial(variables_of, attention_gate=0.9, mlp_gate=-0.7)


def to_package(params):
    """The package's tree of our language model's parameters."""
    flat = traverse_util.flatten_dict(params, sep="/")
    return traverse_util.unflatten_dict(
        {
            re.sub(r"^decoder/layers_(\d+)/block/", r"layer_\1/", name): x
            for name, x in flat.items()
        },
        sep="/",
    )


def plain(gm, cfg):
    """The package's own Gemma of these sizes."""
    kinds = gm.nn.AttentionType
    config = gm.nn.config.TransformerConfig(
        num_embed=cfg.vocab_size,
        embed_dim=cfg.embed_dim,
        hidden_dim=cfg.mlp_dim,
        num_heads=cfg.num_heads,
        head_dim=cfg.head_dim,
        num_kv_heads=cfg.num_kv_heads,
        final_logit_softcap=None,
        use_post_attn_norm=True,
        use_post_ffw_norm=True,
        use_qk_norm=True,
        attention_types=gm.nn.config.make_attention_layers_types(
            (kinds.LOCAL_SLIDING,) * cfg.local_layers + (kinds.GLOBAL,), num_layers=cfg.num_layers
        ),
        sliding_window_size=cfg.sliding_window,
        transpose_gating_einsum=True,
        local_base_frequency=10_000,
        global_base_frequency=1_000_000,
        global_scale_factor=cfg.global_rope_scale,
    )
    return gm.nn.Transformer(config=config, dtype=jnp.dtype(cfg.dtype), tokens="tokens")


def with_bos(tokens):
    return tokens.at[:, 0].set(2)


# --- the model ---


def test_released_sizes_are_the_packages(gm):
    for name, model in (("270m", "Gemma3_270M"), ("1b", "Gemma3_1B"), ("4b", "Gemma3_4B")):
        ours, theirs = RELEASED[name], getattr(gm.nn, model).config
        made = dataclasses.asdict(plain(gm, ours).config)
        expected = dataclasses.asdict(dataclasses.replace(theirs, vision_encoder=None))
        assert made == expected


@pytest.mark.parametrize(
    ("dtype", "num_kv_heads"), [("float32", 1), ("float32", 2), ("float32", 4), ("bfloat16", 2)]
)
def test_with_gates_at_0_the_logits_are_plain_gemmas(gm, package, parity, dtype, num_kv_heads):
    cfg = vlm_config(dataclasses.replace(SMALL, dtype=dtype, num_kv_heads=num_kv_heads))
    variables = closed(cfg)
    model = plain(gm, cfg.language_model)
    params = to_package(variables["params"]["language_model"])
    with jax.disable_jit():  # exactly, once XLA does not fuse the two programs differently
        theirs = model.apply({"params": params}, with_bos(TOKENS)).logits
        ours = apply(cfg, variables)
    assert theirs.dtype == dtype and ours.dtype == jnp.float32 and np.std(ours) > 0.1
    parity(
        f"VLM on Gemma, gates at 0, {dtype}, {num_kv_heads} of 4 heads of keys: logits",
        package,
        "max abs difference",
        np.abs(ours - theirs.astype(jnp.float32)).max(),
        0.0,
    )


def test_open_gates_let_the_texts_own_image_in_and_without_one_it_is_plain_gemma(gm):
    cfg = vlm_config()
    variables = opened(cfg)
    logits = apply(cfg, variables)
    assert np.abs(apply(cfg, closed(cfg)) - logits).max() > 1e-2
    changed = np.abs(apply(cfg, variables, IMAGES.at[1].set(0.0)) - logits).max((1, 2))
    assert changed[0] == 0 and changed[1] > 1e-2
    params = to_package(variables["params"]["language_model"])
    with jax.disable_jit():
        theirs = plain(gm, SMALL).apply({"params": params}, with_bos(TOKENS)).logits
        np.testing.assert_array_equal(apply(cfg, variables, images=None), theirs)


def test_a_start_token_0_is_read_as_bos_and_padding_changes_nothing_before_it():
    cfg = vlm_config()
    logits = apply(cfg, opened(cfg))
    np.testing.assert_array_equal(apply(cfg, opened(cfg), tokens=with_bos(TOKENS)), logits)
    assert np.abs(apply(cfg, opened(cfg), tokens=TOKENS.at[:, 0].set(3)) - logits).max() > 1e-2
    padded = jnp.pad(TOKENS, ((0, 0), (0, 3)))
    np.testing.assert_allclose(apply(cfg, opened(cfg), tokens=padded)[:, :13], logits, atol=1e-5)


@pytest.mark.parametrize("first", [1, 9])  # 9: a prompt longer than the window
def test_cached_equals_uncached(package, parity, first):
    cfg = vlm_config()
    variables = opened(cfg)
    visual = VLM(cfg).apply(variables, IMAGES, method="visual")
    cache = init_cache(SMALL, 2, max_length=15)
    logits, cache = step(cfg, variables, TOKENS[:, :first], cache, visual)
    parts = [logits]
    for t in range(first, 13):
        logits, cache = step(cfg, variables, TOKENS[:, t : t + 1], cache, visual)
        parts.append(logits)
    parity(
        f"VLM on Gemma with a cache, a prompt of {first} tokens and a window of 4: logits",
        "the same without a cache",
        "max abs difference",
        np.abs(jnp.concatenate(parts, axis=1) - apply(cfg, variables)).max(),
        1e-5,
    )


def test_our_cache_is_as_good_as_the_packages_own(gm, package, parity):
    """Token by token, each with its own cache."""
    cfg = vlm_config()
    variables = closed(cfg)
    model = plain(gm, SMALL)
    params = {"params": to_package(variables["params"]["language_model"])}
    theirs_cache = model.config.init_cache(2, jnp.float32, cache_length=13)
    cache, worst = init_cache(SMALL, 2, max_length=13), 0.0
    for t in range(13):
        out = model.apply(
            params,
            with_bos(TOKENS)[:, t : t + 1],
            cache=theirs_cache,
            positions=jnp.full((2, 1), t),
            attention_mask=jnp.broadcast_to(jnp.arange(13) <= t, (2, 1, 13)),
        )
        theirs_cache = out.cache
        logits, cache = step(cfg, variables, TOKENS[:, t : t + 1], cache, None)
        worst = max(worst, np.abs(logits - out.logits).max())
    parity("Gemma, token by token with a cache", package, "max abs difference", worst, 1e-5)


def test_remat_equals_plain_and_gates_learn():
    cfg = vlm_config()

    def loss(variables, cfg):
        return jnp.mean(VLM(cfg).apply(variables, IMAGES, TOKENS, deterministic=True) ** 2)

    run = jax.jit(jax.grad(loss), static_argnums=1)
    of = dataclasses.replace(cfg, language_model=dataclasses.replace(SMALL, remat="full"))
    gradients = run(closed(cfg), cfg)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        gradients,
        run(closed(cfg), of),
    )
    for block in gradients["params"]["cross_attention"].values():
        assert np.abs(block["attention_gate"]) > 0 and np.abs(block["mlp_gate"]) > 0


@pytest.mark.parametrize("num_kv_heads", [1, 4])
def test_every_parameter_has_names_of_the_table(num_kv_heads):
    language_model = dataclasses.replace(SMALL, num_kv_heads=num_kv_heads, dtype="bfloat16")
    params = jax.eval_shape(lambda: init(vlm_config(language_model)))["params"]
    sharding.check_named(params)
    is_box = lambda leaf: isinstance(leaf, nn.LogicallyPartitioned)  # noqa: E731
    for box in jax.tree.leaves(params["language_model"], is_leaf=is_box):
        assert box.value.dtype == jnp.bfloat16
        assert {name for name in box.names if name} <= dict(sharding.AXIS_RULES).keys()
        # All but the axis over matrices that are one array.
        assert sum(name is None for name in box.names) == (box.value.shape[0] in (2, 3))


def test_on_a_mesh_the_large_parameters_are_split():
    mesh = jax.sharding.AbstractMesh((1, 2, 2), sharding.MESH_AXES)
    params = jax.eval_shape(lambda: init(vlm_config(dataclasses.replace(SMALL, vocab_size=56))))
    flat = traverse_util.flatten_dict(params["params"]["language_model"], sep="/")
    for path, box in flat.items():
        spec = sharding.partition_spec(box.names, box.value.shape, mesh)
        split = {axis for part in spec for axis in np.atleast_1d(part or ()).tolist()}
        expected = {"fsdp", "tensor"} if box.value.ndim > 1 else {"fsdp"}
        assert split == (set() if "kv" in box.names[:1] else expected), path


def test_beams_reorder_the_cache():
    cfg = vlm_config()
    caption = make_caption(VLM(cfg), [7], TextDecodeConfig(max_length=4, length_penalty=0.0))
    ids_BT, scores_B = jax.jit(caption)(opened(cfg)["params"], IMAGES)
    text = jnp.concatenate([jnp.tile(jnp.array([0, 7]), (2, 1)), ids_BT], axis=1)
    logits = apply(cfg, opened(cfg), tokens=text)[:, 1:-1].at[..., 0].set(-jnp.inf)
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), ids_BT[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(scores_B, jnp.where(ids_BT == 0, 0.0, picked).sum(-1), atol=1e-4)


# --- checkpoints ---


def equal(lazy, params):
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, lazy), params)


@pytest.fixture(scope="module")
def trained():
    """Parameters of SMALL."""
    return jax.tree.map(np.asarray, closed(vlm_config())["params"]["language_model"])


@pytest.fixture
def saved(gm, trained, tmp_path):
    """A folder as the package saves it."""
    gm.ckpts.save_params(to_package(trained), tmp_path / "gemma", wait_until_finished=True)
    return tmp_path / "gemma"


def test_what_the_package_saves_is_loaded(gm, trained, saved):
    equal(load_language_model(saved, SMALL), trained)
    equal(gm.ckpts.load_params(saved), to_package(trained))


@pytest.mark.parametrize("layout", ["flat", "stacked"])
def test_layouts_of_released_checkpoints_are_loaded(gm, trained, tmp_path, layout):
    from gemma.gm.ckpts import _checkpoint

    tree = to_package(trained)
    if layout == "flat":
        tree = _checkpoint._nested_to_flat(tree)
    else:
        tree = _checkpoint._nested_to_stacked(tree, SMALL.local_layers + 1)
    assert any("/" in name for name in tree)
    gm.ckpts.save_params(tree, tmp_path / "gemma", wait_until_finished=True)
    equal(load_language_model(tmp_path / "gemma", SMALL), trained)


def test_what_does_not_fit_is_listed_in_full(saved):
    with pytest.raises(UserError, match=r"'embed_dim': 24.* expected a size that was released: \["):
        language_model_config(saved)
    with pytest.raises(UserError) as error:
        load_language_model(saved, dataclasses.replace(SMALL, num_layers=6, mlp_dim=41))
    assert str(error.value).count("layer_5/") == 11
    assert str(error.value).count("[2, 40, 24] for decoder/") == 4
    with pytest.raises(UserError, match=f"{2 * 11} unknown"):
        load_language_model(saved, dataclasses.replace(SMALL, num_layers=2))
    (saved / "manifest.ocdbt").unlink()
    with pytest.raises(UserError, match=str(saved)):
        load_language_model(saved, SMALL)


def hugging_face_config(**changes):
    from transformers import Gemma3TextConfig

    sizes = dict(
        vocab_size=53,
        num_hidden_layers=4,
        hidden_size=24,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=40,
        sliding_window=4,
        sliding_window_pattern=2,
        query_pre_attn_scalar=8,
        rope_scaling={"rope_type": "linear", "factor": 8.0},
        attn_implementation="eager",
    )
    return Gemma3TextConfig(**{**sizes, **changes})


@pytest.fixture
def theirs(request):
    """A random Gemma3ForCausalLM, its norms no identities."""
    import torch
    from transformers import Gemma3ForCausalLM

    torch.manual_seed(0)
    model = Gemma3ForCausalLM(hugging_face_config(**getattr(request, "param", {}))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize(
    "theirs",
    [
        {"num_key_value_heads": 1, "sliding_window": 3},
        {"num_key_value_heads": 4, "query_pre_attn_scalar": 6},
        {"num_hidden_layers": 5, "rope_scaling": None, "hidden_size": 40},
    ],
    indirect=True,
)
@pytest.mark.parametrize("max_shard_size", ["5GB", "20KB"])
def test_hugging_face(theirs, tmp_path, parity, max_shard_size):
    import torch
    import transformers

    theirs.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (max_shard_size == "20KB")
    config = language_model_config(tmp_path, dtype="float32")
    params = jax.tree.map(jnp.asarray, load_language_model(tmp_path, config))
    ours = config.make().apply({"params": params}, TOKENS, deterministic=True)
    with torch.no_grad():
        expected = theirs(torch.tensor(np.array(with_bos(TOKENS)))).logits.numpy()
    assert expected.std() > 0.1
    parity(
        f"Gemma, {config.num_kv_heads} of 4 heads of keys, a window of {config.sliding_window}, "
        f"13 tokens, {'one file' if max_shard_size == '5GB' else 'sharded'}: logits",
        f"transformers {transformers.__version__}",
        "max abs difference",
        np.abs(ours - expected).max(),
        1e-4,
    )


def test_the_language_model_of_a_whole_gemma_is_found(tmp_path):
    """As the 4B is published: with a vision encoder, behind other names."""
    import torch
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    sizes = dict.fromkeys(("hidden_size", "intermediate_size", "image_size"), 8)
    layers = dict.fromkeys(("num_hidden_layers", "num_attention_heads"), 1)
    config = Gemma3Config(
        text_config=hugging_face_config().to_dict(),
        vision_config={**sizes, **layers, "patch_size": 4},
        mm_tokens_per_image=4,
        **dict(boi_token_index=50, eoi_token_index=51, image_token_index=52),
    )
    model = Gemma3ForConditionalGeneration(config).eval()
    model.save_pretrained(tmp_path)
    config = language_model_config(tmp_path, dtype="float32")
    params = jax.tree.map(jnp.asarray, load_language_model(tmp_path, config))
    ours = config.make().apply({"params": params}, jnp.clip(TOKENS, 0, 49), deterministic=True)
    with torch.no_grad():
        tokens = torch.tensor(np.array(with_bos(jnp.clip(TOKENS, 0, 49))))
        expected = model(tokens, token_type_ids=torch.zeros_like(tokens)).logits.numpy()
    np.testing.assert_allclose(ours, expected, atol=1e-4)


def test_a_config_json_as_transformers_4_wrote_it(tmp_path):
    """That of the 4B: what is not said is a default, and positions have their old names."""
    text = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    held = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3"}
    (tmp_path / "config.json").write_text(json.dumps({**held, "text_config": text}))
    expected = dataclasses.replace(RELEASED["4b"], vocab_size=262_208, query_dim=256)
    assert language_model_config(tmp_path) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_activation": "silu"}, "hidden_activation: found 'silu', expected 'gelu_pytorch"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping: found 30.0, expected None"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types: found"),
        ({"model_type": "gemma2"}, "found a Hugging Face gemma2, expected a Gemma 3"),
    ],
)
def test_variants_that_are_not_known_are_refused(tmp_path, change, message):
    held = {"model_type": "gemma3_text", **change}
    (tmp_path / "config.json").write_text(json.dumps(held))
    with pytest.raises(UserError, match=message):
        language_model_config(tmp_path)


def test_a_vlm_is_trained_on_what_was_loaded(trained, saved):
    tokenizer = VQTokenizerConfig(
        image_size=8,
        patch_size=4,
        filters=8,
        channel_multipliers=(1,),
        num_res_blocks=1,
        embedding_dim=5,
        codebook_size=16,
        norm_groups=1,
    )
    config = dataclasses.replace(vlm_config(), num_image_tokens=4)
    objective = VLMObjective(VLMTask(tokenizer, config, text_length=13))
    tx = optax.sgd(0.1)
    mesh = sharding.make_mesh(sharding.MeshConfig())
    layout = state_layout(objective, tx, mesh)
    loaded = {"vlm/language_model": load_language_model(saved, SMALL)}
    state = create_train_state(objective, tx, layout, 0, loaded)
    equal(state.params["vlm"]["language_model"], trained)
    batch = {
        "image_tokens": jnp.zeros((2, 4), jnp.int32),
        "text_tokens": TOKENS.at[:, 0].set(9),
        "loss_mask": jnp.ones((2, 13), bool),
        "is_synthetic": jnp.zeros(2, bool),
    }
    rngs = {"dropout": jax.random.key(0)}
    loss = jax.jit(functools.partial(objective.loss, train=True))
    metrics, _ = loss(state.params, batch, rngs, jnp.int32(0))
    assert np.isfinite(metrics["loss"][0]) and metrics["loss"][1] == 26


# --- captions in chats ---


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    return chat_vocabulary(tmp_path_factory.mktemp("vocabulary") / "chat.model")


@pytest.fixture(scope="module")
def writer(vocabulary):
    """`write(requests, batch_size)` by a small random Gemma."""
    config = dataclasses.replace(SMALL, vocab_size=vocabulary.size, num_layers=2)
    init = functools.partial(config.make().init, deterministic=True)
    params = drawn(jax.eval_shape(init, jax.random.key(0), TOKENS)["params"])
    decode = TextDecodeConfig(method="nucleus", max_length=6)
    sources = {}

    def write(requests, batch_size=3):
        if batch_size not in sources:  # each compiles anew
            sources[batch_size] = LanguageModelSource(
                config, params, vocabulary, decode, seed=0, batch_size=batch_size
            )
        drafts = sources[batch_size].write(requests)
        return {(draft.class_name, draft.draw): draft for draft in drafts}

    return write


def requests():
    return [
        Request(index, name, draw, CHAT_CLASS_PROMPT.format(class_name=name))
        for index, name in enumerate(("dog", "cat"))
        for draw in (0, 1)
    ]


def test_a_draft_depends_on_neither_batch_size_nor_company(writer):
    drafts = writer(requests())
    assert len({draft.caption for draft in drafts.values()}) == 4
    assert writer(requests()[::-1], batch_size=2) == drafts
    assert writer(requests()[2:3]) == {("cat", 0): drafts["cat", 0]}
