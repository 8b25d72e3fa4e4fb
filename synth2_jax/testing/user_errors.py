"""Errors in tests: a user's mistake is a UserError of one line."""

import re

import pytest

from synth2_jax.errors import UserError


def user_error(pattern: str) -> pytest.RaisesExc:
    """Expects a UserError of one line in which a regular expression matches."""
    return pytest.raises(UserError, match=rf"\A[^\n]*{pattern}[^\n]*\Z")


def raises_line(*parts: str) -> pytest.RaisesExc:
    """Expects a UserError of one line with all of `parts` in order."""
    return user_error("[^\n]*".join(map(re.escape, parts)))
