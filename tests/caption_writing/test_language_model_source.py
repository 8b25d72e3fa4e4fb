import jax
import numpy as np
import pytest
from flax import linen as nn

from synth2_jax.caption_writing.drafts import Request
from synth2_jax.caption_writing.language_model import LanguageModelSource
from synth2_jax.models.language_model import LanguageModel, LanguageModelConfig
from synth2_jax.sampling.text_decode import TextDecodeConfig
from synth2_jax.text.prompts import class_prompt
from synth2_jax.text.vocabulary import load_vocabulary


def request(index, name, draw):
    return Request(index, name, draw, class_prompt(name))


@pytest.fixture(scope="module")
def write():
    """`write(requests, seed, batch_size)` by a small random language model."""
    vocabulary = load_vocabulary("scenes")
    config = LanguageModelConfig(
        vocab_size=vocabulary.size, num_layers=1, embed_dim=8, num_heads=1, head_dim=8, mlp_dim=8
    )
    tokens = np.ones((1, 2), np.int32)
    model = LanguageModel(config)
    init = jax.jit(lambda key: model.init(key, tokens, deterministic=True))
    params = nn.unbox(init(jax.random.key(0)))["params"]
    decode = TextDecodeConfig(method="nucleus", max_length=6, top_p=1.0)
    sources = {}

    def write(requests, *, seed=0, batch_size=4):
        if (seed, batch_size) not in sources:  # each compiles anew
            sources[seed, batch_size] = LanguageModelSource(
                config, params, vocabulary, decode, seed=seed, batch_size=batch_size
            )
        drafts = list(sources[seed, batch_size].write(requests))
        return {(d.class_name, d.draw): d for d in drafts}

    return write


REQUESTS = [
    request(index, name, draw)
    for index, name in enumerate(["red circle", "blue ring"])
    for draw in (0, 1, 2)
]


def test_every_request_gets_one_draft(write):
    drafts = write(REQUESTS)
    assert set(drafts) == {(request.class_name, request.draw) for request in REQUESTS}
    assert len({d.caption for d in drafts.values()}) == len(REQUESTS)  # of 512 random pieces each
    assert write([]) == {}


def test_prompts_of_several_lengths_are_all_answered(write):
    requests = [request(0, "ring", 0), request(1, "red ring", 0), request(2, "ring", 1)]
    vocabulary = load_vocabulary("scenes")
    assert len({len(vocabulary.encode(request.prompt)) for request in requests}) == 2
    drafts = write(requests)
    assert set(drafts) == {("ring", 0), ("red ring", 0), ("ring", 1)}
    # The class's index, not its place in the call, is in the key.
    assert write(requests[2:]) == {("ring", 1): drafts["ring", 1]}


def test_a_draft_depends_on_neither_batch_size_nor_company(write):
    drafts = write(REQUESTS)
    assert write(REQUESTS, batch_size=64) == drafts
    assert write(REQUESTS[::-1]) == drafts
    assert write(REQUESTS[4:5]) == {("blue ring", 1): drafts["blue ring", 1]}


def test_drafts_depend_on_the_seed(write):
    first, second = write(REQUESTS), write(REQUESTS, seed=1)
    assert write(REQUESTS) == first
    assert all(first[key].caption != second[key].caption for key in first)


def test_finished_tells_whether_the_caption_ended(write):
    requests = [request(0, "red circle", draw) for draw in range(640)]
    drafts = write(requests, batch_size=64).values()
    ended = [draft for draft in drafts if draft.finished]
    # A random model over 511 pieces ends within 6 of them in about 1 draw of 85.
    assert 0 < len(ended) < 60
    assert np.mean([len(d.caption) for d in ended]) < np.mean([len(d.caption) for d in drafts])
