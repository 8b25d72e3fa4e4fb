"""The config of a server, its environment, and secrets that stay out of errors; nothing is sent."""

import json
import sys

import pytest

from synth2_jax import config as config_lib
from synth2_jax.caption_writing.chat_client import ChatClient
from synth2_jax.caption_writing.server_access import ServerAccess
from synth2_jax.caption_writing.server_config import ServerConfig
from synth2_jax.errors import UserError

KEY = "sk-planted-0123456789"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


def error_of(**settings):
    with pytest.raises(UserError) as error:
        ChatClient(ServerAccess(ServerConfig("m", **settings)), 1.0)
    assert KEY not in str(error.value) and len(str(error.value).splitlines()) == 1
    assert error.value.__cause__ is None  # whose text may hold the key
    return str(error.value)


@pytest.mark.parametrize("unfit", ["\n", "\r\nX-Header: 1", " ", "\x1b", "é", "\u202e", "犬"])
def test_a_key_that_no_header_can_hold_is_not_sent(monkeypatch, unfit):
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}{unfit}{KEY}\n")
    line = error_of()
    assert line.startswith(f"OPENAI_API_KEY: character {len(KEY) + 1} of ")
    assert "planted" not in line


@pytest.mark.parametrize(
    "name, value, reason",
    [
        ("ALL_PROXY", "socks5://user:hunter2@localhost:1", "socksio"),
        ("https_proxy", "gopher://user:hunter2@localhost:1", "Unknown scheme"),
        ("SSL_CERT_FILE", "/no/such/file.pem", "No such file"),
        ("SSL_CERT_FILE", __file__, "no certificate"),
    ],
)
def test_a_proxy_or_certificates_that_are_not_usable_are_named(monkeypatch, name, value, reason):
    for other in ("SSL_CERT_FILE", "SSL_CERT_DIR", "ALL_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, value)
    monkeypatch.setitem(sys.modules, "socksio", None)
    line = error_of()
    assert line.startswith(f"{name}: cannot be used (") and reason in line
    assert "orrect or unset the variable." in line and "hunter2" not in line


@pytest.mark.parametrize("value", ["", " "])
def test_a_key_must_be_in_the_environment(monkeypatch, value):
    monkeypatch.setenv("OPENAI_API_KEY", value)
    assert error_of().startswith("OPENAI_API_KEY: not set in the environment")


@pytest.mark.parametrize(
    "url, text",
    [
        ("http://user:hunter2@host/v1", "holds a user, password, query or key"),
        ("http://host/v1?api-key=hunter2", "holds a user, password, query or key"),
        ("ftp://hunter2/v1", "no address"),
        ("hunter2", "no address"),
        ("http://host\n/hunter2", "no address"),
        ("http://host/hunter2" + "x" * 1000, "no address"),
        ("http://[hunter2/v1", "no address"),
    ],
)
def test_an_address_that_may_hold_a_secret_is_not_repeated(monkeypatch, url, text):
    line = error_of(base_url=url)
    assert text in line and "hunter2" not in line
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    assert error_of() == line


def test_the_key_itself_may_not_be_in_the_config(monkeypatch):
    assert "holds the API key" in error_of(extra_body={"auth": [KEY]})
    assert "holds the API key" in error_of(base_url=f"http://host/{KEY}")
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://host/{KEY}")
    assert "holds a user, password, query or key" in error_of()
    with pytest.raises(UserError) as error:
        config_lib.build(ServerConfig, {"model": "m", "api_key": KEY}, "--config.server")
    assert "--config.server.api_key: unknown key" in str(error.value)
    assert KEY not in str(error.value)


def test_without_the_package_a_line_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(UserError, match=r"pip install 'synth2-jax\[openai\]'"):
        ChatClient(ServerAccess(ServerConfig("m")), 1.0)


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
def test_mistakes_in_the_config(settings, text):
    with pytest.raises(UserError) as error:
        ServerConfig(**{"model": "m", **settings})
    assert str(error.value).startswith(text)


def test_sampling_is_in_the_types_of_json():
    built = config_lib.build(
        ServerConfig, {"model": "m", "extra_body": {"stop": ["\n"], "deep": {"a": 1}}}
    )
    assert json.loads(json.dumps(built.sampling())) == built.sampling()
    assert built.sampling()["stop"] == ["\n"] and built.sampling()["deep"] == {"a": 1}
