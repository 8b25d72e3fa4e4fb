"""`synth2 train`: trains a tokenizer, language model, generator or VLM by the one loop.

Writes to the workdir: config.json, checkpoints/, metrics.jsonl and tensorboard/.
"""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
from absl import logging
from jax.sharding import Mesh

from synth2_jax import config as config_lib
from synth2_jax import sharding
from synth2_jax.data import pipeline
from synth2_jax.data.pipeline import DataConfig
from synth2_jax.errors import UserError
from synth2_jax.evaluation.validation import ValidationConfig, Validator
from synth2_jax.files import write_bytes, write_text
from synth2_jax.loading import init_from
from synth2_jax.loading.derived import TEXT_KEYS, fill_in
from synth2_jax.loading.init_from import InitConfig
from synth2_jax.loading.pretrained import PretrainedConfig, load_pretrained
from synth2_jax.loading.run import VOCABULARY
from synth2_jax.synthesis.stream import StreamConfig, StreamedBatches
from synth2_jax.text.vocabulary import BUILT_IN, load_vocabulary
from synth2_jax.training import metrics as metrics_lib
from synth2_jax.training.checkpoint_reader import own_steps
from synth2_jax.training.checkpoints import DataIterator
from synth2_jax.training.objectives import make_objective
from synth2_jax.training.optimizer import OptimizerConfig, make_optimizer
from synth2_jax.training.train_loop import TrainLoopConfig, train
from synth2_jax.training.train_state import Objective, TrainState, flatten


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """All of a training config.

    Attributes:
      model_name: "tokenizer", "language_model", "generator" or "vlm".
      model: the task of that model: TokenizerTask, LanguageModelTask, GeneratorTask or VLMTask.
      data: what to train on.
      optimizer: how parameters are updated.
      train: steps, checkpoints and logging.
      init: where the parameters of a new run start.
      pretrained: where the frozen parts come from.
      validation: what is evaluated during training.
      stream: makes a share of a VLM's batches during training instead of reading it.
      mesh: how parameters and batches lie on the devices.
    """

    model_name: str
    model: Any
    data: DataConfig
    optimizer: OptimizerConfig
    train: TrainLoopConfig
    init: InitConfig = InitConfig()
    pretrained: PretrainedConfig = PretrainedConfig()
    validation: ValidationConfig = ValidationConfig()
    stream: StreamConfig | None = None
    mesh: sharding.MeshConfig = sharding.MeshConfig()


def run(config: Any, workdir: str) -> TrainState:
    """Trains what the config says, or goes on where the workdir's last checkpoint is."""
    cfg, objective = build(config, workdir=workdir)
    resolved = config.to_dict() | {"model": cfg.model}
    if ".py:" in cfg.model_name:  # later stages open it too, perhaps from another folder
        resolved["model_name"] = os.path.abspath(cfg.model_name)
    if cfg.optimizer.decays:  # the default was another in older versions
        skipped = {"weight_decay_skip": cfg.optimizer.weight_decay_skip}
        resolved["optimizer"] = {**resolved["optimizer"], **skipped}
    tx = make_optimizer(cfg.optimizer, cfg.train.steps)
    mesh, rules = sharding.make_mesh(cfg.mesh), sharding.axis_rules(cfg.mesh)
    _check_rows(cfg, mesh)
    initial_params, built_on, origin = _initial_params(cfg, objective, mesh, rules, workdir)
    if origin:
        texts = {name: getattr(cfg.data, name) for name in TEXT_KEYS}
        resolved |= {"started_from": origin, "data": {**resolved["data"], **texts}}
    text_encoder = _stored_text_encoder(cfg, objective)
    if text_encoder:
        built_on["text_encoder"] = text_encoder["fingerprint"]
    iterator = _data(cfg, objective, built_on, text_encoder, sharding.data_layout(mesh))
    evaluate = None
    if cfg.train.eval_every and (cfg.validation.data or cfg.validation.captions):
        made_by = built_on, text_encoder
        evaluate = Validator(cfg.validation, objective, cfg.data, *made_by, mesh, rules)
    if text_encoder and cfg.pretrained.text_encoder:
        # Later stages open it, perhaps from another folder than this one.
        encoder = {"text_encoder": os.path.abspath(cfg.pretrained.text_encoder)}
        resolved["pretrained"] = {**resolved.get("pretrained", {}), **encoder}
    _keep_vocabulary(cfg, objective, pathlib.Path(workdir))
    if jax.process_index() == 0:
        write_text(pathlib.Path(workdir) / "config.json", config_lib.to_json(resolved))
    writers = metrics_lib.make_writers(workdir, cfg.train.steps, cfg.model_name)
    try:
        return train(
            objective,
            tx,
            mesh,
            iterator,
            cfg.train,
            workdir,
            writers,
            evaluate=evaluate,
            initial_params=initial_params,
            resolved_config=resolved,
            built_on=built_on,
            rules=rules,
        )
    finally:
        for writer in writers:
            writer.close()


def build(
    section: Any, where: str = "--config", workdir: str = ""
) -> tuple[TrainConfig, Objective]:
    """Returns the config, filled in (`loading.derived`), and the objective.

    Raises:
      UserError: what the config, the pretrained parts' files and the vocabulary show.
    """
    cfg = config_lib.build(TrainConfig, fill_in(section, where, workdir), where)
    objective = make_objective(cfg.model_name, cfg.model, where)
    if cfg.stream and objective.batches != "vlm":
        raise UserError(
            f"{where}.stream: only works for model_name=vlm (this config trains a {cfg.model_name})"
        )
    _check_images_per_text(cfg, objective, where)
    _check_text(cfg, objective, where)
    return cfg, objective


def _initial_params(
    cfg: TrainConfig,
    objective: Objective,
    mesh: Mesh,
    rules: sharding.AxisRules,
    workdir: str,
) -> tuple[dict[str, Any], dict[str, str], Mapping[str, Any]]:
    """Returns the parameters that are loaded, fingerprints of the parts, and `Start.origin`."""
    given = {name for name in objective.parts if getattr(cfg.pretrained, name)}
    start = init_from.start(
        *(cfg.init, cfg.model_name, cfg.model, objective, given, workdir, mesh, rules)
    )
    is_fake = cfg.data.source == "fake"
    options = {"may_be_random": is_fake, "held": start.fingerprints}
    parts, built_on = load_pretrained(cfg.pretrained, objective, mesh, rules, **options)
    taken = start.params.keys() - flatten(parts).keys()
    loaded = {path: start.params[path] for path in taken} | parts
    if not is_fake and not own_steps(workdir):
        for name, part in objective.parts.items():
            if not any(f"{path}/".startswith(f"{part.path}/") for path in loaded):
                logging.warning(
                    "--config.pretrained.%s: empty, so that part starts at random. Give its path, "
                    "or --config.init.from",
                    name,
                )
    return loaded, built_on, start.origin


def _keep_vocabulary(cfg: TrainConfig, objective: Objective, workdir: pathlib.Path) -> None:
    """Copies a vocabulary of the user's to the run: later stages need it, wherever it was.

    Raises:
      UserError: the run was begun with another one.
    """
    name, kept = cfg.data.vocabulary, workdir / VOCABULARY
    if not _reads_text(objective) or name in BUILT_IN or not os.path.isfile(name):
        return
    contents = pathlib.Path(name).read_bytes()
    if kept.exists() and kept.read_bytes() != contents:
        raise UserError(
            f"--config.data.vocabulary: found {name!r}, expected the vocabulary that this run "
            f"began with, {kept}. To change it, train in another workdir."
        )
    if jax.process_index() == 0 and not kept.exists():
        write_bytes(kept, contents)


def _check_rows(cfg: TrainConfig, mesh: Mesh) -> None:
    """Raises UserError unless the mesh cuts every batch of this run into equal parts."""
    batch_size, held_out = cfg.data.batch_size, cfg.validation
    sharding.check_rows(batch_size, mesh, "--config.data.batch_size", cfg.train.microbatches)
    if cfg.stream:
        sharding.check_rows(cfg.stream.num_synthetic(batch_size), mesh, "--config.stream.share")
    for name in ("data", "captions"):
        if cfg.train.eval_every and (section := getattr(held_out, name)):
            where = f"--config.validation.{name}.batch_size"
            sharding.check_rows(section.batch_size, mesh, where)


def _stored_text_encoder(cfg: TrainConfig, objective: Objective) -> dict[str, Any] | None:
    """Returns the encoder of the stored caption features; None if there are no stored ones."""
    if cfg.data.source == "fake" or not getattr(objective.task, "stored_text_features", False):
        return None
    return pipeline.stored_text_encoder(cfg.data)


def _data(
    cfg: TrainConfig,
    objective: Objective,
    built_on: Mapping[str, str],
    text_encoder: Mapping[str, Any] | None,
    layout: sharding.DataLayout,
) -> DataIterator:
    """This process's rows of every batch: those of `data`, of `stream`, or of both."""
    batch_size = cfg.data.batch_size
    if cfg.stream:
        batch_size -= cfg.stream.num_synthetic(batch_size)
    iterator = None
    if batch_size:
        iterator = pipeline.train_iterator(
            dataclasses.replace(cfg.data, batch_size=batch_size),
            objective.batches,
            tokenizer_fingerprint=built_on.get("tokenizer"),
            text_encoder=text_encoder,
            batch_spec=objective.batch_spec(batch_size),
            limits=objective.limits,
            layout=layout,
        )
    if cfg.stream:
        tokenizer = built_on.get("tokenizer", "")
        iterator = StreamedBatches(cfg.stream, cfg.data, tokenizer, iterator, layout)
    return iterator


def _check_images_per_text(cfg: TrainConfig, objective: Objective, where: str) -> None:
    """Raises UserError unless the model takes as many images a text as the data has."""
    found, key = cfg.data.images_per_text, f"{where}.data.images_per_text"
    if found > 1 and not hasattr(objective.task, "images_per_text"):
        raise UserError(
            f"{key}: found {found}, expected 1: several images a text only work for model_name=vlm "
            f"(this config trains a {cfg.model_name})"
        )
    expected = getattr(objective.task, "images_per_text", 1)
    if found != expected:
        raise UserError(
            f"{where}.model.images_per_text: found {expected}, expected {found} as in {key}; leave "
            "it out to take that"
        )
    if found > 1 and cfg.stream:
        raise UserError(
            f"{key}: found {found}, expected 1 with {where}.stream. Store the pairs first, by "
            "`synth2 synthesize`."
        )


def _check_text(cfg: TrainConfig, objective: Objective, where: str) -> None:
    """The model's text length and vocabulary must be the data's, all of it validation's too."""
    if not _reads_text(objective):
        return
    task = objective.task
    if task.text_length != cfg.data.text_length:
        raise UserError(
            f"{where}.model.text_length: found {task.text_length}, expected {cfg.data.text_length} "
            f"as in {where}.data.text_length; leave it out to take that"
        )
    if cfg.data.source != "fake" and cfg.data.vocabulary:  # without one, who reads it complains
        vocabulary = load_vocabulary(cfg.data.vocabulary)
        given = {name for name in objective.parts if getattr(cfg.pretrained, name)}
        objective.check_vocabulary(vocabulary, f"{where}.model", given)
    if cfg.validation.data is not None:
        for name in TEXT_KEYS:
            held_out, trained_on = getattr(cfg.validation.data, name), getattr(cfg.data, name)
            if held_out != trained_on:
                raise UserError(
                    f"{where}.validation.data.{name}: found {held_out!r}, expected {trained_on!r} "
                    f"as in {where}.data"
                )


def _reads_text(objective: Objective) -> bool:
    return "text_tokens" in objective.limits
