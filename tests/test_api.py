"""Captions and images without stages: what each depends on, and what may be given."""

import io
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import synth2_jax
from synth2_jax import api
from synth2_jax.data.images import encode_png
from synth2_jax.data.pipeline import DataConfig
from synth2_jax.sampling.guidance import GuidanceConfig
from synth2_jax.sampling.parallel_decode import ParallelDecodeConfig
from synth2_jax.sampling.text_decode import TextDecodeConfig
from synth2_jax.testing.untrained_runs import write_untrained_run
from synth2_jax.testing.user_errors import user_error
from synth2_jax.text.vocabulary import load_vocabulary

DECODE = TextDecodeConfig("greedy", max_length=4)
SAMPLER, GUIDANCE = ParallelDecodeConfig(num_steps=2, sample_temperature=3.0), GuidanceConfig(0.0)
CAPTIONS = ["a red circle", "a blue star", "two rings", "a large square on the left"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name in ("vlm", "generator"):
        write_untrained_run(folder / name, name)
    return folder


@pytest.fixture(scope="module")
def vlm(runs):
    return synth2_jax.load_vlm(runs / "vlm", batch_size=3, decode=DECODE)


@pytest.fixture(scope="module")
def generator(runs):
    return synth2_jax.load_generator(
        runs / "generator", batch_size=3, sampler=SAMPLER, guidance=GUIDANCE
    )


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8)


def test_a_caption_depends_on_its_image_alone(vlm, images):
    captions = vlm.caption(images)
    assert len(set(captions)) > 2
    order = [3, 1, 4, 0, 2, 3]
    assert vlm.caption(images[order]) == [captions[i] for i in order]
    assert [vlm.caption(image) for image in images] == captions
    assert vlm.caption([]) == []


def test_a_model_of_an_empty_prompt_captions(images, tmp_path):
    data = {"source": "fake", "prompt": "", "text_length": 12}
    write_untrained_run(tmp_path, "vlm", config={"data": data})
    vlm = synth2_jax.load_vlm(tmp_path, batch_size=5, decode=DECODE)
    assert len(set(vlm.caption(images))) > 2


def test_pictures_of_all_kinds(vlm, images, tmp_path):
    captions = vlm.caption(images)
    path, picture = tmp_path / "picture.png", Image.fromarray(images[0])
    path.write_bytes(encode_png(images[0]))
    several = [path, str(path), path.read_bytes(), Image.fromarray(images[1]), images[2]]
    assert vlm.caption(several) == [*[captions[0]] * 3, captions[1], captions[2]]
    for one in (str(path), path, picture, path.read_bytes()):  # one gives one
        assert vlm.caption(one) == captions[0]
    # EXIF that cannot be read does not cost the pixels.
    picture.save(path, exif=b"\0\x08\0\x02\x01\x12")
    assert vlm.caption(Image.open(path)) == vlm.caption(path) == captions[0]


def test_pictures_of_other_sizes_are_cut_and_scaled(vlm, images, tmp_path):
    wide = np.zeros((32, 48, 3), np.uint8)
    wide[:, 8:40] = images[3].repeat(2, axis=0).repeat(2, axis=1)
    square = Image.fromarray(wide[:, 8:40]).resize((16, 16), Image.Resampling.BICUBIC)
    (tmp_path / "wide.png").write_bytes(encode_png(wide))
    both = vlm.caption([Image.fromarray(wide), tmp_path / "wide.png"])
    assert both == [vlm.caption(np.asarray(square))] * 2
    assert isinstance(vlm.caption(Image.fromarray(images[0]).resize((3, 5))), str)


def test_what_is_no_picture_is_named(vlm, images, tmp_path):
    (tmp_path / "text.png").write_text("a red circle")
    cut_off = Image.open(io.BytesIO(encode_png(images[0])[:-40]))
    for given, message in (
        (images.astype(np.float32), r"images\[0\]: found float32\[16, 16, 3\], expected uint8"),
        ([images[0], images[1][:8]], r"images\[1\]: found uint8\[8, 16, 3\], expected uint8\[16, "),
        (tmp_path / "none.png", "none.png: expected a picture, found .*No such file"),
        (tmp_path / "text.png", "text.png: expected a picture, found not an image"),
        (tmp_path / "a\0.png", "expected a picture, found embedded null"),
        (Image.new("F", (16, 16)), r"images\[0\]: .* found unsupported pixels"),
        (Image.new("RGB", (0, 0)), r"images\[0\]: .* found image too small: 0x0 pixels"),
        ([b"GIF", images[0]], r"images\[0\]: .* found not an image: begins with b'GIF'"),
        (cut_off, r"images\[0\]: .* found corrupt image"),
        ([b""], r"images\[0\]: expected a picture, found not an image"),
        ([None], r"images\[0\]: found object\[\], expected uint8"),
        ([[[1], [2, 3]]], r"images\[0\]: expected a picture, found setting an array element"),
        (None, "images: found NoneType, expected a path, a picture or a list of them"),
        (3, "images: found int, expected"),
        (np.zeros((16, 16), np.uint8), "images: found ndarray, expected"),
        (iter([tmp_path]), "images: found list_iterator, expected"),
    ):
        with user_error(message):
            vlm.caption(given)


def test_an_image_depends_on_caption_seed_and_number_alone(generator):
    made = generator.generate(CAPTIONS, seed=7)
    assert made.tokens.dtype == np.int32 and len(made) == len(CAPTIONS)
    again = [generator.generate(c, seed=7, first=i).tokens[0] for i, c in enumerate(CAPTIONS)]
    np.testing.assert_array_equal(made.tokens, again)
    assert (generator.generate(CAPTIONS, seed=8).tokens != made.tokens).any()
    assert (generator.generate(CAPTIONS, seed=7, first=1).tokens != made.tokens).any()
    same = generator.generate([CAPTIONS[0]] * 6, seed=7).tokens
    assert len(np.unique(same, axis=0)) > 1


@pytest.mark.slow  # compiles another batch size
def test_images_are_those_of_the_stage(generator):
    from synth2_jax.synthesis.token_generator import SynthesizeConfig, TokenGenerator

    config = SynthesizeConfig("", "", sampler=SAMPLER, guidance=GUIDANCE, batch_size=4, seed=7)
    expected = TokenGenerator(generator.trained, config)(CAPTIONS, range(4))
    np.testing.assert_array_equal(generator.generate(CAPTIONS, seed=7).tokens, expected)


def test_embeddings_are_codes_and_images_come_when_they_are_asked_for(generator):
    from synth2_jax.loading.tokenizing import decode_images

    made = generator.generate(CAPTIONS)
    codebook = np.asarray(generator.trained.params["tokenizer"]["quantizer"]["codebook"])
    np.testing.assert_array_equal(made.embeddings, codebook[made.tokens])
    assert "images" not in vars(made)
    assert made.images.shape == (4, 16, 16, 3) and made.images.dtype == np.uint8
    assert made.images is made.images
    # They are those of `tokenize`.
    np.testing.assert_array_equal(made.images, decode_images(generator.trained, made.tokens))
    nothing = generator.generate([])
    assert nothing.tokens.shape == (0, 4) and nothing.embeddings.shape == (0, 4, 4)
    assert nothing.images.shape == (0, 16, 16, 3)


def test_captions_that_cannot_be_drawn_are_named(generator):
    for captions, message in (
        (["a star", ""], r"captions\[1\]: found '', expected a text"),
        (["a star", 3], r"captions\[1\]: found 3, expected a text"),
        ("\ud83d", r"captions\[0\]: found '.ud83d', expected a text"),
        (None, "captions: found None, expected a text or a list of texts"),
        (b"a star", "captions: found b'a star', expected a text or a list of texts"),
    ):
        with user_error(message):
            generator.generate(captions)
    wrong = [("seed", -1), ("seed", 2**32), ("first", -1), ("first", 2**32), ("seed", 0.5)]
    for key, number in [*wrong, ("seed", "1"), ("first", None)]:
        with user_error("expected each an integer from 0"):
            generator.generate("a star", **{key: number})


def test_captions_are_by_default_as_long_as_those_of_training(runs):
    vlm = synth2_jax.load_vlm(runs / "vlm")
    assert vlm.trained.objective.task.text_length == 12
    prompt = load_vocabulary("scenes").encode(DataConfig().prompt)
    assert vlm.decode == TextDecodeConfig(max_length=12 - len(prompt))
    assert isinstance(vlm, api.Captioner)  # by its former name too
    assert vlm.decode.max_length < TextDecodeConfig().max_length


def test_mistakes_in_loading(runs, tmp_path):
    for path, options, message in (
        (runs / "generator", {}, "generator: holds a generator, expected a vlm"),
        (tmp_path, {}, "expected checkpoint steps"),
        (tmp_path / "none", {}, "no such folder, expected the workdir"),
        ("", {}, "no path given, expected the workdir"),
        (runs / "vlm", {"batch_size": 0}, "batch_size: found 0, expected at least 1"),
        (runs / "vlm", {"decode": TextDecodeConfig("nucleus")}, "expected greedy or beam"),
    ):
        with user_error(message):
            synth2_jax.load_vlm(path, **options)
    with user_error("sampling steps: found 12, expected 1 to 4"):
        synth2_jax.load_generator(runs / "generator")


def test_the_package_itself_is_light_and_says_what_it_has():
    program = (
        "import sys, synth2_jax; assert not {'jax', 'numpy'} & set(sys.modules); "
        "assert {'load_vlm', 'load_generator', '__version__'} <= set(dir(synth2_jax))"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    with pytest.raises(AttributeError, match="has no attribute 'load_vml'"):
        synth2_jax.load_vml  # noqa: B018


@pytest.mark.slow  # a process of its own
def test_no_tensorflow_is_imported(runs, compilation_cache):
    program = """
import sys
import numpy as np
import synth2_jax
from synth2_jax.sampling.parallel_decode import ParallelDecodeConfig
from synth2_jax.sampling.text_decode import TextDecodeConfig
vlm = synth2_jax.load_vlm(sys.argv[1], batch_size=3, decode=TextDecodeConfig("greedy", 4))
assert vlm.caption(np.zeros((16, 16, 3), np.uint8))
sampler = ParallelDecodeConfig(num_steps=2)
generator = synth2_jax.load_generator(sys.argv[2], batch_size=3, sampler=sampler)
made = generator.generate("a star")
shapes = [array.shape for array in (made.tokens, made.embeddings, made.images)]
assert shapes == [(1, 4), (1, 4, 4), (1, 16, 16, 3)], shapes
assert not {"tensorflow", "seqio", "clu"} & set(sys.modules)
"""
    subprocess.run(
        [sys.executable, "-c", program, str(runs / "vlm"), str(runs / "generator")],
        check=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
