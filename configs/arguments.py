"""The words behind the ":" of `--config=FILE:WORD,WORD`; all config files read theirs here."""

from collections.abc import Collection

from synth2_jax.errors import UserError, nearest


def words(arg: str, known: Collection[str]) -> list[str]:
    """Returns the words; UserError on one that is not known."""
    given = [word for word in arg.split(",") if word]
    for word in given:
        if word not in known:
            raise UserError(f"--config=FILE:{arg}: unknown word {word!r}; {nearest(word, known)}")
    return given
