"""Scores of how well images fit their captions, by likelihoods of a generator or a VLM.

Legend: B batch, N image tokens, T text tokens, P pairs of a pool.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import numpy as np

from synth2_jax import config as config_lib
from synth2_jax import sharding
from synth2_jax.data import records
from synth2_jax.data.pipeline import DataConfig
from synth2_jax.data.records import Manifest, Pair
from synth2_jax.errors import UserError, naming, nearest
from synth2_jax.fingerprint import older_forms
from synth2_jax.loading.run import Trained
from synth2_jax.loading.text_encoders import with_text_encoder
from synth2_jax.loading.trained import load_trained
from synth2_jax.models.maskgit import Generator
from synth2_jax.models.vlm import VLM
from synth2_jax.models.vq_tokenizer import VQTokenizer
from synth2_jax.scoring.alignment import (
    LikelihoodRatioConfig,
    make_caption_likelihood,
    make_likelihood_ratio,
    make_pool_likelihood,
    retrieve,
)
from synth2_jax.text.caption_ids import text_ids, vlm_text
from synth2_jax.text.vocabulary import load_vocabulary

_MODEL_OF = {"likelihood_ratio": "generator", "caption": "vlm", "cycle": "vlm"}
_SCORE = [("score", "<f4")]
_RETRIEVAL = [*_SCORE, ("rank", "<i4"), ("best", "<i4")]  # best: a row of the shard


@dataclasses.dataclass(frozen=True)
class CaptionLikelihoodConfig:
    """Settings of what the VLM's likelihood of the caption is compared with.

    Attributes:
      minus_language_model: whether to take away what the caption is worth without the image, by the
        language model that the VLM was built on (adapters are left out); else short captions and
        those often seen are preferred. Either way captions of what the VLM was never trained on go
        first, which a pool's margin ("cycle") does not do.
    """

    minus_language_model: bool = True


@dataclasses.dataclass(frozen=True)
class CycleConfig:
    """Retrieval within a pool.

    Attributes:
      pool_size: pairs that follow each other and are one pool.
    """

    pool_size: int = 64

    def __post_init__(self):
        config_lib.check_counts(self, "pool_size")


@dataclasses.dataclass(frozen=True)
class FilterConfig:
    """Attributes:

    folder: folder of the pairs.
    scores_folder: where the scores are kept; "" for PAIRS/scores.
    scores: which to compute: "likelihood_ratio" needs the generator, "caption" and "cycle" the VLM.
    by: the score that decides.
    generator, vlm: workdir or export of the model; "" if no score needs it.
    text_encoder: as in a synthesize config.
    keep: share of the pairs to keep, those of the highest scores; unused with a threshold.
    threshold: keeps pairs of at least this score; None keeps a share.
    action: what happens to the other pairs: "drop"; "repair" gives a caption the best image of its
      pool, and drops it if that is its own; "keep" leaves all as they are and only scores.
    likelihood_ratio, caption, cycle: settings of the scores of these names.
    batch_size: pairs a batch, over the devices of one process; of "cycle" it is the pool.
    mesh: where a model lies, of the devices of one process: processes share no work.
    """

    folder: str
    scores_folder: str = ""
    scores: tuple[str, ...] = ("cycle",)
    by: str = "cycle"
    generator: str = ""
    text_encoder: str = ""
    vlm: str = ""
    keep: float = 0.8
    threshold: float | None = None
    action: Literal["keep", "drop", "repair"] = "drop"
    likelihood_ratio: LikelihoodRatioConfig = LikelihoodRatioConfig()
    caption: CaptionLikelihoodConfig = CaptionLikelihoodConfig()
    cycle: CycleConfig = CycleConfig()
    batch_size: int = 256
    mesh: sharding.MeshConfig = sharding.MeshConfig()

    def __post_init__(self):
        config_lib.check_counts(self, "batch_size")
        for name in self.scores:
            if name not in _MODEL_OF:
                raise UserError(f"scores: unknown {name!r}; {nearest(name, _MODEL_OF)}")
        if self.by not in self.scores:
            raise UserError(
                f"by: found {self.by!r}, expected one of `scores`; {nearest(self.by, self.scores)}"
            )
        if not 0 < self.keep <= 1:
            raise UserError(f"keep: found {self.keep}, expected a share above 0, up to 1")
        if self.action == "repair" and "cycle" not in self.scores:
            raise UserError(
                f"action: found 'repair', expected 'cycle' in `scores`={self.scores}: it finds "
                "the image that a caption takes"
            )


class PairScorer:
    """Scores pairs in batches of one shape.

    Attributes:
      settings: all that determines the scores, JSON values.
      dtype: of the scores, numpy's.
    """

    def __init__(self, name: str, trained: Trained, cfg: FilterConfig):
        self._name, model = name, _MODEL_OF[name]
        config, where, self._rows = getattr(cfg, name), "batch_size", cfg.batch_size
        self.dtype = _SCORE
        if name == "cycle":
            where, self._rows, self.dtype = "cycle.pool_size", config.pool_size, _RETRIEVAL
        mesh, rules = (
            sharding.make_mesh(cfg.mesh, jax.local_devices()),
            sharding.axis_rules(cfg.mesh),
        )
        sharding.check_rows(self._rows, mesh, f"--config.{where}")
        data = config_lib.build(DataConfig, trained.config["data"])
        self._vocabulary, self._prompt = load_vocabulary(data.vocabulary), data.prompt
        self._text_length = trained.objective.task.text_length
        self.settings = {
            **dataclasses.asdict(config),
            "pairs": records.read_manifest(cfg.folder).fingerprint,
            # As versions before wrote it: their scores stay good.
            "tokenizer": older_forms(trained.fingerprint("tokenizer"))[0],
            model: trained.fingerprint(model),
            "model": trained.config["model"],
            "vocabulary": records.sha256_of(pathlib.Path(self._vocabulary.path)),
            "prompt": data.prompt,
        }
        score = _SCORES[name](trained, config)

        def on_mesh(*arguments):
            with sharding.constraints(mesh, rules):
                return score(*arguments)

        compiled, rows_over = jax.jit(on_mesh), sharding.batch_sharding(mesh)
        self._score = lambda *arrays: compiled(trained.params, *jax.device_put(arrays, rows_over))

    def __call__(
        self, pairs: Sequence[Pair], first: int, done: Callable[[int], None]
    ) -> np.ndarray:
        """The scores of a shard whose first pair has the number `first`."""
        parts = [np.zeros(0, self.dtype)]
        for start in range(0, len(pairs), self._rows):
            part = pairs[start : start + self._rows]
            filled = [*part, *[part[-1]] * (self._rows - len(part))]
            found = self._score(*self._arrays(filled, len(part), first + start))
            scores = np.zeros(self._rows, self.dtype)
            for field, values in zip(scores.dtype.names, found, strict=True):
                scores[field] = values
            if self._name == "cycle":
                scores["best"] += start
            parts.append(scores[: len(part)])
            done(len(part))
        return np.concatenate(parts)

    def _arrays(self, pairs: Sequence[Pair], num_valid: int, first: int) -> Sequence[np.ndarray]:
        """Returns the inputs of the score; rows from `num_valid` on only fill the batch up."""
        captions = [pair.caption for pair in pairs]
        image_tokens_BN = np.stack([pair.image_tokens for pair in pairs]).astype(np.int32)
        numbers_B = np.arange(len(pairs))
        if self._name == "likelihood_ratio":
            text_BT = text_ids(captions, self._vocabulary, self._text_length)
            return image_tokens_BN, text_BT, (first + numbers_B).astype(np.uint32)
        prompts = [pair.prompt or self._prompt for pair in pairs]
        text = vlm_text(captions, prompts, self._vocabulary, self._text_length)
        return image_tokens_BN, *text, *([numbers_B < num_valid] if self._name == "cycle" else ())


# Each returns `(params, *arrays) -> fields of the score's dtype`, to be jitted.


def _likelihood_ratio(trained: Trained, config: LikelihoodRatioConfig) -> Callable[..., Any]:
    """By the generator, with the caption and without."""
    task = trained.objective.task
    ratio = make_likelihood_ratio(Generator(task.generator), config)

    def score(params, image_tokens_BN, text_BT, numbers_B):
        codebook_KC = VQTokenizer(task.tokenizer).apply(
            {"params": params["tokenizer"]}, method="codes"
        )
        return (ratio(params["generator"], codebook_KC, text_BT, image_tokens_BN, numbers_B),)

    return score


def _caption(trained: Trained, config: CaptionLikelihoodConfig) -> Callable[..., Any]:
    """By the VLM's likelihood of the caption."""
    if config.minus_language_model and "language_model" not in trained.built_on:
        raise UserError(
            "--config.caption.minus_language_model: found True, expected False for this VLM: "
            f"{trained.path} does not hold the language model that it was built on. That was "
            "trained with it, or its adapters were merged. Give the run that has them, or "
            "False"
        )
    likelihood = make_caption_likelihood(VLM(trained.objective.task.vlm))

    def score(params, image_tokens_BN, text_BT, mask_BT):
        embeddings_BNC = trained.objective.image_embeddings(params, image_tokens_BN)
        score_B = likelihood(params["vlm"], embeddings_BNC, text_BT, mask_BT)
        if config.minus_language_model:
            score_B -= likelihood(params["vlm"], None, text_BT, mask_BT)
        return (score_B,)

    return score


def _cycle(trained: Trained, config: CycleConfig) -> Callable[..., Any]:
    """By retrieval: the margin by which a caption prefers its image to all others of its pool."""
    del config
    likelihood = make_pool_likelihood(VLM(trained.objective.task.vlm))

    def score(params, image_tokens_PN, text_PT, mask_PT, valid_P):
        embeddings_PNC = trained.objective.image_embeddings(params, image_tokens_PN)
        scores_PP = likelihood(params["vlm"], embeddings_PNC, text_PT, mask_PT)
        found = retrieve(scores_PP, image_tokens_PN, valid_P)
        return found.margin_P, found.rank_P, found.best_P

    return score


_SCORES = {"likelihood_ratio": _likelihood_ratio, "caption": _caption, "cycle": _cycle}


def load_scorers(cfg: FilterConfig, manifest: Manifest) -> dict[str, PairScorer]:
    """Returns the scorers of `cfg.scores` by name, each with its model loaded.

    Raises:
      UserError: no such model, or one with another tokenizer than that of the pairs.
    """
    mesh, rules = sharding.make_mesh(cfg.mesh, jax.local_devices()), sharding.axis_rules(cfg.mesh)
    loaded: dict[str, Trained] = {}
    for model in dict.fromkeys(_MODEL_OF[name] for name in cfg.scores):
        workdir = getattr(cfg, model)
        with naming(f"--config.{model}", workdir):
            trained = load_trained(workdir, model, mesh=mesh, rules=rules)
        with naming("--config.folder", cfg.folder):
            records.check_tokenizer(manifest, trained.fingerprint("tokenizer"), cfg.folder)
        if model == "generator":
            trained = with_text_encoder(trained, cfg.text_encoder, mesh=mesh, rules=rules)
        loaded[model] = trained
    return {name: PairScorer(name, loaded[_MODEL_OF[name]], cfg) for name in cfg.scores}
