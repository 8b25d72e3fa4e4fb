import ml_collections
import numpy as np
import pytest

from configs.scenes import vlm
from synth2_jax import config as config_lib
from synth2_jax.errors import UserError
from synth2_jax.experiments.arms import ARMS, CAPTION_SETS, SOURCES, Arm
from synth2_jax.experiments.step_runner import changed_section
from synth2_jax.pages.arms import ARM_NAMES


def test_every_arm_has_a_title_and_a_short_name():
    assert ARMS.keys() == ARM_NAMES.keys()
    assert len({arm.title for arm in ARMS.values()}) == len(ARMS)
    assert {source for arm in ARMS.values() for source in arm.rates} == set(SOURCES)
    assert {arm.captions for arm in ARMS.values()} == set(CAPTION_SETS)


@pytest.mark.parametrize(
    "given, said",
    [
        ({"rates": {}}, "rates: found none"),
        ({"rates": {"reel": 1.0}}, "rates: unknown source 'reel'; did you mean 'real'?"),
        ({"rates": {"real": 0.0}}, "rates.real: found 0.0, expected a number above 0"),
        ({"captions": "natral"}, "captions: unknown 'natral'; did you mean 'natural'?"),
        ({"real_first": 1.0}, "real_first: found 1.0, expected 0 to less than 1"),
        ({"two_runs": True}, "two_runs: found true with --config.real_first=0"),
        ({"step": 3}, "step: unknown key"),
    ],
)
def test_a_mistake_in_an_arm_is_named(given, said):
    with pytest.raises(UserError) as error:
        config_lib.build(Arm, ml_collections.ConfigDict({"rates": {"real": 1.0}, **given}))
    assert said in str(error.value)


def test_real_pairs_alone_come_first_for_a_share_of_the_steps():
    arm = Arm({"real": 0.25, "synthetic": 0.75}, real_first=0.5)
    assert arm.rates_at(0) == {"real": 0.25, "synthetic": 0.75}
    rates = arm.rates_at(10)
    for step, expected in ((0, (1, 0)), (9, (1, 0)), (10, (0.25, 0.75)), (99, (0.25, 0.75))):
        found = [np.interp(step, *zip(*rates[name], strict=True)) for name in ("real", "synthetic")]
        assert tuple(found) == expected
    assert Arm({"synthetic": 1.0}, real_first=0.5).rates_at(10)["real"] == ((9, 1.0), (10, 0.0))


def test_what_differs_in_the_vlm_is_keys_with_dots():
    assert ARMS["pixel"].changed({}) == {"model.image_space": "pixel"}
    section = ml_collections.ConfigDict({"rates": {"real": 1.0}, "vlm": {"train": {"steps": 3}}})
    assert config_lib.build(Arm, section).changed({}) == {"train.steps": 3}
    assert ARMS["real"].changed({}) == {}


@pytest.mark.parametrize("name", ["lora", "whole"])
def test_an_arm_trains_the_vlm_as_the_config_file_of_that_name_does(name):
    section = vlm.get_config("mixture")
    built = changed_section(section, ARMS[name].changed(section))
    expected = vlm.get_config(f"mixture,{name}")
    for key in ("model", "optimizer"):
        assert config_lib.to_json(built[key]) == config_lib.to_json(expected[key])
