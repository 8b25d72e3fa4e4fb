"""`synth2 train --config.init.from=PATH`, from the command line."""

import json
import shutil

import jax
import numpy as np
import pytest

from synth2_jax import main
from synth2_jax.fingerprint import fingerprint
from synth2_jax.loading.trained import load_trained
from synth2_jax.stages import train
from synth2_jax.testing.untrained_runs import write_untrained_run
from synth2_jax.training.checkpoint_reader import read_description, restore_params
from synth2_jax.training.metrics import read_metrics

FAKE = ("--config=configs/scenes/language_model.py:tiny", "--config.data.source=fake")


def training(workdir, steps, *flags):
    return [
        *("synth2", "train", *FAKE, f"--workdir={workdir}", f"--config.train.steps={steps}"),
        *("--config.train.log_every=1", "--config.optimizer.schedule=constant", *flags),
    ]


@pytest.mark.slow
def test_a_run_resumes_itself_although_its_source_is_gone(tmp_path):
    write_untrained_run(tmp_path / "source", "language_model")
    init = f"--config.init.from={tmp_path / 'source'}"
    for name, steps in (("straight", 3), ("stopped", 1)):
        assert main.main(training(tmp_path / name, steps, init)) == 0
    began = read_metrics(tmp_path / "straight" / "metrics.jsonl")

    # The first step's loss is that of the source on the same batch.
    source = load_trained(tmp_path / "source", "language_model")
    config = main.read_config(main.command_line.parse(training(tmp_path / "new", 1, init)))
    cfg, objective = train.build(config)
    assert objective.task.language_model == source.objective.task.language_model
    batch = next(train._data(cfg, objective, {}, None, train.sharding.ALL_ROWS))
    rngs = {"dropout": jax.random.key(0)}
    metrics, _ = jax.jit(objective.loss, static_argnames="train")(
        source.params, batch, rngs, 0, train=False
    )
    loss = next(row["loss"] for row in began if row.get("loss") is not None)
    np.testing.assert_allclose(metrics["loss"][0] / metrics["loss"][1], loss, rtol=1e-5)

    shutil.rmtree(tmp_path / "source")
    assert main.main(training(tmp_path / "stopped", 3, init)) == 0
    straight, stopped = (restore_params(tmp_path / name) for name in ("straight", "stopped"))
    assert fingerprint(stopped) == fingerprint(straight)
    config, _ = read_description(tmp_path / "stopped", 3)
    assert config["started_from"]["step"] == 3 and config["started_from"]["fingerprints"]


@pytest.mark.slow
def test_an_exported_vlm_is_finetuned_on_other_pairs_and_evaluated(chain, tmp_path, mistake, capfd):
    """The export is all that it needs: it holds the tokenizer and the language model too."""
    argv = ["synth2", "export", str(chain.path("vlm_real")), f"--output={tmp_path / 'out'}"]
    chain.run(argv)
    source = load_trained(chain.path("vlm_real"), "vlm")
    shutil.copytree(chain.path("pairs", "test"), tmp_path / "pairs")
    keys = {
        **{"init__from": tmp_path / "out", "data__folders__real": tmp_path / "pairs"},
        **{"pretrained__tokenizer": "", "pretrained__language_model": "", "train__steps": 2},
        "data__vocabulary": "scenes",  # the export has a copy of its own
    }
    run = tmp_path / "finetuned"
    chain.run(chain.training("vlm", run, **keys))
    found = load_trained(run, "vlm")
    assert found.built_on == source.built_on
    assert found.fingerprint("tokenizer") == source.fingerprint("tokenizer")
    assert found.config["started_from"]["fingerprints"]["vlm"] == source.fingerprint("vlm")
    assert found.fingerprint("vlm") != source.fingerprint("vlm")
    chain.run(chain.evaluation(tmp_path / "scores", vlm=run))
    assert json.loads((tmp_path / "scores" / "results.json").read_text())["vlm"]
    capfd.readouterr()
    chain.run(["synth2", "export", str(run), f"--output={tmp_path / 'card'}"])
    card = (tmp_path / "card" / "README.md").read_text()
    assert "It started from the parameters of `out`, step 6, and knows" in card
    chain.run(["synth2", "inspect", str(run)])
    assert f"started from {tmp_path / 'out'}, step 6, tokenizer " in capfd.readouterr().out

    # The pairs are made again: the same command names the road that goes on from here.
    again = {"tokenizer": tmp_path / "out", "splits": "test", "max_images": 16}
    chain.run(chain.tokenization(tmp_path / "pairs_again", **again))
    shutil.rmtree(tmp_path / "pairs")
    shutil.copytree(tmp_path / "pairs_again" / "test", tmp_path / "pairs")
    line = mistake(chain.training("vlm", run, **{**keys, "train__steps": 4}))
    assert line.startswith("--config.data: the checkpoint was saved with folders {'real': ")
    assert line.endswith(f"--workdir=NEW --config.init.from={run}")
    keys["init__from"] = run
    chain.run(chain.training("vlm", tmp_path / "again", **keys))
    begun_at = load_trained(tmp_path / "again", "vlm").config["started_from"]
    assert begun_at["fingerprints"]["vlm"] == found.fingerprint("vlm")
