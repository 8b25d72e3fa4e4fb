"""`synth2 encode_captions`, training on what it writes, and captions for such a generator.

Legend: B batch, T text tokens, t those of one caption, E text width.
"""

import dataclasses
import functools
import json
import pathlib
import types

import jax
import ml_dtypes
import numpy as np
import pytest
import sentencepiece

from synth2_jax import config as config_lib
from synth2_jax import sharding
from synth2_jax.data import records, views
from synth2_jax.data.pipeline import DataConfig
from synth2_jax.fingerprint import fingerprint
from synth2_jax.interop.lazy_array import of_array
from synth2_jax.loading import text_encoders
from synth2_jax.loading.text_encoders import (
    LoadedTextEncoder,
    load_text_encoder,
    with_text_encoder,
)
from synth2_jax.loading.trained import load_trained
from synth2_jax.models.text_encoder import TextEncoder, TextEncoderConfig
from synth2_jax.sampling.parallel_decode import ParallelDecodeConfig
from synth2_jax.stages import encode_captions
from synth2_jax.stages.encode_captions import EncodeCaptionsConfig
from synth2_jax.synthesis import caption_encoder
from synth2_jax.synthesis.stream import StreamConfig, StreamedBatches
from synth2_jax.synthesis.token_generator import SynthesizeConfig, TokenGenerator
from synth2_jax.testing.user_errors import raises_line
from synth2_jax.text.caption_ids import text_ids
from synth2_jax.text.vocabulary import load_vocabulary, vocabulary_path
from synth2_jax.training.checkpoint_reader import read_description, saved_arrays
from synth2_jax.training.objectives import make_objective

pytestmark = pytest.mark.slow  # they share one chain of small runs, which takes a minute

LENGTH = 26  # of a caption in Scenes' configs
SCENES = vocabulary_path("scenes")
T5X = pathlib.Path(__file__).parents[1] / "data" / "t5x"  # of 128 embeddings, see interop's tests
T5X_SIZES = {
    **{"vocab_size": 128, "num_layers": 2, "embed_dim": 32, "num_heads": 2, "head_dim": 16},
    "mlp_dim": 128,
}


def training(chain, workdir, encoded, **overrides):
    keys = {
        "model__freeze_text_encoder": True,
        "model__stored_text_features": True,
        "data__folders__real": encoded,
        "pretrained__text_encoder": "CHAIN/generator",
    }
    return chain.training("generator", workdir, **{**keys, **overrides})


@pytest.fixture(scope="module")
def encoder(chain):
    return load_text_encoder(chain.path("generator"))


@pytest.fixture(scope="module")
def encoded(chain, tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoded")
    chain.run(chain.encoding(folder))
    return folder


@pytest.fixture(scope="module")
def stored(chain, encoded, tmp_path_factory):
    """The workdir of a generator that was trained on stored features."""
    workdir = tmp_path_factory.mktemp("stored")
    chain.run(training(chain, workdir, encoded))
    return workdir


@pytest.fixture(scope="module")
def other_generator(chain, tmp_path_factory):
    """The workdir of a generator with another text encoder."""
    workdir = tmp_path_factory.mktemp("other")
    chain.run(chain.training("generator", workdir, train__seed=1, train__steps=1))
    return workdir


# --- what is written ---


def test_pairs_are_as_they_were_with_the_encoders_output(chain, encoded, encoder):
    before = list(records.read_pairs(chain.path("pairs", "real")))
    after = list(records.read_pairs(encoded, text_features=True))
    assert len(before) == len(after) > 16
    texts = text_ids([pair.caption for pair in before], load_vocabulary("scenes"), LENGTH + 5)
    encode = jax.jit(functools.partial(TextEncoder(encoder.config).apply, deterministic=True))
    expected = np.asarray(encode({"params": encoder.params}, texts, texts != 0))
    for one, other, features_TE, text_T in zip(before, after, expected, texts, strict=True):
        assert (one.key, one.caption, one.source) == (other.key, other.caption, other.source)
        np.testing.assert_array_equal(one.image_tokens, other.image_tokens)
        found = other.text_features
        assert found.dtype == ml_dtypes.bfloat16
        assert found.shape == (np.count_nonzero(text_T), encoder.config.embed_dim)
        # Padded to another length, in other batches: to the rounding of bfloat16.
        np.testing.assert_allclose(
            found.astype(np.float32), features_TE[: len(found)], rtol=2**-8, atol=1e-5
        )


def test_the_manifest_tells_what_encoded_them(chain, encoded, encoder):
    source, found = (records.verify(f) for f in (chain.path("pairs", "real"), encoded))
    told = found.provenance.text_encoder
    assert told["fingerprint"] == fingerprint(encoder.params)
    assert (told["width"], told["text_length"]) == (encoder.config.embed_dim, LENGTH)
    assert told["pairs"] == source.fingerprint
    expected = dataclasses.replace(
        source.provenance, text_encoder=told, config=found.provenance.config
    )
    assert found.provenance == expected
    assert found.counts == source.counts
    assert [s.num_pairs for s in found.shards] == [s.num_pairs for s in source.shards]


def test_killed_and_resumed_equals_a_straight_run(chain, encoded, tmp_path, monkeypatch):
    calls = iter(range(100))

    def stops_in_the_second_shard(*args):
        if next(calls) == 6:
            raise SystemExit(137)
        return text_ids(*args)

    monkeypatch.setattr(caption_encoder, "text_ids", stops_in_the_second_shard)
    with pytest.raises(SystemExit):
        chain.run(chain.encoding(tmp_path))
    monkeypatch.undo()
    (first,) = chain.shards(tmp_path)
    time = (tmp_path / first).stat().st_mtime_ns
    chain.run(chain.encoding(tmp_path))
    assert chain.shards(tmp_path) == chain.shards(encoded)
    assert (tmp_path / first).stat().st_mtime_ns == time
    # And a shard that is lost later comes out as it was.
    (tmp_path / first).unlink()
    chain.run(chain.encoding(tmp_path))
    assert chain.shards(tmp_path) == chain.shards(encoded)


def test_processes_share_the_shards(chain, encoded, tmp_path, run_in_processes):
    run_in_processes(chain.encoding(tmp_path), devices=1)
    assert chain.shards(tmp_path) == chain.shards(encoded)
    assert records.verify(tmp_path).fingerprint == records.verify(encoded).fingerprint


def test_of_a_view_its_rows_alone_are_encoded(chain, encoded, tmp_path):
    rows = [[[0, 2], [3, 3]], []]
    view = views.write_view(
        tmp_path / "view", chain.path("pairs", "real"), rows, block=4, chosen={}
    )
    chain.run(chain.encoding(tmp_path / "out", pairs=view.folder))
    whole = list(records.read_pairs(encoded, text_features=True))
    found = list(records.read_pairs(tmp_path / "out", text_features=True))
    assert [pair.key for pair in found] == [f"{whole[0].key}+{whole[2].key}", whole[3].key]
    np.testing.assert_array_equal(found[0].image_tokens, whole[2].image_tokens)
    for one, row in zip(found, (0, 3), strict=True):
        np.testing.assert_array_equal(one.text_features, whole[row].text_features)


def test_encoded_again_by_another_encoder(chain, encoded, other_generator, tmp_path, mistake):
    again = chain.encoding(encoded, text_encoder=other_generator)
    assert "found pairs of text_encoder" in mistake(again)
    chain.run(chain.encoding(tmp_path, text_encoder=other_generator, pairs=encoded))
    one, other = (
        next(iter(records.read_pairs(folder, text_features=True))) for folder in (encoded, tmp_path)
    )
    assert one.text_features.shape == other.text_features.shape
    assert (one.text_features != other.text_features).any()


def test_mistakes(chain, stored, tmp_path, mistake):
    pairs = chain.path("pairs", "real")
    line = mistake(chain.encoding(pairs))
    assert line == f"--workdir={pairs}: the pairs lie there, expected another folder"
    line = mistake(chain.encoding(tmp_path, text_encoder=stored))
    told = f"--config.text_encoder: the generator in {stored} reads stored features and has no text"
    assert line.startswith(told) and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "change, line",
    [
        ({"vocabulary": ""}, "--config.vocabulary: empty, and T5 does not say it either"),
        ({"text_length": None}, "--config.text_length: empty, and T5 does not say it either"),
        ({}, f"vocabulary {SCENES}: found 512 pieces, but the text encoder in T5 has 8 embeddings"),
    ],
)
def test_text_that_does_not_fit_an_encoder(change, line):
    """Of an encoder whose folder knows no vocabulary, as a pretrained one's."""
    sizes = {"num_layers": 1, "embed_dim": 4, "num_heads": 1, "head_dim": 4, "mlp_dim": 4}
    loaded = LoadedTextEncoder(TextEncoderConfig(vocab_size=8, **sizes), {})
    given = {"vocabulary": "scenes", "text_length": 8, **change}
    with raises_line(line):
        encode_captions._text_of(EncodeCaptionsConfig("pairs", "T5", **given), loaded)


def test_captions_are_encoded_by_a_t5_of_others(chain, tmp_path):
    captions = [pair.caption for pair in records.read_pairs(chain.path("pairs", "real"))]
    pieces = {"vocab_size": 60, "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    with open(tmp_path / "t5.model", "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(captions), model_writer=file, minloglevel=2, **pieces
        )
    folder, text = tmp_path / "encoded", {"vocabulary": tmp_path / "t5.model", "text_length": 12}
    model = {f"model__{name}": size for name, size in T5X_SIZES.items()}
    chain.run(chain.encoding(folder, text_encoder=T5X, **text, **model))
    found = next(records.read_pairs(folder, text_features=True)).text_features
    t5 = load_text_encoder(T5X, TextEncoderConfig(**T5X_SIZES))
    told = records.read_manifest(folder).provenance.text_encoder
    assert told["fingerprint"] == fingerprint(t5.params)
    ids_1T = text_ids(captions[:1], load_vocabulary(str(text["vocabulary"])), 12)
    encoder = TextEncoder(t5.config)
    expected = encoder.apply({"params": t5.params}, ids_1T, ids_1T != 0, deterministic=True)[0]
    np.testing.assert_allclose(
        found.astype(np.float32), expected[: len(found)], rtol=2**-8, atol=1e-5
    )


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_a_fingerprint_does_not_depend_on_how_an_encoder_is_stored_or_placed(monkeypatch, dtype):
    """Features are checked by it, wherever the encoder lies then."""
    config = TextEncoderConfig(**T5X_SIZES)
    whole = load_text_encoder(T5X, config).params
    rounded = jax.tree.map(lambda leaf: leaf.astype(dtype), whole)
    reader = types.SimpleNamespace(
        load_text_encoder=lambda path, config: jax.tree.map(of_array, rounded)
    )
    monkeypatch.setattr(text_encoders, "others_reader", lambda path, part: reader)
    mesh = sharding.make_mesh(sharding.MeshConfig(), jax.devices()[:1])
    found = [load_text_encoder("T5", config, mesh=on).params for on in (None, mesh)]
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {np.dtype(np.float32)}
    as_float32 = jax.tree.map(lambda leaf: leaf.astype(np.float32), rounded)
    assert {fingerprint(params) for params in found} == {fingerprint(as_float32)}


# --- training on it ---


def test_the_checkpoint_holds_no_encoder_and_tells_which_it_was(stored, encoder):
    assert not [name for name in saved_arrays(stored, 4) if "text_encoder" in name]
    _, built_on = read_description(stored, 4)
    assert built_on["text_encoder"] == fingerprint(encoder.params)


def test_losses_are_those_of_the_encoder_in_the_step(chain, stored, tmp_path):
    """Up to the rounding of features: the encoder of this chain is in float32."""
    frozen = {"model__freeze_text_encoder": True, "pretrained__text_encoder": "CHAIN/generator"}
    chain.run(chain.training("generator", tmp_path, **frozen))
    found, expected = chain.losses(stored), chain.losses(tmp_path)
    assert found.keys() == expected.keys() == {1, 2, 3, 4}
    for step, loss in expected.items():
        assert found[step] == pytest.approx(loss, rel=2e-4)


def test_training_resumed_equals_a_straight_run_wherever_the_encoder_was_named(
    chain, encoded, stored, tmp_path, monkeypatch
):
    monkeypatch.chdir(chain.root)
    for steps in (2, 4):
        named = {"pretrained__text_encoder": "generator", "train__steps": steps}
        chain.run(training(chain, tmp_path, encoded, **named))
    assert chain.losses(stored) == chain.losses(tmp_path) and len(chain.losses(stored)) == 4
    config, _ = read_description(tmp_path, 4)
    assert config["pretrained"]["text_encoder"] == str(chain.path("generator"))


def test_training_on_unfit_features_is_refused(chain, encoded, other_generator, tmp_path, mistake):
    plain = chain.path("pairs", "real")
    line = mistake(training(chain, tmp_path / "a", plain))
    assert "found captions without features" in line and "synth2 encode_captions" in line
    others = tmp_path / "encoded"
    chain.run(chain.encoding(others, text_encoder=other_generator))
    both = {"data__folders__z": others, "data__mixture": "both"}
    both |= {"data__rates__real": 1.0, "data__rates__z": 1.0}
    line = mistake(training(chain, tmp_path / "a", encoded, **both))
    assert line.startswith(f"--config.data.folders.z={others}: found features") and line.endswith(
        f"as in {encoded}"
    )
    width = {"model__generator__text_encoder__embed_dim": 16, "pretrained__text_encoder": ""}
    line = mistake(training(chain, tmp_path / "a", encoded, **width))
    assert line == (
        "batch['text_features']: found ((16, 26, 32), 'bfloat16'), expected ((16, 26, 16), "
        "'bfloat16')"
    )


# --- captions for it ---


def whole(chain, stored):
    """The same generator with the encoder in it, put together by hand."""
    trained = load_trained(stored, "generator")
    section = {**trained.config["model"], "stored_text_features": False}
    encoder = load_trained(chain.path("generator"), "generator").params["generator"]["text_encoder"]
    generator = {**trained.params["generator"], "text_encoder": encoder}
    params = {**trained.params, "generator": generator}
    objective = make_objective("generator", section)
    return dataclasses.replace(trained, objective=objective, params=params)


def test_synthesis_takes_the_encoder_that_training_named(chain, stored, tmp_path):
    chain.run(chain.synthesis(tmp_path, generator=stored))
    pairs = list(records.read_pairs(tmp_path))
    config = records.read_manifest(tmp_path).provenance.config
    generate = TokenGenerator(whole(chain, stored), config_lib.build(SynthesizeConfig, config))
    expected = generate([pair.caption for pair in pairs[:8]], range(8))
    np.testing.assert_array_equal([pair.image_tokens for pair in pairs[:8]], expected)
    # The fingerprint is that of the checkpoint, as `synth2 inspect` tells it.
    told = records.read_manifest(tmp_path).provenance.generator["fingerprint"]
    assert told == load_trained(stored, "generator").fingerprint("generator")


def test_another_encoder_is_refused_by_both_fingerprints(chain, stored, other_generator):
    trained = load_trained(stored, "generator")
    found = fingerprint(load_text_encoder(other_generator).params)
    expected = trained.built_on["text_encoder"]
    with raises_line(f"{other_generator} is text encoder {found}, expected {expected}, whose"):
        with_text_encoder(trained, other_generator)


def test_with_no_path_and_none_needed(chain, stored):
    trained = load_trained(chain.path("generator"), "generator")
    assert with_text_encoder(trained) is trained
    trained = load_trained(stored, "generator")
    unnamed = dataclasses.replace(trained, config={**trained.config, "pretrained": {}})
    with raises_line("--config.text_encoder: empty, expected the folder of text"):
        with_text_encoder(unnamed)


def test_a_stream_of_such_a_generator(chain, stored):
    tokenizer = load_trained(chain.path("tokenizer"), "tokenizer").fingerprint("tokenizer")
    sampler = ParallelDecodeConfig(num_steps=2)
    config = StreamConfig(str(stored), str(chain.path("captions")), share=1.0, sampler=sampler)
    stream = StreamedBatches(config, DataConfig(batch_size=8, text_length=LENGTH), tokenizer, None)
    assert next(stream)["image_tokens"].shape == (8, chain.num_tokens)
    # Where the encoder lies is no part of the stream's position.
    assert "text_encoder" not in json.loads(stream.get_state())["identity"]
