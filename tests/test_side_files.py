import pytest

from synth2_jax.side_files import first_difference


@pytest.mark.parametrize(
    ("found", "expected", "difference"),
    [
        ({"a": 1}, {"a": 1}, None),
        ({"a": {"b": "x"}, "c": 1}, {"a": {"b": "y"}, "c": 2}, ("a.b 'x'", "'y'")),
        ({"a": [1, 2]}, {"a": [1]}, ("2 a", "1")),
        ({"a": {"b": 1}}, {"a": None}, ("a {'b': 1}", "None")),
        # What an older version did not write is what it did not have.
        ({"a": {}}, {"a": {"b": None}}, None),
        ({"a": {}, "c": 1}, {"a": {"b": None}, "c": 2}, ("c 1", "2")),
    ],
)
def test_the_first_difference_is_named_by_its_key(found, expected, difference):
    assert first_difference(found, expected) == difference
