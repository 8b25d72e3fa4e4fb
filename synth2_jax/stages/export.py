"""`synth2 export DIR --output=FOLDER`: writes a trained model to use elsewhere, and to share.

    synth2 export workdir/demo/vlm_real_synthetic --output=my_vlm --license=apache-2.0 \\
        --results=workdir/demo/evaluation/vlm_real_synthetic/results.json
    synth2 export workdir/demo/generator --output=my_generator --dtype=bfloat16 \\
        --config=configs/scenes/synthesize.py
    synth2 export workdir/pod/checkpoints/1000 --output=resampler.safetensors --part=vlm/resampler

DIR is a training run, its checkpoints or one of them. FOLDER is what `loading.exported` describes,
with a model card (README.md), the run's config (training.json), and for a VLM or a generator an
example (load_example.py); everything that takes a run's workdir takes it too. A config says how the
model samples by default: the sections `sampler` and `guidance` of a generator, `decode` of a VLM.
With a dtype the parameters are rounded; a VLM's and a generator's tokenizer stays as it is, since
the last bits decide between two tokens.

FILE.safetensors holds the parameters alone, all or a part; its metadata holds model, step,
fingerprints and config. One parameter at a time is in memory, so a laptop can export any model.
"""

import contextlib
import hashlib
import importlib.resources
import itertools
import json
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import synth2_jax
from synth2_jax import config as config_lib
from synth2_jax.data.pipeline import DataConfig
from synth2_jax.errors import UserError, nearest
from synth2_jax.files import (
    FULL_DISK,
    leftovers,
    read_json,
    temporary_name,
    write_bytes,
    write_json,
    write_text,
)
from synth2_jax.fingerprint import fingerprint_arrays, with_settings
from synth2_jax.interop.safetensors_file import FORMAT, write_folder, write_tensors
from synth2_jax.interop.tensor_files import open_safetensors
from synth2_jax.loading import exported
from synth2_jax.loading.caption_decode import caption_decode
from synth2_jax.loading.run import with_own_vocabulary
from synth2_jax.models.mask_schedule import masked_counts
from synth2_jax.pages.model_card import model_card, read_results
from synth2_jax.progress import Progress
from synth2_jax.sampling.guidance import GuidanceConfig
from synth2_jax.sampling.parallel_decode import ParallelDecodeConfig
from synth2_jax.sampling.text_decode import TextDecodeConfig
from synth2_jax.text.vocabulary import load_vocabulary, vocabulary_path
from synth2_jax.training import checkpoint_reader
from synth2_jax.training.objectives import make_objective

MIB = 2**20
README, TRAINING, EXAMPLE = "README.md", "training.json", "load_example.py"
# How each model samples: sections of config.json, and of --config.
SETTINGS = {
    "generator": {"sampler": ParallelDecodeConfig, "guidance": GuidanceConfig},
    "vlm": {"decode": TextDecodeConfig},
}
_BEFORE = ".before"  # ends the name of an export that is being replaced
_EXAMPLES = {"generator": "example_generator.py", "vlm": "example_vlm.py"}


def run(
    config: Any,
    workdir: str,
    output: str = "",
    part: str = "",
    dtype: str = "",
    overwrite: bool = False,
    **of_a_folder: str,
) -> None:
    """Writes the folder or the file."""
    if not output:
        raise UserError(
            "--output: not given. Give a folder, or FILE.safetensors for parameters alone"
        )
    target = pathlib.Path(output)
    as_dtype = config_lib.dtype(dtype, "--dtype") if dtype else None
    _clear_up(target)
    if target.suffix == ".safetensors":
        if config is not None or of_a_folder:
            given = ["--config" * (config is not None), *(f"--{name}" for name in of_a_folder)]
            raise UserError(
                f"{' '.join(given).strip()} needs --output to be a folder (found {output})"
            )
        _check_free(target, target.is_file(), overwrite)
        step = checkpoint_reader.latest_step(workdir)
        with _full_disk_in_one_line(target):
            _write_file(target, _Parameters(workdir, step, part, as_dtype, kept_as_is=""))
        return
    if part:
        raise UserError(f"--part={part} needs --output=FILE.safetensors (found {output})")
    _check_free(target, _holds_no_more_than_an_export(target), overwrite)
    with _full_disk_in_one_line(target):
        _write_folder(target, workdir, config, as_dtype, **of_a_folder)


class _Parameters:
    """The parameters of a checkpoint, or of a part of it, and the dtypes to write them in."""

    def __init__(self, workdir: str, step: int, part: str, dtype: Any, kept_as_is: str):
        found = checkpoint_reader.saved_arrays(workdir, step)
        start = f"{part}/" if part else ""
        self.names = sorted(name for name in found if f"{name}/".startswith(start))
        if not self.names:
            parts = {"/".join(name.split("/")[:depth]) for name in found for depth in (1, 2)}
            raise UserError(f"--part={part}: the model has no such part; {nearest(part, parts)}")
        self.workdir, self.step, self.saved = workdir, step, found
        self.shapes = {
            name: found[name]
            if kept_as_is and name.startswith(f"{kept_as_is}/")
            else _cast_shape(found[name], dtype)
            for name in self.names
        }

    def by_tensor(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes by name in the file."""
        return {exported.tensor_name(name): leaf for name, leaf in self.shapes.items()}

    def arrays(self) -> Iterator[np.ndarray]:
        """The parameters as they are written."""
        total = sum(leaf.size * leaf.dtype.itemsize for leaf in self.shapes.values()) // MIB
        done = 0
        with Progress("export", total, "MiB") as progress:
            for name, array in self.as_saved():
                array = np.asarray(array).astype(self.shapes[name].dtype)
                yield array
                done += array.nbytes
                progress.add(done // MIB)
                done %= MIB

    def as_saved(self) -> Iterator[tuple[str, np.ndarray]]:
        """(path, parameter) as they lie in the checkpoint."""
        return checkpoint_reader.read_arrays(self.workdir, self.step, self.names)


def _write_file(target: pathlib.Path, parameters: _Parameters) -> None:
    resolved, built_on = checkpoint_reader.read_description(parameters.workdir, parameters.step)
    written: list[str] = []

    def arrays() -> Iterator[np.ndarray]:
        for array in parameters.arrays():
            written.append(_sha256(array))
            yield array

    write_tensors(
        target,
        parameters.by_tensor(),
        arrays(),
        metadata={
            "format": FORMAT,
            "version": synth2_jax.__version__,
            "model_name": str(resolved.get("model_name")),
            "step": str(parameters.step),
            "fingerprints": json.dumps(built_on, sort_keys=True),
            "config": json.dumps(resolved, sort_keys=True),
        },
    )
    tensors = open_safetensors(target)
    if [_sha256(np.asarray(tensors[name])) for name in parameters.by_tensor()] != written:
        raise UserError(f"{target}: does not read back as it was written; is the disk damaged?")
    num_bytes = target.stat().st_size
    print(
        f"{target}: {len(parameters.names)} parameters of step {parameters.step}, "
        f"{num_bytes:,} bytes"
    )


def _sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).view(np.uint8)).hexdigest()


def _write_folder(
    target: pathlib.Path,
    workdir: str,
    config: Any,
    dtype: Any,
    results: str = "",
    license: str = "",
    file_mib: int = 4096,
) -> None:
    step = checkpoint_reader.latest_step(workdir)
    resolved, built_on = checkpoint_reader.read_description(workdir, step)
    model_name = str(resolved.get("model_name"))
    task = make_objective(model_name, resolved["model"]).task
    of_run = config_lib.build(DataConfig, with_own_vocabulary(resolved, workdir)["data"])
    settings = _settings(config, model_name, task, of_run)
    if dtype is not None and model_name == "tokenizer":
        raise UserError("--dtype: a tokenizer stays as it is, its last bits decide between tokens")
    parameters = _Parameters(workdir, step, "", dtype, kept_as_is="tokenizer")
    trained = _fingerprints(parameters.as_saved(), task)
    run_folder = checkpoint_reader.run_folder(workdir)
    scores = read_results(results, run_folder, model_name, trained)
    with _folder_written_whole(target) as folder:
        files = write_folder(folder, parameters.by_tensor(), parameters.arrays(), file_mib * MIB)
        # Of what is on the disk now, in the dtypes that a model has when it is loaded.
        tensors = open_safetensors(folder)
        arrays = (
            (name, np.asarray(tensors[exported.tensor_name(name)].astype(leaf.dtype)))
            for name, leaf in sorted(parameters.saved.items())
        )
        found = _fingerprints(arrays, task)
        if dtype is None and found != trained:
            raise UserError(f"{target}: reads back as {found}, expected {trained}; is it damaged?")
        data = {}
        if hasattr(task, "text_length"):
            vocabulary = pathlib.Path(vocabulary_path(of_run.vocabulary)).read_bytes()
            write_bytes(folder / exported.VOCABULARY, vocabulary)
            files = [*files, exported.VOCABULARY]
            data = {"prompt": of_run.prompt, "text_length": of_run.text_length}
        description = exported.describe(
            model_name=model_name,
            model=_plain(task),
            data=data,
            run=run_folder.name,
            step=step,
            fingerprints=found,
            built_on=built_on,
            sha256={name: exported.sha256_of(folder / name) for name in files},
            **settings,
        )
        write_json(folder / exported.CONFIG, description)
        write_text(folder / TRAINING, config_lib.to_json(resolved))
        if model_name in _EXAMPLES:
            example = importlib.resources.files("synth2_jax.loading") / _EXAMPLES[model_name]
            write_text(folder / EXAMPLE, example.read_text())
        card = model_card(
            name=target.name,
            task=task,
            description=description,
            training=resolved,
            run_folder=run_folder,
            trained=trained,
            parameters=parameters.shapes,
            scores=scores,
            license=license,
        )
        write_text(folder / README, card)
    num_bytes = sum(file.stat().st_size for file in target.iterdir())
    print(f"{target}: {model_name} of step {step}, {num_bytes:,} bytes")


def _settings(config: Any, model_name: str, task: Any, data: DataConfig) -> dict[str, Any]:
    """How the model samples by default, of --config where it says so."""
    classes = SETTINGS.get(model_name, {})
    given = {} if config is None else config.to_dict()
    if config is not None and not given.keys() & classes.keys():
        raise UserError(
            f"--config: found {sorted(given)}, expected a section for how a {model_name} samples: "
            f"{', '.join(classes) or 'there is none'}"
        )
    settings = {
        name: config_lib.build(cls, given.get(name), f"--config.{name}")
        for name, cls in classes.items()
    }
    if "decode" in settings:
        vocabulary = load_vocabulary(data.vocabulary)
        settings["decode"] = caption_decode(
            given.get("decode"), data, vocabulary, "--config.decode"
        )
    if sampler := settings.get("sampler"):  # raises what will not do
        masked_counts(sampler.schedule, sampler.num_steps, task.tokenizer.num_tokens)
    return {name: _plain(setting) for name, setting in settings.items()}


def _plain(section: Any) -> Any:
    """A dataclass as JSON's types, its defaults included: they may change, an export must not."""
    return json.loads(config_lib.to_json(section))


def _fingerprints(arrays: Iterable[tuple[str, np.ndarray]], task: Any) -> dict[str, str]:
    """`Trained.fingerprint` of each part, from (path, array) by rising path."""
    tokenizer = getattr(task, "tokenizer", None)
    found = {}
    for part, of_part in itertools.groupby(arrays, lambda item: item[0].partition("/")[0]):
        digest = fingerprint_arrays((path.partition("/")[2], array) for path, array in of_part)
        found[part] = with_settings(part, digest, tokenizer)
    return found


def _check_free(target: pathlib.Path, replaceable: bool, overwrite: bool) -> None:
    if not os.path.lexists(target):
        return
    if not replaceable:
        raise UserError(
            f"--output={target}: already exists and is not only an export, so it is kept. "
            "Choose another place"
        )
    if not overwrite:
        raise UserError(f"--output={target}: already exists. --overwrite replaces it")
    if not os.access(target, os.W_OK):
        raise UserError(f"--output={target}: is there and read-only. Choose another place")


def _holds_no_more_than_an_export(folder: pathlib.Path) -> bool:
    """Whether nothing else would be lost with a folder, which may be empty too."""
    names = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
    if exported.CONFIG not in names:
        return folder.is_dir() and not names
    description = read_json(folder / exported.CONFIG, "export")
    files = description.get("sha256")
    if description.get("format") != exported.FORMAT or not isinstance(files, dict):
        return False
    return names <= {exported.CONFIG, README, TRAINING, EXAMPLE, *files}


def _clear_up(target: pathlib.Path) -> None:
    """Removes what killed exports to the target left; puts back what one was about to replace."""
    for before in leftovers(target, _BEFORE):
        if not target.exists():
            os.rename(before, target)
    for left in [*leftovers(target), *leftovers(target, _BEFORE)]:
        try:
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        except OSError as error:
            raise UserError(
                f"{left}: left by a killed export, and cannot be removed ({error.strerror}). "
                "Remove it"
            ) from error


@contextlib.contextmanager
def _folder_written_whole(target: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a folder to write to, which takes the target's place if the body ends well."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(target)
    before = temporary.with_suffix(_BEFORE)
    temporary.mkdir()
    try:
        yield temporary
        if target.exists():
            os.rename(target, before)
        try:
            os.rename(temporary, target)
        except OSError:
            if before.exists():
                os.rename(before, target)
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if target.exists():
            shutil.rmtree(before, ignore_errors=True)


@contextlib.contextmanager
def _full_disk_in_one_line(target: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = next((text for text in FULL_DISK if text in str(error)), None)
        if reason is None:
            raise
        raise UserError(
            f"{target}: {reason}; nothing is left of it, make room and give the same command"
        ) from error


def _cast_shape(leaf: jax.ShapeDtypeStruct, dtype: Any) -> jax.ShapeDtypeStruct:
    floating = jnp.issubdtype(leaf.dtype, jnp.floating)
    chosen = dtype if dtype is not None and floating else leaf.dtype
    return jax.ShapeDtypeStruct(leaf.shape, np.dtype(chosen))
