"""What errors say of the option that a mistake is in."""

import os

import pytest

from synth2_jax.errors import UnknownNameError, UserError, in_section, naming, nearest


@pytest.mark.parametrize(
    "value, line, expected",
    [
        ("pics", "pairs pics: no manifest.json", "--config.folder=pics: no manifest.json"),
        ("pics", "pics: no such folder", "--config.folder=pics: no such folder"),
        ("pics", f"{os.path.abspath('pics')}: gone", "--config.folder=pics: gone"),
        ("pics", "pics/a.json: not JSON", "--config.folder=pics: pics/a.json: not JSON"),
        ("", "no path given", "--config.folder: no path given"),
        ("pics", "--config.model.x: found 0", "--config.model.x: found 0"),
    ],
)
def test_an_error_of_a_folder_begins_with_the_option_that_named_it(value, line, expected):
    with pytest.raises(UnknownNameError) as error, naming("--config.folder", value):
        raise UnknownNameError(line)
    assert str(error.value) == expected


def test_keys_of_a_section_get_its_name():
    with pytest.raises(UserError) as error, in_section("vlm"):
        raise UserError(
            "--config.data.a=x: found 1, as in my--config.b; see --config.c and config.d"
        )
    assert str(error.value) == (
        "--config.vlm.data.a=x: found 1, as in my--config.b; see --config.vlm.c and config.d"
    )


def test_nearest_says_so_when_nothing_is_near():
    assert nearest("zzz", ["b", "a"]) == "one of: a, b"
    assert nearest("x", []) == "one of: (none)"
    assert nearest("zz", [f"a{i:02}" for i in range(30)]).endswith("a18, a19, ...")
