"""The quality-speed curve: what is chosen, on which captions, and how it is scored and drawn."""

from xml.etree import ElementTree

import flax.linen as nn
import jax
import numpy as np
import pytest

from benchmarks import charts, quality_speed
from synth2_jax.domains.scenes import dataset
from synth2_jax.errors import UserError
from synth2_jax.loading.run import Trained
from synth2_jax.sampling.guidance import GuidanceConfig
from synth2_jax.sampling.parallel_decode import ParallelDecodeConfig
from synth2_jax.stages import train
from synth2_jax.testing.tiny_configs import tiny

START = quality_speed.Setting(ParallelDecodeConfig(num_steps=2), GuidanceConfig(scale=1.0))


@pytest.fixture(scope="module")
def trained():
    config = tiny("generator")
    objective = train.build(config)[1]
    shapes = nn.unbox(jax.eval_shape(lambda key: objective.init(key)["params"], jax.random.key(0)))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), shapes)
    return Trained(objective, params, config.to_dict(), {}, "runs/generator", 7)


class FakeJudge:
    """Has an opinion of every setting, and keeps what it was asked."""

    def __init__(self, *args):
        self.asked = []

    def score(self, settings, captions, seeds):
        self.asked.append((settings, list(captions), list(seeds)))
        return [self.row(setting, len(seeds)) for setting in settings]

    def row(self, setting, num_seeds):
        score = 0.1 * setting.sampler.num_steps + 0.02 * setting.guidance.scale
        score -= abs(setting.sampler.sample_temperature - 0.25)
        return {
            "sampler": {"num_steps": setting.sampler.num_steps},
            "guidance": {"interval": setting.guidance.interval},
            "objects_right": score,
            "objects_right_by_seed": [score] * num_seeds,
            "spread": 0.01,
            "seconds": 1.0,
            "pairs_per_second": 100 / setting.sampler.num_steps,
            "flops": 1.0,
            "bytes": 1.0,
        }


KNOBS = {"sampler.sample_temperature": (0.5, 0.25, 0.0), "guidance.scale": (0.0, 1.0, 3.0)}


def test_the_best_of_each_knob_is_kept_and_every_trial_is_told():
    judge = FakeJudge()
    best, tried = quality_speed.choose(judge, START, [2, 4], ["a"], KNOBS)
    assert best == START.changed("sampler.sample_temperature", 0.25).changed("guidance.scale", 3.0)
    assert [(row["knob"], row["value"]) for row in tried] == [
        ("", ""),
        *(("sampler.sample_temperature", value) for value in KNOBS["sampler.sample_temperature"]),
        ("guidance.scale", 0.0),
        ("guidance.scale", 3.0),  # 1 is what was set
    ]
    assert tried[0]["objects_right"] == pytest.approx(0.3 + 0.02 - 0.75)  # the mean of both steps
    assert {tuple(s.sampler.num_steps for s in asked[0]) for asked in judge.asked} == {(2, 4)}


def test_what_is_no_better_changes_nothing_and_knobs_without_effect_are_not_turned():
    best, _ = quality_speed.choose(FakeJudge(), START, [2], ["a"], {"sampler.order": ("halton",)})
    assert best == START
    start = START.changed("guidance.scale", 0.0).changed("sampler.order", "halton")
    knobs = {"guidance.ramp": ("constant",), "sampler.choice_temperature": (0.0,)}
    _, tried = quality_speed.choose(FakeJudge(), start, [2], ["a"], knobs)
    assert len(tried) == 1


@pytest.fixture
def measured(trained, monkeypatch):
    judge = FakeJudge()
    monkeypatch.setattr(quality_speed, "Judge", lambda *args: judge)
    sizes = {"num_captions": 5, "num_search_captions": 3, "num_seeds": 2, "batch_size": 1}
    result = quality_speed.measure(
        trained, START, [4, 8, 16], **sizes, search_steps=[4], interval_steps=8, knobs=KNOBS
    )
    return judge, result


def test_settings_are_chosen_on_other_captions_and_seeds_than_they_are_reported_on(measured):
    judge, _ = measured
    *search, (settings, captions, seeds) = judge.asked
    chosen_on = {caption for asked in search for caption in asked[1]}
    examples = dataset.examples("test", 8)
    assert captions == [example.captions[0] for example in examples[:5]]
    assert chosen_on == {example.captions[0] for example in examples[5:]}
    assert seeds == [1, 2] and all(asked[2] == [0] for asked in search)
    assert {tuple(s.sampler.num_steps for s in asked[0]) for asked in search} == {(4,), (16,)}
    assert len(settings) == 3 + 3 + 1 + 1 + len(quality_speed.INTERVALS)


def test_figures_are_shares_of_the_better_last_step(measured):
    _, result = measured
    limits = {"matmul_flops_per_second": 2.0, "copy_bytes_per_second": 2.0}
    limits["peak_flops_per_second"] = None
    figures = {figure.name: figure for figure in quality_speed.figures_of(result, limits)}
    reference = 1.6 + 0.06  # chosen settings at 16 steps
    at_8 = figures["objects right, Scenes, 8 steps in place of 16"]
    assert at_8.value == pytest.approx(100 * (0.8 + 0.06) / reference)
    assert "at 2.00x the pairs/s" in at_8.note
    assert figures["guidance from 0.5 to 1 of 8 steps, Scenes"].value == 1
    assert "no guidance of 8 steps, Scenes" in figures
    assert sum(figure.unit == "pairs/s" for figure in figures.values()) == 2
    root = ElementTree.fromstring(quality_speed.picture(result))
    texts = {text.text for text in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"pairs/s", "default settings", "4", "8", "16", "without guidance"} <= texts


def test_the_interval_is_compared_with_guidance_even_where_none_is_chosen(trained, monkeypatch):
    class AgainstGuidance(FakeJudge):
        def row(self, setting, num_seeds):
            return {"objects_right": 1 - setting.guidance.scale / 10}

    judge = AgainstGuidance()
    monkeypatch.setattr(quality_speed, "Judge", lambda *args: judge)
    sizes = {"num_captions": 1, "num_search_captions": 1, "num_seeds": 1, "batch_size": 1}
    result = quality_speed.measure(
        trained, START, [2], **sizes, search_steps=[2], interval_steps=2, knobs=KNOBS
    )
    assert result["chosen"]["guidance"]["scale"] == 0
    of_intervals = judge.asked[-1][0][-1 - len(quality_speed.INTERVALS) :]
    assert {setting.guidance.scale for setting in of_intervals} == {START.guidance.scale}
    assert of_intervals[0].guidance.interval == (0.0, 1.0)


def test_the_oracle_counts_what_captions_say(trained):
    judge = quality_speed.Judge(trained, batch_size=2)
    examples = dataset.examples("test", 4)
    images = np.stack([example.image for example in examples])
    judge._decode = lambda params, ids_BN: images[np.asarray(ids_BN)[:, 0]]

    def drawn(moved):
        return lambda setting: (
            lambda text_BT, seed, first: (
                (first + moved * seed + np.arange(len(text_BT))[:, None]) % len(images)
            )
        )

    captions = [example.captions[0] for example in examples]
    judge._sampler = drawn(moved=0)
    (right,) = judge.score([START], captions, [0, 1])
    assert right["objects_right"] == 1 and right["spread"] == 0
    assert right["distinct"] == 0.5  # both seeds draw the same
    judge._sampler = drawn(moved=1)  # with seed 1 each caption gets its neighbour's picture
    (moved,) = judge.score([START], captions, [0, 1])
    assert moved["objects_right_by_seed"][0] == 1 > moved["objects_right_by_seed"][1]
    assert moved["distinct"] == 1


def test_a_setting_is_sampled_and_timed(trained):
    judge = quality_speed.Judge(trained, batch_size=2)
    captions = [example.captions[0] for example in dataset.examples("test", 4)]
    one, again = judge.score([START, START], captions, [0, 1])
    assert one["objects_right_by_seed"] == again["objects_right_by_seed"]
    assert one["pairs_per_second"] == 2 / one["seconds"] > 0
    assert one["sampler"]["num_steps"] == 2 and one["guidance"]["scale"] == 1.0
    with pytest.raises(UserError, match="captions: found 3, expected a multiple of 2"):
        judge.score([START], captions[:3], [0])


def test_the_share_kept_is_in_pairs_of_seeds():
    mine = {"objects_right": 0.5, "objects_right_by_seed": [0.4, 0.6]}
    other = {"objects_right": 0.625, "objects_right_by_seed": [0.5, 0.75]}
    assert quality_speed.kept(mine, other) == pytest.approx((0.8, 0.0))
    other["objects_right_by_seed"] = [0.4, 1.2]  # shares of 1 and 1/2
    assert quality_speed.kept(mine, other)[1] == pytest.approx(0.25)


def test_a_chart_has_points_and_error_bars_at_their_values():
    points = [charts.Point(10, 1, 0.5), charts.Point(100, 3), charts.Point(1000, 2, 0.25)]
    figure = charts.draw("title", "x", "y", [charts.Line("a < b", points)])
    (container,) = figure.axes[0].containers
    line, _, (bars,) = container
    assert line.get_xydata().tolist() == [[10, 1], [100, 3], [1000, 2]]
    ends = [[float(y) for _, y in bar] for bar in bars.get_segments()]
    assert ends == [[0.5, 1.5], [3, 3], [1.75, 2.25]]
    assert figure.axes[0].get_xscale() == "log"
    assert "a &lt; b" in charts.chart("title", "x", "y", [charts.Line("a < b", points)])


def test_a_generator_of_other_pictures_is_refused(trained):
    class Larger:
        image_size = 256

    task = type("Task", (), {"tokenizer": Larger})
    other = type("Other", (), {"objective": type("Objective", (), {"task": task})})
    with pytest.raises(UserError, match="found images of 256 pixels, expected Scenes' 32"):
        quality_speed.Judge(other, 1)
