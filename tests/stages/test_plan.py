"""`synth2 plan`: one line for a mistake, and plans by the TPU compiler itself for small pods."""

import json
import pathlib

import pytest

from synth2_jax.config import load_config
from synth2_jax.errors import UserError
from synth2_jax.planning import hlo, programs, topologies
from synth2_jax.planning.chips import Chip
from synth2_jax.planning.estimate import Estimate
from synth2_jax.planning.plan_table import CAPTION_BYTES
from synth2_jax.stages import plan
from synth2_jax.testing.user_errors import raises_line

VLM = "configs/scenes/vlm.py:tiny"
GENERATOR = "configs/scenes/generator.py:tiny"
SYNTHESIZE = "configs/scenes/synthesize.py"
BAD_MESHES = ("data", "data=two", "data=0")


def planned(tmp_path, config=VLM, **options):
    return plan.run(load_config(config), str(tmp_path), **options)


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "--topology: not given. Give chips, such as --topology=v5e:16x16 or h200"),
        ({"topology": "v5:16x16"}, "--topology=v5:16x16: unknown chip 'v5'; did you mean 'v5"),
        ({"topology": "v5e"}, "--topology=v5e: expected chips as in v5e:16x16 or v5p:4x8x8"),
        ({"topology": "v5e:16"}, "--topology=v5e:16: expected chips as in v5e:16x16"),
        (
            {"topology": "v5e:2x2", "sample": SYNTHESIZE},
            "--sample: found a vlm to sample from, expected a generator",
        ),
    ],
)
def test_mistakes(tmp_path, options, message):
    with raises_line(message):
        planned(tmp_path, **options)
    assert list(tmp_path.iterdir()) == []


def test_without_libtpu_it_says_how_to_install_it(monkeypatch, tmp_path):
    def none(**options):
        raise RuntimeError("JAX TPU support not installed; cannot generate TPU topology.")

    monkeypatch.setattr(topologies.topologies, "get_topology_desc", none)
    with raises_line("found no libtpu; install ", "`pip install '.[tpu]'`"):
        planned(tmp_path, topology="v5e:2x2")


@pytest.mark.parametrize(
    "mesh, found", [("data=2,fsdq=2", "fsdq=2"), *((m, m) for m in BAD_MESHES)]
)
def test_mistakes_in_the_mesh(mesh, found):
    with raises_line(f"--mesh={mesh}: found '{found}', expected sizes of data, fsdp, tensor as in"):
        plan._mesh_config(mesh, plan.sharding.MeshConfig())


@pytest.mark.parametrize(
    "by_kind, seconds, bound_by",
    [
        ({"products": 5.0, "network": 3.0}, 8.0, "products"),
        ({"products": 1.0, "network": 4.5}, 5.5, "network"),
        ({"products": 1.0, "network": 0.0}, 4.0, "compute"),  # no schedule is faster than the chip
        ({}, 4.0, "compute"),
    ],
)
def test_a_step_takes_its_schedule_and_never_less_than_the_busiest_resource(
    by_kind, seconds, bound_by
):
    found = Estimate(compute=4.0, memory=2.0, network=3.0, by_kind=by_kind)
    assert (found.at_best, found.seconds, found.bound_by) == (4.0, seconds, bound_by)
    chip = Chip(1, 100.0, 10.0, 4, 1.0, 1.0)
    assert found.mfu(200.0, chip) == 2.0 / seconds


@pytest.mark.parametrize("limit, expected", [(0, 0), (1, 4), (5, 20), (40, 160), (1000, 3840)])
def test_the_largest_batch(capsys, limit, expected):
    """`limit` rows a chip fit; the answer is never too large and at most an eighth too small."""

    def compiled(batch_size):
        if batch_size > 4 * limit:
            raise UserError("does not fit")
        return f"compiled {batch_size}"

    if not limit:
        with pytest.raises(UserError, match="does not fit"):
            programs.largest_batch(compiled, 4)
        return
    size, found = programs.largest_batch(compiled, 4)
    assert found == f"compiled {size}"
    assert 4 * limit * 7 / 8 <= size <= 4 * limit and size == expected
    assert f"batch {size}: fits" in capsys.readouterr().out


GATHERS = pathlib.Path(__file__).parents[1] / "data" / "hlo" / "overlap.txt"


@pytest.mark.parametrize(
    "old, new, changed",
    [
        # Rows of a product, 5 times; a parameter beside them, 5 times, and another one once.
        ("HloModule overlap", "HloModule overlap", {}),
        ("state.params", "params", {}),  # as the sampler has them
        ("%all-gather.4 = bf16", "%all-gather.4 = s16", {"ids": 7680, "activations": 0}),
        ("all-gather(%v)", "all-gather(%twice)", {"optimizer": 1536, "parameters": 3840}),
        ("all-gather(%v)", "all-gather(%x)", {"activations": 7680 + 768, "parameters": 3840}),
    ],
)
def test_what_is_gathered(old, new, changed):
    text = GATHERS.read_text()
    assert old in text
    text = text.replace(old, new)
    usual = {"parameters": 3840 + 3072, "optimizer": 0, "ids": 0, "activations": 7680}
    assert programs.gathered(text, hlo.cost(text)) == usual | changed


# --- with the TPU compiler ---


@pytest.mark.slow
@pytest.mark.parametrize("topology", ["v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_a_training_step_for_every_chip(tmp_path, capsys, topology):
    options = {"topology": topology, "mesh": "data=2,fsdp=2", "batch": 64, "name": "vlm-tiny"}
    config = load_config(VLM)
    with config.unlocked():
        config.train.ema_decay = 0.999
        config.model.vlm.dropout_rate = 0.1
    found = plan.run(config, str(tmp_path), **options)
    (file,) = tmp_path.iterdir()
    assert file.name == f"vlm-tiny-{topology.replace(':', '-')}-train.json"
    assert json.loads(file.read_text()) == found
    assert (found["chips"], found["batch"], found["unknown_loops"]) == (4, 64, 0)
    assert 0.98 < found["flops_ratio"] < 1.1
    memory = found["memory_bytes_per_chip"]
    assert 0 < memory["parameters"] < memory["total"] < found["hbm_bytes_per_chip"]
    assert memory["moving average"] == pytest.approx(memory["optimizer"] / 2, rel=1e-3)  # of Adam
    assert found["collectives_per_chip"]["all-gather"]["num_bytes"] > 0
    gathered = found["gathered_bytes_per_chip"]
    assert gathered["parameters"] > 0 and gathered["activations"] == 0
    assert 0 <= found["overlapped_share"] <= 1 and None not in found["loops"]
    told = capsys.readouterr().out
    assert f"train vlm-tiny on 4 chips of {topology}, data=2 fsdp=2 tensor=1, batch 64" in told
    guess = found["estimate"]
    assert guess["seconds"] >= guess["at_best"] > 0
    assert all(guess["by_kind"][kind] > 0 for kind in ("products", "random numbers", "optimizer"))
    assert "estimate by the compiler's schedule, no measurement" in told and str(file) in told


@pytest.mark.slow
def test_rematerialization_is_seen(tmp_path):
    ratios = []
    for remat in ("none", "full"):
        config = load_config(GENERATOR)
        with config.unlocked():
            for part in ("maskgit", "text_encoder"):
                config.model.generator[part].update({"scan_layers": True, "remat": remat})
        found = plan.run(config, str(tmp_path), topology="v5e:2x2", mesh="fsdp=4", batch=64)
        ratios.append(found["flops_ratio"])
    assert ratios[0] < 1.1 and 1.15 < ratios[1] < 1.35  # a forward pass again is up to a third


@pytest.mark.slow
def test_the_sampler(tmp_path, capsys):
    options = {"topology": "v5e:2x2", "batch": 64, "sample": SYNTHESIZE, "pairs": 1e6}
    found = planned(tmp_path, GENERATOR, **options)
    assert found["what"] == "sample" and 0.98 < found["flops_ratio"] < 1.1
    pairs = found["pairs"]
    seconds = 1e6 / pairs["pairs_per_second"]
    assert pairs["chip_hours"] == pytest.approx(4 * seconds / 3600)
    assert pairs["days"] == pytest.approx(seconds / 86400)
    assert pairs["stored_bytes"] == 1e6 * (2 * 16 + CAPTION_BYTES)
    assert "1e+06 pairs at" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    "options, message",
    [
        ({"batch": 2**22}, "does not fit a chip's memory: a batch of 4194304 needs"),
        ({"mesh": "data=3"}, "data=3 fsdp=1 tensor=1 does not fit 4 devices"),
        ({"batch": 63}, "batch: found 63 rows, which cannot be split over 4 devices"),
        ({"topology": "v5e:3x5"}, "--topology=v5e:3x5: "),  # no pod has this shape
    ],
)
def test_what_cannot_be(tmp_path, options, message):
    with raises_line(message):
        planned(tmp_path, **{"topology": "v5e:2x2", **options})
    assert list(tmp_path.iterdir()) == []
