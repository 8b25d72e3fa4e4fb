"""Benchmarks of models: they count what the formulas say, and name what they cannot measure."""

import dataclasses
import math
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from benchmarks import (
    captioning,
    compiled_for_tpu,
    fused_attention,
    parallel_decoding,
    peer_idefics,
    tensor_groups,
    tokenizer,
    train_step,
)
from synth2_jax import config as config_lib
from synth2_jax import sharding
from synth2_jax.config import load_config
from synth2_jax.errors import UserError
from synth2_jax.models.vlm import VLM, VLMConfig
from synth2_jax.models.vq_tokenizer import VQTokenizerConfig, parameter_shapes
from synth2_jax.planning import model_flops
from synth2_jax.sampling.text_decode import TextDecodeConfig
from synth2_jax.stages import train
from synth2_jax.testing.tiny_configs import tiny
from synth2_jax.training.train_state import flatten

DECODE = TextDecodeConfig(method="greedy", max_length=5)


@pytest.mark.slow
def test_a_train_step_is_timed_and_its_flops_are_the_formulas():
    config = tiny("generator")
    found = train_step.measure(config, batch_size=2, steps=2, repeats=1)
    task = train.build(config)[1].task
    assert found["flops_per_step"] == model_flops.train_step(task, 2).total
    assert found["pairs_per_second"] == 2 * found["steps_per_second"] > 0
    rate = found["flops_per_step"] / found["seconds_per_step"]
    assert found["flops_per_second"] == pytest.approx(rate)


def test_a_batch_that_microbatches_cannot_share_is_one_line():
    with pytest.raises(UserError, match="found 3 rows, .* in each of 2 microbatches"):
        train_step.measure(tiny("generator"), batch_size=3, steps=1, repeats=1)


@pytest.mark.slow
def test_decoding_is_timed_at_each_number_of_steps():
    rows = parallel_decoding.measure(tiny("generator"), 2, [1, 2], scale=2.0)
    assert [row["num_steps"] for row in rows] == [1, 2]
    assert rows[1]["flops"] > rows[0]["flops"] and all(row["seconds"] > 0 for row in rows)


@pytest.mark.slow
def test_the_tokenizer_is_timed_both_ways_and_its_flops_are_the_formulas():
    config = tiny("tokenizer")
    config.model.tokenizer.update(codebook_size=32)
    found = tokenizer.measure(config, 2, repeats=1)
    built = config_lib.build(VQTokenizerConfig, config.model.tokenizer, "tokenizer")
    assert found["encode"]["flops"] == model_flops.encode_images(built, 2).total
    assert found["decode"]["flops"] == model_flops.decode_images(built, 2).total
    sizes = {path: leaf.size for path, leaf in parameter_shapes(built).items()}
    for way, other in (("encode", "decoder/"), ("decode", "encoder/")):
        row = found[way]
        assert row["images_per_second"] * row["seconds"] == pytest.approx(2)
        assert row["flops_per_second"] * row["seconds"] == pytest.approx(row["flops"])
        weights = sum(size for path, size in sizes.items() if not path.startswith(other))
        assert row["bytes"] == 4 * weights + 2 * (32 * 32 * 3 + 4 * 16)


# --- captions ---


@pytest.fixture(scope="module")
def vlm():
    sizes = {"num_layers": 2, "embed_dim": 8, "num_heads": 2, "head_dim": 4, "mlp_dim": 16}
    section = {
        "language_model": {**sizes, "vocab_size": 16, "scan_layers": False},
        "resampler": {**sizes, "num_layers": 1, "num_latents": 3, "scan_layers": False},
        "image_embedding_dim": 4,
        "num_image_tokens": 6,
        "cross_attention_every": 2,
    }
    return config_lib.build(VLMConfig, section)


@pytest.mark.slow
@pytest.mark.parametrize("method, batch_sizes", [("greedy", [3]), ("beam", [1, 3])])
def test_every_caption_has_its_full_length(vlm, method, batch_sizes):
    decode = dataclasses.replace(DECODE, method=method)
    rows = captioning.measure(vlm, batch_sizes, decode, repeats=1)
    assert [row["batch_size"] for row in rows] == batch_sizes
    for row in rows:
        assert row["tokens"] == row["batch_size"] * decode.max_length
        assert row["tokens_per_second"] * row["seconds"] == pytest.approx(row["tokens"])
        flops = model_flops.caption(vlm, row["batch_size"], len(captioning.PROMPT), decode)
        assert row["flops"] == flops.total


def test_bytes_are_the_weights_and_the_cache(vlm):
    inputs = jnp.zeros((1, 6, 4)), jnp.zeros((1, 2), jnp.int32)
    init = lambda key: VLM(vlm).init(key, *inputs, deterministic=True)["params"]  # noqa: E731
    params = nn.unbox(jax.eval_shape(init, jax.random.key(0)))

    def numbers(rows, length):
        decode = TextDecodeConfig(method="greedy", max_length=length)
        return captioning.least_bytes(params, vlm, rows, decode) // 4

    every = sum(leaf.size for leaf in flatten(params).values())
    # The first token comes with the prompt, which reads nothing that is kept.
    assert numbers(1, 1) == numbers(9, 1) == every
    once = flatten(params["resampler"]).values()
    keys_values = 2 * 8 * 8  # of one block
    again = every - sum(leaf.size for leaf in once) - keys_values
    # Keys and values: 3 latents in one block; start token, prompt and token itself in two layers.
    assert numbers(1, 2) == every + again + 2 * 8 * (3 + 2 * 4)
    assert numbers(2, 3) == every + 2 * again + 2 * 2 * 8 * (2 * 3 + 2 * (4 + 5))
    bfloat16 = dataclasses.replace(
        vlm, language_model=dataclasses.replace(vlm.language_model, dtype="bfloat16")
    )
    assert captioning.least_bytes(params, bfloat16, 1, DECODE) == 2 * numbers(1, 5)


# --- the fused attention; XLA's attention takes the kernel's place on a CPU ---


@pytest.fixture
def cases(monkeypatch):
    small = {"to itself": (8, 8), "to a caption": (8, 4), "text to text, causal": (6, 6)}
    monkeypatch.setattr(fused_attention, "CASES", small)
    return small


def test_masks_have_queries_and_rows_that_see_nothing(cases):
    assert fused_attention.mask_of("to itself", 3) is None
    caption = fused_attention.mask_of("to a caption", 5)
    assert caption[:, 0, 0].tolist()[:2] == [[False] * 4, [True] + [False] * 3]
    causal = fused_attention.mask_of("text to text, causal", 2)
    assert causal.sum(axis=-1).tolist() == [0, 1, 2, 3, 4, 5]


def test_a_kernel_that_is_ours_is_timed(cases):
    for case in cases:
        found = fused_attention.measure(case, 5, 2, 8, rounds=1, implementation="xla")
        assert 0 < found["fused_error"] < 0.05 and 0 < found["ours_error"] < 0.05
        figures = fused_attention.figures_of(case, "5 x 2 heads of 8", found)
        assert len(figures) == 2 and all(figure.value > 0 for figure in figures)


@pytest.mark.parametrize("wrong", ["shifted", "nan"])
def test_a_kernel_that_is_not_ours_is_named(cases, monkeypatch, wrong):
    def kernel(q, k, v, mask, implementation):
        out = fused_attention.dot_product_attention(q, k, v, mask=mask)
        return jnp.roll(out, 1, axis=1) if wrong == "shifted" else out * math.nan

    monkeypatch.setattr(fused_attention, "fused_attention", kernel)
    with pytest.raises(UserError, match="to a caption: the fused attention is .* from float32's"):
        fused_attention.measure("to a caption", 5, 2, 8, rounds=1)


def test_a_device_without_it_is_told(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["fused_attention.py"])
    with pytest.raises(UserError, match=r"cpu, head dim 64: has no fused attention"):
        fused_attention.main()


# --- the TPU compiler ---


def test_figures_of_a_compiled_step():
    case = compiled_for_tpu.Case("vlm", "v5e:4x4", "data=4,fsdp=4", 64)
    plan = {
        "flops_ratio": 1.02,
        "collective_bytes_per_chip": 4e6,
        "gathered_bytes_per_chip": {"activations": 2e6, "ids": 5e3},
        "overlapped_share": 0.75,
    }
    assert [str(figure) for figure in compiled_for_tpu.step_figures(case, plan)] == [
        "compiled / model FLOPs, vlm, v5e:4x4, data 4 fsdp 4: 1.02 x; asked: <= 1.05",
        "gathers of activations, vlm, v5e:4x4, data 4 fsdp 4: 2 MB; of 4 MB a chip sends, "
        "0.005 MB for ids of tokens; asked: 0",
        "collectives beside matrix products, vlm, v5e:4x4, data 4 fsdp 4: 75 %; of 4 MB a chip "
        "sends",
    ]


@pytest.mark.parametrize(
    "loops, instructions, expected",
    [
        ([[24, 8], [24, 24]], [1000, 1000], "1 x; 1000 instructions; rounds of loops: 8 -> 24"),
        ([[24], [24]], [1000, 3000], "3 x; 3000 instructions; rounds of loops: none change"),
    ],
)
def test_a_sampler_that_is_no_loop_shows(loops, instructions, expected):
    found = [
        {"num_steps": steps, "loops": rounds, "instructions": number}
        for steps, rounds, number in zip((8, 24), loops, instructions, strict=True)
    ]
    figure = str(compiled_for_tpu.sampler_figure("v5e:2x2", found))
    assert figure == f"sampler's program, 24 over 8 steps, v5e:2x2: {expected}"


def test_the_papers_layouts_are_there():
    layouts = {
        (case.name, tuple(part.split("=")[0] for part in case.mesh.split(",")))
        for case in compiled_for_tpu.CASES
    }
    axes = (("data",), ("fsdp",), ("data", "fsdp"))
    assert layouts == {(name, layout) for name in ("vlm", "generator") for layout in axes}


def test_an_unknown_name_is_told(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["compiled_for_tpu.py", "--only=vml"])
    with pytest.raises(UserError) as error:
        compiled_for_tpu.main()
    expected = "--only: unknown 'vml'; did you mean 'vlm'? one of: generator, sampler, vlm"
    assert str(error.value) == expected


@pytest.mark.slow
def test_a_small_step_is_compiled():
    case = compiled_for_tpu.Case("vlm", "v5e:2x2", "data=2,fsdp=2", 64)
    config = load_config("configs/scenes/vlm.py:tiny")
    found = compiled_for_tpu.measure(config, case.topology, case.mesh, case.batch)
    ratio, activations, overlap = compiled_for_tpu.step_figures(case, found)
    assert 0.98 < ratio.value < 1.1
    assert 0 <= activations.value < found["collective_bytes_per_chip"] / 1e6
    assert 0 <= overlap.value <= 100


@pytest.mark.slow
def test_a_small_sampler_is_one_loop_over_its_steps():
    configs = [load_config(f"configs/scenes/{n}") for n in ("generator.py:tiny", "synthesize.py")]
    mesh = sharding.MeshConfig()
    found = compiled_for_tpu.measure_sampler(*configs, "v5e:2x2", mesh, 64, (5, 7))
    assert [row["loops"].count(row["num_steps"]) for row in found] == [1, 1]
    assert found[0]["instructions"] == found[1]["instructions"]


# --- tensor groups ---


def test_runs_of_tensor_groups_stand_side_by_side():
    one, other = [{"loss": 8.0, "grad_norm": 0.5}], [{"loss": 8.0, "grad_norm": 0.5005}]
    lines, largest = tensor_groups.table({(1, 1): one, (1, 2): one, (2, 1): other})
    assert [line.split() for line in lines[1:]] == [
        ["step", "1", "loss", "8.000000", "8.000000", "8.000000"],
        ["step", "1", "grad_norm", "0.500000", "0.500000", "0.500500"],
    ]
    assert lines[0].split("  ")[-1].strip() == "2 x 1, tensor=2"
    assert largest == pytest.approx(1e-3) and largest > tensor_groups.LIMIT


# --- beside Idefics: equal sizes on both sides, which both train and write ---

TINY = ("--layers=2", "--width=24", "--heads=2", "--mlp=48", "--every=2", "--latents=3")
TINY += ("--image-tokens=4", "--vocabulary=32", "--text=6", "--batch=2", "--steps=4")
TINY += ("--microbatches=1,2",)


@pytest.fixture(scope="module", params=[1, 2])
def sides(request):
    """Whole batches, and in two microbatches."""
    given = peer_idefics.parse(list(TINY))
    return peer_idefics.ours(given, request.param), peer_idefics.idefics(given, request.param)


@pytest.mark.parametrize("parts", [0, 3])
def test_microbatches_that_do_not_divide_the_batch_are_one_line(parts):
    with pytest.raises(UserError, match=f"found {parts}, expected a divisor of the batch of 2"):
        peer_idefics.measure(peer_idefics.parse([*TINY, f"--microbatches=1,{parts}"]))


@pytest.mark.slow
@pytest.mark.interop
def test_both_sides_have_as_many_parameters_learn_their_batch_and_write_whole_captions(sides):
    ours, idefics = sides
    assert ours.frozen == idefics.frozen
    codes, positions = 24 * 24, 4 * 24  # what Idefics lacks: projection and positions of codes
    assert ours.trained - codes - positions == pytest.approx(idefics.trained, rel=0.01)
    for side in sides:
        first, *_, last = (side.train() for _ in range(6))
        assert last < first
        ids_BT = side.caption()
        assert ids_BT.shape == (2, 4) and ((ids_BT >= 0) & (ids_BT < 32)).all()


@pytest.mark.slow
@pytest.mark.interop
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_ratios_are_of_the_rates(dtype):
    found = peer_idefics.measure(
        peer_idefics.parse([*TINY, f"--dtype={dtype}", "--steps=1", "--repeats=1"])
    )
    for rate in ("steps_per_second", "tokens_per_second"):
        ours, idefics = found["ours"][rate], found["idefics"][rate]
        assert found[f"{rate}_ratio"] == ours / idefics > 0
    for side in (found["ours"], found["idefics"]):
        rates = side["steps_per_second_by_microbatches"]
        assert rates.keys() == {1, 2} and side["steps_per_second"] == max(rates.values())
        assert rates[side["microbatches"]] == max(rates.values())
