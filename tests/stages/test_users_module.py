"""The file of tasks in docs/your_data.md, run as a user would: outside of the repository."""

import os
import pathlib
import re
import subprocess
import sys

import pytest
from PIL import Image

from synth2_jax.domains.scenes import dataset
from synth2_jax.testing.image_files import picture, write_tar
from synth2_jax.training.checkpoint_reader import latest_step
from synth2_jax.training.metrics import read_metrics

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "your_data.md"


def my_tasks():
    block = re.search(r"<!-- my_tasks:begin -->\n```python\n(.*?)```\n", PAGE.read_text(), re.S)
    return block[1]


@pytest.fixture
def outside(chain, tmp_path):
    """A folder with my_tasks.py, and pairs that were made of a tar file beside the chain's."""
    members = []
    for index, example in enumerate(dataset.examples("real", 30)):
        members.append((f"{index:04d}.png", picture(example.image)))
        members.append((f"{index:04d}.txt", example.captions[0].encode()))
    write_tar(tmp_path / "web.tar", members)
    source = {"source__format": "webdataset", "source__path": tmp_path / "web.tar"}
    source |= {"splits": "real", "max_images": None}
    chain.run(chain.tokenization(tmp_path / "pairs", **source))
    (tmp_path / "pairs" / "synthetic").symlink_to(chain.path("pairs", "synthetic"))
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "my_tasks.py").write_text(my_tasks())
    return folder


def synth2(folder, arguments):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "MY_PAIRS": str(folder.parent / "pairs")}
    return subprocess.run(
        [sys.executable, "-m", "synth2_jax.main", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_a_vlm_trains_on_a_users_mixture_of_web_data_and_synthetic_pairs(chain, outside):
    mixture = {"data__modules": "my_tasks", "data__mixture": "my_mixture", "data__batch_size": 8}
    command = chain.training("vlm", outside / "vlm", "vlm.py:modules", **mixture)
    run = synth2(outside, [part for part in command[1:] if "data.folders" not in part])
    assert run.returncode == 0, run.stderr
    steps = chain.steps["vlm"]
    assert latest_step(str(outside / "vlm")) == steps
    last = [row for row in read_metrics(outside / "vlm" / "metrics.jsonl") if "loss" in row][-1]
    counts = [last["data/real_examples"], last["data/synthetic_examples"]]
    assert sum(counts) == 8 * steps and min(counts) > 0
    assert last["data/real_tokens"] > 3 * counts[0]


@pytest.mark.slow
def test_inspect_shows_a_users_mixture(chain, outside):
    tokenizer = f"--tokenizer={chain.path('tokenizer')}"
    run = synth2(outside, ["inspect", "my_mixture", "--modules=my_tasks", tokenizer])
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert lines[0] == "mixture 'my_mixture', split 'train'"
    assert "  image_tokens  int32, rank 1" in lines
    assert "  my_synthetic   70.0%  20 examples in 3 shards" in lines
    assert lines[-1] == "10 examples in my_mixture.png"
    with Image.open(outside / "my_mixture.png") as sheet:
        assert sheet.size[0] > 800
    run = synth2(outside, ["inspect", "my_mixtur", "--modules=my_tasks"])
    assert run.returncode == 2 and "did you mean 'my_mixture'" in run.stderr
