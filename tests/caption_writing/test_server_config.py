import json

import pytest

from synth2_jax import config as config_lib
from synth2_jax.caption_writing.server_config import ServerConfig
from synth2_jax.errors import UserError


@pytest.mark.parametrize(
    "settings, text",
    [
        ({"model": ""}, "model: found '', expected the name of a model"),
        ({"model": "m\n"}, r"model: found 'm\n', expected the name of a model"),
        ({"concurrency": 0}, "concurrency: found 0, expected at least 1"),
        ({"max_tokens": 0}, "max_tokens: found 0"),
        ({"timeout": 0.0}, "timeout: found 0.0, expected more than 0"),
        ({"requests_per_minute": -1.0}, "requests_per_minute: found -1.0"),
        ({"top_p": 0.0}, "top_p: found 0.0"),
        ({"temperature": -1.0}, "temperature: found -1.0, expected at least 0"),
        ({"max_cost": 1.0}, "max_cost: needs a price. Set `input_price` or `output_price`"),
        ({"extra_body": {"stream": True}}, "extra_body: found 'stream'"),
    ],
)
def test_mistakes(settings, text):
    with pytest.raises(UserError) as error:
        ServerConfig(**{"model": "m", **settings})
    assert str(error.value).startswith(text)


def test_sampling_is_in_the_types_of_json():
    built = config_lib.build(
        ServerConfig, {"model": "m", "extra_body": {"stop": ["\n"], "deep": {"a": 1}}}
    )
    assert json.loads(json.dumps(built.sampling())) == built.sampling()
    assert built.sampling()["stop"] == ["\n"] and built.sampling()["deep"] == {"a": 1}
