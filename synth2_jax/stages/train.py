"""`synth2 train`: trains a tokenizer, language model, generator or VLM by the one loop.

Writes to the workdir: config.json, checkpoints/, metrics.jsonl and tensorboard/.
"""

import dataclasses
import functools
import itertools
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from synth2_jax import config as config_lib
from synth2_jax import sharding
from synth2_jax.data import pipeline
from synth2_jax.data.pipeline import DataConfig
from synth2_jax.errors import UserError, in_section
from synth2_jax.evaluation.scorer import CaptionScorer, EvaluateConfig
from synth2_jax.files import write_bytes, write_text
from synth2_jax.loading.derived import fill_in
from synth2_jax.loading.pretrained import PretrainedConfig, load_pretrained
from synth2_jax.loading.run import VOCABULARY
from synth2_jax.synthesis.stream import StreamConfig, StreamedBatches
from synth2_jax.text.vocabulary import BUILT_IN, load_vocabulary
from synth2_jax.training import metrics as metrics_lib
from synth2_jax.training.checkpoints import DataIterator
from synth2_jax.training.objectives import make_objective
from synth2_jax.training.optimizer import OptimizerConfig, make_optimizer
from synth2_jax.training.train_loop import TrainLoopConfig, train
from synth2_jax.training.train_state import Objective, TrainState
from synth2_jax.training.train_step import check_batch, step_rngs


@dataclasses.dataclass(frozen=True)
class ValidationConfig:
    """What `train.eval_every` looks at.

    Attributes:
      data: for the losses on held-out data; None for none.
      num_batches: of it.
      captions: for a VLM's CIDEr on images with references; None for none.
    """

    data: DataConfig | None = None
    num_batches: int = 4
    captions: EvaluateConfig | None = None

    def __post_init__(self):
        config_lib.check_counts(self, "num_batches")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """All of a training config.

    Attributes:
      model_name: "tokenizer", "language_model", "generator" or "vlm".
      model: the task of that model: TokenizerTask, LanguageModelTask, GeneratorTask or VLMTask.
      data: what to train on.
      optimizer: how parameters are updated.
      train: steps, checkpoints and logging.
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
    pretrained: PretrainedConfig = PretrainedConfig()
    validation: ValidationConfig = ValidationConfig()
    stream: StreamConfig | None = None
    mesh: sharding.MeshConfig = sharding.MeshConfig()


def run(config: Any, workdir: str) -> TrainState:
    """Trains what the config says, or goes on where the workdir's last checkpoint is."""
    cfg, objective = build(config)
    resolved = config.to_dict() | {
        "model_name": _from_anywhere(cfg.model_name),
        "model": cfg.model,
    }
    tx = make_optimizer(cfg.optimizer, cfg.train.steps)
    mesh, rules = sharding.make_mesh(cfg.mesh), sharding.axis_rules(cfg.mesh)
    _check_rows(cfg, mesh)
    initial_params, built_on = load_pretrained(
        cfg.pretrained, objective, mesh, rules, may_be_random=cfg.data.source == "fake"
    )
    text_encoder = _stored_text_encoder(cfg, objective)
    if text_encoder:
        built_on["text_encoder"] = text_encoder["fingerprint"]
    iterator = _data(cfg, objective, built_on, text_encoder, sharding.data_layout(mesh))
    evaluate = _validation(cfg, objective, built_on, text_encoder, mesh, rules)
    if text_encoder and cfg.pretrained.text_encoder:
        # Later stages open it, perhaps from another folder than this one.
        resolved["pretrained"]["text_encoder"] = os.path.abspath(cfg.pretrained.text_encoder)
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


def build(section: Any, where: str = "--config") -> tuple[TrainConfig, Objective]:
    """Returns the config, filled in (`loading.derived`), and the objective.

    Raises:
      UserError: what can be checked before the data is read.
    """
    cfg = config_lib.build(TrainConfig, fill_in(section, where), where)
    objective = make_objective(cfg.model_name, cfg.model, where)
    if cfg.stream and objective.batches != "vlm":
        raise UserError(
            f"{where}.stream: only works for model_name=vlm (this config trains a {cfg.model_name})"
        )
    _check_text(cfg, objective, where)
    return cfg, objective


def _from_anywhere(model_name: str) -> str:
    """Later stages open a FILE.py:CLASS too, perhaps from another folder than this one."""
    return os.path.abspath(model_name) if ".py:" in model_name else model_name


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
    """What made the stored features of the captions; None where the step makes them, or none is."""
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


def _validation(
    cfg: TrainConfig,
    objective: Objective,
    built_on: Mapping[str, str],
    text_encoder: Mapping[str, Any] | None,
    mesh: Mesh,
    rules: sharding.AxisRules,
) -> Callable[[TrainState], dict[str, float]] | None:
    """What `eval_every` calls; a mistake in its sections comes to light here, before training."""
    data, captions = cfg.validation.data, cfg.validation.captions
    if not cfg.train.eval_every or (data is None and captions is None):
        return None

    @functools.partial(jax.jit, out_shardings=NamedSharding(mesh, PartitionSpec()))
    def losses(state: TrainState, batch, number):
        rngs = step_rngs(state.rng, number)  # each batch has its own masks, the same each time
        with sharding.constraints(mesh, rules):
            return objective.loss(state.params, batch, rngs, state.step, train=False)[0]

    scorer = None
    if captions:
        tokenizer = built_on.get("tokenizer", "")
        with in_section("validation.captions"):
            scorer = CaptionScorer(objective, captions, cfg.data, tokenizer, mesh, rules)

    def held_out() -> Iterator[dict[str, np.ndarray]]:
        return pipeline.eval_batches(
            data,
            objective.batches,
            tokenizer_fingerprint=built_on.get("tokenizer"),
            text_encoder=text_encoder,
            limits=objective.limits,
            layout=sharding.data_layout(mesh),
        )

    def is_full(batch: dict[str, np.ndarray]) -> bool:
        """Whether no process has a row that only fills the batch up; removes their marks."""
        return bool(sharding.over_devices(jnp.all, np.bool_(batch.pop("valid").all())))

    if data is not None:
        with in_section("validation"):
            first = next(held_out())
        if not is_full(first):
            raise UserError(
                f"--config.validation.data: fewer examples than the {data.batch_size} of one batch"
            )
        check_batch(first, objective, mesh, where="--config.validation.data")

    def validate(state: TrainState) -> dict[str, float]:
        scalars = {}
        if data is not None:
            merged = {}
            for number, batch in enumerate(
                itertools.islice(held_out(), cfg.validation.num_batches)
            ):
                if not is_full(batch):
                    break  # A last, partly filled batch would count its filling.
                found = losses(state, sharding.put_batch(batch, mesh), np.int32(number))
                merged = metrics_lib.merge(merged, found) if merged else found
            scalars |= metrics_lib.to_scalars(merged)
        if scorer:
            scalars |= scorer.scores(state.params)
        return {f"validation/{name}": value for name, value in scalars.items()}

    return validate


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
        objective.check_vocabulary(load_vocabulary(cfg.data.vocabulary), f"{where}.model")
    if cfg.validation.data is not None:
        for name in ("text_length", "vocabulary", "prompt"):
            held_out, trained_on = getattr(cfg.validation.data, name), getattr(cfg.data, name)
            if held_out != trained_on:
                raise UserError(
                    f"{where}.validation.data.{name}: found {held_out!r}, expected {trained_on!r} "
                    f"as in {where}.data"
                )


def _reads_text(objective: Objective) -> bool:
    return "text_tokens" in objective.limits
