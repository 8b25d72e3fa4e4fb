"""Address, API key and proxies of a server, checked.

The key comes from the environment and is in no file, message or log.
"""

import os
import re
import urllib.parse
from collections.abc import Sequence

from synth2_jax import config as config_lib
from synth2_jax.caption_writing.answers import is_name
from synth2_jax.caption_writing.secret_texts import Secrets
from synth2_jax.caption_writing.server_config import ServerConfig
from synth2_jax.errors import UserError

KEY_VARIABLE, URL_VARIABLE = "OPENAI_API_KEY", "OPENAI_BASE_URL"
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR")
_DEFAULT_URL = "https://api.openai.com/v1"
_SECRET_CHARACTERS = 8  # a shorter key is no secret: servers without keys are given any text


class ServerAccess:
    """Attributes:

    key: the API key.
    base_url: without secrets, so that a manifest may hold it.
    secrets: the key, which must not reach an answer, a file or a log.
    quoted: function that turns a message of a server or library into one line without secrets.

    Raises:
      UserError: no OPENAI_API_KEY, one that no header can hold, or a config or address that holds
        secrets.
    """

    def __init__(self, config: ServerConfig):
        self.key = _checked_key(os.environ.get(KEY_VARIABLE, ""))
        key = [self.key] if len(self.key) >= _SECRET_CHARACTERS else []
        passwords = [_password(os.environ[name]) for name in environment_names(PROXIES)]
        self.secrets = Secrets(*key)
        self.quoted = Secrets(*key, *filter(None, passwords)).quoted
        if self.secrets.are_in(config_lib.to_json(config)):
            raise UserError(
                f"--config.server: holds the API key. Remove it; it is read from {KEY_VARIABLE}."
            )
        url = config.base_url or os.environ.get(URL_VARIABLE, "") or _DEFAULT_URL
        self.base_url = _checked_url(url, holds_key=self.secrets.are_in(url))


def environment_names(names: Sequence[str]) -> list[str]:
    """Returns the variables that are set, in upper or lower case."""
    return [name for n in names for name in (n, n.lower()) if os.environ.get(name)]


def _checked_key(text: str) -> str:
    """Returns the API key without spaces around it. Errors do not repeat it."""
    key = text.strip()
    if not key:
        raise UserError(
            f"{KEY_VARIABLE}: not set in the environment. Set it; a server that needs no key takes "
            "any text."
        )
    if unfit := re.search(r"[^!-~]", key):
        raise UserError(
            f"{KEY_VARIABLE}: character {unfit.start() + 1} of {len(key)} is a space, a line break "
            "or no ASCII, which no header can hold. Copy the key again."
        )
    return key


def _checked_url(url: str, *, holds_key: bool) -> str:
    """Returns `url` without a slash at its end. Errors do not repeat it: it may hold a secret."""
    where = "--config.server.base_url"
    try:
        parts = urllib.parse.urlsplit(url)
        is_address = parts.hostname and parts.scheme in ("http", "https") and is_name(url)
    except ValueError:
        is_address = False
    if not is_address:
        raise UserError(f"{where}: no address, expected such as http://HOST/v1")
    if "@" in parts.netloc or parts.query or parts.fragment or holds_key:
        raise UserError(
            f"{where}: holds a user, password, query or key, expected the address alone. Remove "
            f"them; the key is read from {KEY_VARIABLE}."
        )
    return url.rstrip("/")


def _password(url: str) -> str:
    """Returns the password in a proxy's address; "" if there is none."""
    return url.rpartition("@")[0].rpartition("/")[2].partition(":")[2]
