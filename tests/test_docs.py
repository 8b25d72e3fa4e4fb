"""README, the pages of docs/ and the notebook say what the package does, and their commands run.

A block of code after the line `<!-- run -->` runs in CI, in the order of its page, in a folder
where a tiny demo has been. Every `synth2` command of the other blocks is parsed.
"""

import ast
import dataclasses
import functools
import importlib
import importlib.util
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
import typing
from collections.abc import Iterator

import pytest
from PIL import Image

import synth2_jax
from synth2_jax import command_line, main
from synth2_jax.config import key_of
from synth2_jax.domains.scenes import dataset

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RUN = "<!-- run -->\n"
BLOCK = re.compile(rf"^({RUN})?```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: pathlib.Path) -> list[tuple[bool, str, str]]:
    """Returns (runs in CI, language, text) of each fenced block."""
    return [(bool(run), language, text) for run, language, text in BLOCK.findall(page.read_text())]


def commands(page: pathlib.Path) -> list[list[str]]:
    """Returns the words of each `synth2 STAGE` in the blocks, or by launch/tpu_run.sh."""
    found = []
    for _, _, text in blocks(page):
        for line in text.replace("\\\n", " ").splitlines():
            words = [] if "python" in line else shlex.split(line, comments=True)
            if words[:2] == ["launch/tpu_run.sh", "local"]:
                words = ["synth2", "train", *words[5:]]
            elif "--" in words:
                words = ["synth2", *words[words.index("--") + 1 :]]
            if words[:1] == ["synth2"] and words[1] != "STAGE":
                found.append(words)
    return found


@functools.cache
def load(path: pathlib.Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def configs_page():
    return load(ROOT / "docs" / "site" / "configs_page.py")


def unknown_keys(words: list[str]) -> list[str]:
    """Returns each `--config.KEY=` of a command that the stage's dataclasses do not have."""
    keys = [key for word in words if (key := word.partition("=")[0]).startswith("--config.")]
    command = command_line.parse(words)
    config = main.read_config(command)
    start = f"--{configs_page().SECTIONS.get(command.stage, 'config')}."
    stage = "train" if command.stage == "plan" else command.stage
    cls = configs_page().config_class(stage) if keys else None
    return [
        key
        for key in keys
        if not key.startswith(start) or not _has(cls, key.removeprefix(start).split("."), config)
    ]


def _has(cls: type, path: list[str], config) -> bool:
    hint = {key_of(name): hint for name, hint in typing.get_type_hints(cls).items()}.get(path[0])
    if hint is None:
        return False
    if path[0] == "model" and hint is typing.Any:
        hint = configs_page().task_classes()[config.model_name]
    is_table = getattr(typing.get_origin(hint), "__name__", "") == "Mapping"
    inner = configs_page().sections(hint)
    return len(path) == 1 or is_table or any(_has(one, path[1:], config) for one in inner)


def test_there_are_commands_to_check():
    assert len([words for page in PAGES for words in commands(page)]) > 35
    stages = {words[1] for page in PAGES for words in commands(page)}
    assert set(configs_page().STAGES) <= stages


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_names_a_stage_a_config_and_keys_that_exist(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    for words in commands(page):
        assert not unknown_keys(words), words


def test_a_key_that_does_not_exist_is_found(monkeypatch):
    monkeypatch.chdir(ROOT)
    words = [
        *("synth2", "train", "--config=configs/scenes/vlm.py", "--workdir=w"),
        *("--config.model.vlm.resampler.num_latents=2", "--config.data.folders.any=x"),
        *("--config.model.vlm.resampler.num_latent=2", "--config.dat.folders.any=x"),
    ]
    assert unknown_keys(words) == [
        "--config.model.vlm.resampler.num_latent",
        "--config.dat.folders.any",
    ]


def test_what_pages_and_notebook_import_from_the_package_exists():
    notebook = json.loads((ROOT / "docs" / "quickstart.ipynb").read_text())
    code = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    every = [block for page in PAGES for block in blocks(page)]
    code += [text for _, language, text in every if language == "python"]
    nodes = [node for text in code for node in ast.walk(ast.parse(text))]
    imports = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    ours = [node for node in imports if node.module.startswith("synth2_jax")]
    names = [(node.module, alias.name) for node in ours for alias in node.names]
    assert len(names) >= 4
    for module, name in names:
        if not hasattr(importlib.import_module(module), name):
            importlib.import_module(f"{module}.{name}")


def test_readme_is_short_and_its_links_lead_somewhere():
    text = PAGES[0].read_text()
    assert text.count("\n") <= 150
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    assert len(links) > 12 and [link for link in links if not (ROOT / link).is_file()] == []


def test_files_that_pages_name_exist():
    path = re.compile(r"(?:launch|benchmarks|configs|tests|synth2_jax)/[\w/]+\.\w+")
    named = {name for page in PAGES for name in path.findall(page.read_text())}
    assert len(named) > 25
    assert sorted(name for name in named if not (ROOT / name).exists()) == []


# --- architecture ---


def section(title: str) -> str:
    """Returns what docs/architecture.md has under a heading."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    return page.partition(f"## {title}")[2].partition("\n## ")[0]


def test_the_rooms_of_the_architecture_page_are_those_of_the_package():
    rows = [line.split("|")[1] for line in section("Rooms").splitlines() if line[:3] == "| `"]
    row_of = {
        name: number
        for number, row in enumerate(rows)
        for name in re.findall(r"`(\w+)(?:\.py|/)?`", row)
    }
    paths = pathlib.Path(synth2_jax.__file__).parent.iterdir()
    rooms = {p.stem for p in paths if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert row_of.keys() == rooms - {"__init__"}
    allowed = load(ROOT / "tests" / "test_imports.py").MAY_IMPORT
    upwards = [
        f"{room} imports {other}"
        for room in row_of
        for other in allowed[room]
        if row_of[other.partition(".")[0]] > row_of[room]
    ]
    assert upwards == []


def test_a_walk_leads_through_twelve_files_that_exist():
    walks = section("Walks").split("\n### ")[1:]
    assert len(walks) == 3
    for walk in walks:
        files = re.findall(r"^\d+\. `([\w/]+\.py)`", walk, re.MULTILINE)
        assert 3 < len(set(files)) <= 12, walk
        folders = (ROOT / "synth2_jax", ROOT)
        assert [file for file in files if not any((f / file).is_file() for f in folders)] == []


# --- errors ---


def texts_of_the_package() -> Iterator[str]:
    """Yields every string of the package, with "..." in the place of what it is filled with."""
    for path in pathlib.Path(synth2_jax.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [p.value if isinstance(p, ast.Constant) else "..." for p in node.values]
                yield "".join(parts)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_every_error_of_the_troubleshooting_page_is_one_of_the_package():
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    quoted = re.findall(r"^\*\*`(.+)`\*\*$", page, re.MULTILINE)
    assert len(quoted) >= 20
    every = _dots("\n".join(text.replace("\n", " ") for text in texts_of_the_package()))
    assert [error for error in quoted if _dots(error) not in every] == []


def _dots(text: str) -> str:
    return re.sub(r"\.{3,}", "...", text)


# --- the page of configs ---


@dataclasses.dataclass(frozen=True)
class InnerConfig:
    depth: int = 1


@dataclasses.dataclass(frozen=True)
class OuterConfig:
    """Holds a section.

    Attributes:
      inner: what is in it, which
        goes on.
      low, high: two at once.
    """

    low: int
    high: float | None = None
    inner: InnerConfig = InnerConfig(depth=3)


def test_a_section_of_the_configs_page_shows_types_defaults_and_meanings():
    text = configs_page()._section(OuterConfig, ["`config` of `train`"])
    assert text.splitlines() == [
        *("## OuterConfig", "", "`config` of `train`", "", "Holds a section.", ""),
        "| key | type | default | meaning |",
        "| --- | --- | --- | --- |",
        "| `low` | int | required | two at once. |",
        "| `high` | float or none | `None` | two at once. |",
        "| `inner` | [InnerConfig](#innerconfig) | `depth=3` | what is in it, which goes on. |",
    ]


def test_the_configs_page_has_the_keys_of_every_stage():
    page = configs_page().page()
    for heading in ("TrainConfig", "DataConfig", "VLMTask", "ResamplerConfig", "SourceConfig"):
        assert f"\n## {heading}\n" in page
    assert "| `batch_size` | int | `64` | rows of all processes together. |" in page
    assert re.findall(r"^\| `(\w+)` .*\|  \|$", page, re.MULTILINE) == []  # keys without a meaning


# --- what runs ---


@pytest.fixture(scope="module")
def after_the_demo(tmp_path_factory, compilation_cache):
    """A folder as a user's after `launch/demo.sh --tiny`, and a function to run a command there."""
    folder = tmp_path_factory.mktemp("after_the_demo")
    for name in ("configs", "benchmarks", "launch"):
        (folder / name).symlink_to(ROOT / name)
    for name in ("photo.jpg", "another.png"):
        Image.fromarray(dataset.examples("test", 1)[0].image).save(folder / name)
    path = f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}

    def run(command: list[str]) -> None:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=1800
        )
        assert done.returncode == 0, f"{command[-1]}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"

    run(["synth2", "demo", "--config=configs/scenes/demo.py:tiny", "--workdir=workdir/demo"])
    return run


def tiny(text: str) -> str:
    """Returns a block with the configs of Scenes as short as they can be."""

    def shorter(found: re.Match) -> str:
        has_tiny = "`:tiny`" in (ROOT / found[1]).read_text()
        words = [*filter(None, [found[2], "tiny" if has_tiny else None])]
        return ":".join([found[1], *filter(None, [",".join(words)])])

    return re.sub(r"(configs/scenes/\w+\.py)(?::(\w+))?", shorter, text)


def test_tiny_shortens_the_configs_that_can_be():
    text = "--config=configs/scenes/vlm.py:mixture --config=configs/scenes/evaluate.py x"
    assert tiny(text) == text.replace("mixture", "mixture,tiny")
    assert tiny("configs/scenes/vlm.py") == "configs/scenes/vlm.py:tiny"


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if any(run for run, *_ in blocks(page))],
    ids=lambda page: page.name,
)
def test_the_blocks_that_are_marked_run(page, after_the_demo):
    for run, language, text in blocks(page):
        if run:
            program = {"bash": ["bash", "-euc"], "python": [sys.executable, "-c"]}[language]
            after_the_demo([*program, tiny(text)])


@pytest.mark.slow
def test_the_notebook_runs_and_keeps_no_output(tmp_path, monkeypatch, compilation_cache):
    import nbclient
    import nbformat

    path = ROOT / "docs" / "quickstart.ipynb"
    kept = [cell.get("outputs") for cell in json.loads(path.read_text())["cells"]]
    assert not any(kept)
    monkeypatch.setenv("QUICKSTART_WORKDIR", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(ROOT / "docs")}}
    ).execute()
    *_, last = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert "tokens (3, 16) embeddings (3, 16, 32)" in last.outputs[0]["text"]
    assert "image/png" in last.outputs[-1]["data"]
