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
LoRA adapters are merged into the language model, so that an export has none. A Gemma in bfloat16
rounds the sum, and the card says so. With a dtype the parameters are rounded; a VLM's and a
generator's tokenizer stays as it is, since the last bits decide between two tokens.

FILE.safetensors holds the parameters alone, all or a part; its metadata holds model, step,
fingerprints and config. One parameter at a time is in memory, so a laptop can export any model.
"""

import importlib.resources
import json
import os
import pathlib
from typing import Any

import numpy as np

from synth2_jax import config as config_lib
from synth2_jax.data.pipeline import DataConfig
from synth2_jax.errors import UserError
from synth2_jax.files import (
    clear_leftovers,
    folder_written_whole,
    read_json,
    write_bytes,
    write_json,
    write_text,
)
from synth2_jax.fingerprint import by_part
from synth2_jax.interop.safetensors_file import write_folder
from synth2_jax.interop.tensor_files import open_safetensors
from synth2_jax.loading import exported
from synth2_jax.loading.caption_decode import caption_decode
from synth2_jax.loading.export_parameters import MIB, ExportParameters, write_parameters
from synth2_jax.loading.run import with_own_vocabulary
from synth2_jax.models.mask_schedule import masked_counts
from synth2_jax.pages.model_card import model_card, read_results
from synth2_jax.sampling.guidance import GuidanceConfig
from synth2_jax.sampling.parallel_decode import ParallelDecodeConfig
from synth2_jax.sampling.text_decode import TextDecodeConfig
from synth2_jax.text.vocabulary import load_vocabulary, vocabulary_path
from synth2_jax.training import checkpoint_reader
from synth2_jax.training.objectives import make_objective

README, TRAINING, EXAMPLE = "README.md", "training.json", "load_example.py"
# How each model samples: sections of config.json, and of --config.
SETTINGS = {
    "generator": {"sampler": ParallelDecodeConfig, "guidance": GuidanceConfig},
    "vlm": {"decode": TextDecodeConfig},
}
_EXAMPLES = {"generator": "example_generator.py", "vlm": "example_vlm.py"}


def run(
    config: Any,
    workdir: str,
    output: str = "",
    part: str = "",
    dtype: str = "",
    overwrite: bool = False,
    **of_a_folder: Any,
) -> None:
    """Writes the folder or the file."""
    if not output:
        raise UserError(
            "--output: not given. Give a folder, or FILE.safetensors for parameters alone"
        )
    target = pathlib.Path(output)
    is_file = target.suffix == ".safetensors"
    as_dtype = config_lib.dtype(dtype, "--dtype") if dtype else None
    given = ["--config"] * (config is not None) + [f"--{name}" for name in of_a_folder]
    if is_file and given:
        raise UserError(f"{' '.join(given)} needs --output to be a folder (found {output})")
    if part and not is_file:
        raise UserError(f"--part={part} needs --output=FILE.safetensors (found {output})")
    clear_leftovers(target)
    _check_free(target, target.is_file() if is_file else _is_only_an_export(target), overwrite)
    if is_file:
        parameters = ExportParameters(workdir, part, as_dtype)
        write_parameters(target, parameters)
        files, what = [target], f"{len(parameters.names)} parameters of step {parameters.step}"
    else:
        parameters = ExportParameters(workdir, "", as_dtype, kept_as_is="tokenizer")
        what = _write_folder(target, workdir, config, as_dtype, parameters, **of_a_folder)
        files = list(target.iterdir())
    if parameters.rounds_adapters:
        what += ", merged adapters rounded (see docs/stages.md)"
    print(f"{target}: {what}, {sum(file.stat().st_size for file in files):,} bytes")


def _write_folder(
    target: pathlib.Path,
    workdir: str,
    config: Any,
    dtype: Any,
    parameters: ExportParameters,
    results: str = "",
    license: str = "",
    file_mib: int = 4096,
) -> str:
    """Writes all files; returns the model's name and step."""
    resolved, _ = checkpoint_reader.read_description(workdir, parameters.step)
    described, built_on = parameters.description()
    model_name = str(resolved.get("model_name"))
    task = make_objective(model_name, described["model"]).task
    data = config_lib.build(DataConfig, with_own_vocabulary(resolved, workdir)["data"])
    settings = _settings(config, model_name, task, data)
    if dtype is not None and model_name == "tokenizer":
        raise UserError("--dtype: a tokenizer stays as it is, its last bits decide between tokens")
    tokenizer = getattr(task, "tokenizer", None)
    trained = expected = by_part(parameters.as_saved(), tokenizer)
    run_folder = checkpoint_reader.run_folder(workdir)
    scores = read_results(results, run_folder, model_name, trained)
    if parameters.adapters:
        trained = by_part(parameters.merged(), tokenizer)
        expected = by_part(parameters.as_loaded(), tokenizer)
    with folder_written_whole(target) as folder:
        files = write_folder(folder, parameters.by_tensor(), parameters.arrays(), file_mib * MIB)
        # Of what is on the disk now, in the dtypes that a model has when it is loaded.
        tensors = open_safetensors(folder)
        arrays = (
            (name, np.asarray(tensors[exported.tensor_name(name)].astype(leaf.dtype)))
            for name, leaf in ((name, parameters.saved[name]) for name in parameters.names)
        )
        found = by_part(arrays, tokenizer)
        if dtype is None and found != expected:
            raise UserError(f"{target}: reads back as {found}, expected {expected}; is it damaged?")
        data_section = {}
        if hasattr(task, "text_length"):
            vocabulary = pathlib.Path(vocabulary_path(data.vocabulary)).read_bytes()
            write_bytes(folder / exported.VOCABULARY, vocabulary)
            files = [*files, exported.VOCABULARY]
            data_section = {"prompt": data.prompt, "text_length": data.text_length}
        description = exported.describe(
            model_name=model_name,
            **settings,
            data=data_section,
            model=_plain(task),
            run=run_folder.name,
            step=parameters.step,
            fingerprints=found,
            built_on=built_on,
            sha256={name: exported.sha256_of(folder / name) for name in files},
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
    return f"{model_name} of step {parameters.step}"


def _settings(config: Any, model_name: str, task: Any, data: DataConfig) -> dict[str, Any]:
    """Returns the model's default sampling settings, from --config where it has them."""
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


def _is_only_an_export(folder: pathlib.Path) -> bool:
    """Returns whether replacing a folder loses nothing but an export; true of an empty one."""
    names = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
    if exported.CONFIG not in names:
        return folder.is_dir() and not names
    description = read_json(folder / exported.CONFIG, "export")
    files = description.get("sha256")
    if description.get("format") != exported.FORMAT or not isinstance(files, dict):
        return False
    return names <= {exported.CONFIG, README, TRAINING, EXAMPLE, *files}
