"""How well images fit their captions, by the likelihoods of a generator or a VLM.

Legend: B batch, N image tokens, T text tokens, P pairs of a pool.
"""

import abc
import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np

from synth2_jax import config as config_lib
from synth2_jax import sharding
from synth2_jax.data import records
from synth2_jax.data.pipeline import DataConfig
from synth2_jax.data.records import Manifest, Pair
from synth2_jax.errors import UserError, naming, nearest
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

_SCORE = [("score", "<f4")]


_RETRIEVAL = [*_SCORE, ("rank", "<i4"), ("best", "<i4")]  # best: a row of the shard


@dataclasses.dataclass(frozen=True)
class CaptionLikelihoodConfig:
    """What the VLM's likelihood of the caption is compared with.

    Attributes:
      minus_language_model: whether to take away what the caption is worth without the image; else
        short captions and those often seen are preferred. Either way captions of what the VLM was
        never trained on go first, which a pool's margin ("cycle") does not do.
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
            if name not in _SCORERS:
                raise UserError(f"scores: unknown {name!r}; {nearest(name, _SCORERS)}")
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


class PairScorer(abc.ABC):
    """Scores pairs in batches of one shape; a subclass says of what each batch is made.

    Attributes:
      settings: all that determines the scores, JSON values.
      dtype: of the scores, numpy's.
    """

    dtype: list[tuple[str, str]] = _SCORE

    def __init__(
        self,
        trained: Trained,
        part: str,
        cfg: FilterConfig,
        settings: Mapping[str, Any],
        rows: tuple[str, int],
    ):
        where, self._rows = rows
        self._mesh = sharding.make_mesh(cfg.mesh, jax.local_devices())
        sharding.check_rows(self._rows, self._mesh, f"--config.{where}")
        self._rules = sharding.axis_rules(cfg.mesh)
        self._params = trained.params
        data = config_lib.build(DataConfig, trained.config["data"])
        self._vocabulary, self._prompt = load_vocabulary(data.vocabulary), data.prompt
        self._task = trained.objective.task
        self.settings = {
            **settings,
            "pairs": records.read_manifest(cfg.folder).fingerprint,
            "tokenizer": trained.fingerprint("tokenizer"),
            part: trained.fingerprint(part),
            "model": trained.config["model"],
            "vocabulary": records.sha256_of(pathlib.Path(self._vocabulary.path)),
            "prompt": data.prompt,
        }

    def __call__(
        self, pairs: Sequence[Pair], first: int, done: Callable[[int], None]
    ) -> np.ndarray:
        """The scores of a shard whose first pair has the number `first`."""
        parts = [np.zeros(0, self.dtype)]
        for start in range(0, len(pairs), self._rows):
            part = pairs[start : start + self._rows]
            filled = [*part, *[part[-1]] * (self._rows - len(part))]
            scores = np.zeros(self._rows, self.dtype)
            for name, values in self._batch(filled, len(part), first + start).items():
                scores[name] = values
            if "best" in scores.dtype.names:
                scores["best"] += start
            parts.append(scores[: len(part)])
            done(len(part))
        return np.concatenate(parts)

    @abc.abstractmethod
    def _batch(self, pairs: Sequence[Pair], num_valid: int, first: int) -> dict[str, np.ndarray]:
        """{field of `dtype`: scores of the batch}; rows from `num_valid` on only fill it up."""

    def _vlm_text(self, pairs: Sequence[Pair]) -> tuple[np.ndarray, np.ndarray]:
        """As `model_text.vlm_text`; a pair's own prompt comes in the place of the model's."""
        captions = [pair.caption for pair in pairs]
        prompts = [pair.prompt or self._prompt for pair in pairs]
        return vlm_text(captions, prompts, self._vocabulary, self._task.text_length)

    def _jit(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Compiled for the mesh; rows of its numpy arguments are split over it."""

        def on_mesh(*arguments):
            with sharding.constraints(self._mesh, self._rules):
                return function(*arguments)

        compiled, where = jax.jit(on_mesh), sharding.batch_sharding(self._mesh)
        return lambda *arrays: compiled(self._params, *jax.device_put(arrays, where))


class _LikelihoodRatio(PairScorer):
    """By the generator, with the caption and without."""

    def __init__(self, trained: Trained, cfg: FilterConfig):
        settings = dataclasses.asdict(cfg.likelihood_ratio)
        super().__init__(trained, "generator", cfg, settings, ("batch_size", cfg.batch_size))
        score = make_likelihood_ratio(Generator(self._task.generator), cfg.likelihood_ratio)
        tokenizer = VQTokenizer(self._task.tokenizer)

        def on_params(params, *arrays):
            codebook_KC = tokenizer.apply({"params": params["tokenizer"]}, method="codes")
            return score(params["generator"], codebook_KC, *arrays)

        self._score = self._jit(on_params)

    def _batch(self, pairs: Sequence[Pair], num_valid: int, first: int) -> dict[str, np.ndarray]:
        captions = [pair.caption for pair in pairs]
        text_BT = text_ids(captions, self._vocabulary, self._task.text_length)
        numbers_B = (first + np.arange(len(pairs))).astype(np.uint32)
        return {"score": self._score(text_BT, _image_tokens(pairs), numbers_B)}


class _Caption(PairScorer):
    """By the VLM's likelihood of the caption."""

    def __init__(self, trained: Trained, cfg: FilterConfig):
        settings = dataclasses.asdict(cfg.caption)
        super().__init__(trained, "vlm", cfg, settings, ("batch_size", cfg.batch_size))
        likelihood = make_caption_likelihood(VLM(self._task.vlm))

        def score(params, image_tokens_BN, text_BT, mask_BT):
            embeddings_BNC = trained.objective.image_embeddings(params, image_tokens_BN)
            score_B = likelihood(params["vlm"], embeddings_BNC, text_BT, mask_BT)
            if cfg.caption.minus_language_model:
                score_B -= likelihood(params["vlm"], None, text_BT, mask_BT)
            return score_B

        self._score = self._jit(score)

    def _batch(self, pairs: Sequence[Pair], num_valid: int, first: int) -> dict[str, np.ndarray]:
        text = self._vlm_text(pairs)
        return {"score": self._score(_image_tokens(pairs), *text)}


class _Cycle(PairScorer):
    """By retrieval: the margin by which a caption prefers its image to all others of its pool."""

    dtype = _RETRIEVAL

    def __init__(self, trained: Trained, cfg: FilterConfig):
        settings, rows = dataclasses.asdict(cfg.cycle), ("cycle.pool_size", cfg.cycle.pool_size)
        super().__init__(trained, "vlm", cfg, settings, rows)
        likelihood = make_pool_likelihood(VLM(self._task.vlm))

        def score(params, image_tokens_PN, text_PT, mask_PT, valid_P):
            embeddings_PNC = trained.objective.image_embeddings(params, image_tokens_PN)
            scores_PP = likelihood(params["vlm"], embeddings_PNC, text_PT, mask_PT)
            return retrieve(scores_PP, image_tokens_PN, valid_P)

        self._score = self._jit(score)

    def _batch(self, pairs: Sequence[Pair], num_valid: int, first: int) -> dict[str, np.ndarray]:
        text = self._vlm_text(pairs)
        valid_P = np.arange(len(pairs)) < num_valid
        found = self._score(_image_tokens(pairs), *text, valid_P)
        return {"score": found.margin_P, "rank": found.rank_P, "best": found.best_P}


# {score: (what computes it, by which model)}
_SCORERS: dict[str, tuple[type[PairScorer], str]] = {
    "likelihood_ratio": (_LikelihoodRatio, "generator"),
    "caption": (_Caption, "vlm"),
    "cycle": (_Cycle, "vlm"),
}


def load_scorers(cfg: FilterConfig, manifest: Manifest) -> dict[str, PairScorer]:
    """Returns the scorers of `cfg.scores` by name, each with its model loaded.

    Raises:
      UserError: no such model, or one with another tokenizer than that of the pairs.
    """
    mesh, rules = sharding.make_mesh(cfg.mesh, jax.local_devices()), sharding.axis_rules(cfg.mesh)
    workdirs = {"generator": cfg.generator, "vlm": cfg.vlm}
    loaded: dict[str, Trained] = {}
    scorers = {}
    for name in cfg.scores:
        scorer, model = _SCORERS[name]
        if model not in loaded:
            with naming(f"--config.{model}", workdirs[model]):
                loaded[model] = load_trained(workdirs[model], model, mesh=mesh, rules=rules)
            tokenizer = loaded[model].fingerprint("tokenizer")
            with naming("--config.folder", cfg.folder):
                records.check_tokenizer(manifest, tokenizer, cfg.folder)
            if model == "generator":
                loaded[model] = with_text_encoder(
                    loaded[model], cfg.text_encoder, mesh=mesh, rules=rules
                )
        scorers[name] = scorer(loaded[model], cfg)
    return scorers


def _image_tokens(pairs: Sequence[Pair]) -> np.ndarray:
    return np.stack([pair.image_tokens for pair in pairs]).astype(np.int32)
