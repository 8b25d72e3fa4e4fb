"""Pictures of a mixture's examples, from the tokens of our own and of third-party tokenizers."""

import pathlib

import numpy as np
import pytest

from synth2_jax.errors import UserError
from synth2_jax.loading.tokenizing import decode_images
from synth2_jax.loading.trained import load_tokenizer
from synth2_jax.pages import mixture
from synth2_jax.pages.mixture import contact_sheet, pictures
from synth2_jax.testing.untrained_runs import write_untrained_run

VQ_GAN = pathlib.Path(__file__).parents[1] / "data" / "maskgit" / "tokenizer_checkpoint"


def examples(num_tokens, first=0):
    return [{"image_tokens": np.arange(num_tokens) + first + n} for n in range(2)]


@pytest.mark.parametrize("side", [16, 24])
def test_a_third_party_tokenizer_draws_images_of_the_tokens_size(side):
    """Its file does not hold the size."""
    shown = examples((side // 4) ** 2)
    trained = load_tokenizer(VQ_GAN, image_size=side)
    ids = np.stack([example["image_tokens"] for example in shown])
    expected = decode_images(trained, ids, len(ids))
    assert expected.shape == (2, side, side, 3)
    np.testing.assert_array_equal(pictures(shown, str(VQ_GAN)), expected)


def test_tokens_of_another_tokenizer_are_refused(tmp_path):
    write_untrained_run(tmp_path, "tokenizer")
    own = load_tokenizer(tmp_path).objective.task.tokenizer
    number, size = own.num_tokens, own.codebook_size
    assert len(pictures(examples(number), str(tmp_path))) == 2
    for tokenizer, found, made in ((tmp_path, number + 1, number), (VQ_GAN, 18, 16)):
        with pytest.raises(UserError) as error:
            pictures(examples(found), str(tokenizer))
        assert str(error.value) == (
            f"{tokenizer}: makes {made} tokens of an image (the mixture has {found}). "
            "Give the tokenizer that made the image tokens."
        )
    with pytest.raises(UserError, match=f"has {size} codes, but the image tokens go up to {size}"):
        pictures(examples(number, first=size - number), str(tmp_path))


def test_images_need_no_tokenizer():
    images = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)
    np.testing.assert_array_equal(pictures([{"image": image} for image in images], ""), images)
    assert pictures(examples(4), "") is None and pictures([{"caption": "a"}], str(VQ_GAN)) is None


def test_nothing_is_printed_before_all_is_read(monkeypatch, capsys):
    def damaged(config, count):
        raise UserError("a shard is damaged")

    task = {"name": "x", "share": 1.0, "examples": 9, "shards": 1}
    found = {"kind": "task", "name": "x", "split": "train", "features": {"a": ""}, "tasks": [task]}
    monkeypatch.setattr(mixture.pipeline, "describe", lambda config: found)
    monkeypatch.setattr(mixture.pipeline, "first_examples", damaged)
    with pytest.raises(UserError, match="damaged"):
        mixture.show(None, "x")
    assert not capsys.readouterr().out


def test_a_contact_sheet_shows_what_it_is_given(tmp_path):
    images = np.zeros((7, 8, 8, 3), np.uint8)
    images[6] = (255, 0, 0)
    captions = ["a circle", "x" * 500, "", "日本 <b>\x1b[31m", "a\nb", "c", "a red square"]
    sheet = np.asarray(contact_sheet(images, captions, ["real"] * 7))
    reds = np.argwhere((sheet == (255, 0, 0)).all(axis=-1))
    assert len(reds) == 160 * 160  # one picture, whole
    assert reds[:, 0].min() > sheet.shape[0] / 2  # in the second row
