"""How good and how fast a generator of Scenes is at a setting of its sampler, by the oracle."""

import dataclasses
import statistics
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from synth2_jax import config as config_lib
from synth2_jax.data.pipeline import DataConfig
from synth2_jax.domains.scenes import oracle, renderer, scores
from synth2_jax.errors import UserError
from synth2_jax.loading.run import Trained
from synth2_jax.models.maskgit import Generator
from synth2_jax.models.vq_tokenizer import VQTokenizer
from synth2_jax.planning import model_flops
from synth2_jax.sampling.guidance import GuidanceConfig
from synth2_jax.sampling.image_tokens import make_generate
from synth2_jax.sampling.parallel_decode import ParallelDecodeConfig
from synth2_jax.sampling.pixels import make_decode
from synth2_jax.text.caption_ids import text_ids
from synth2_jax.text.vocabulary import load_vocabulary

SHARES = ("objects_right", "sizes_right", "places_right")


@dataclasses.dataclass(frozen=True)
class Setting:
    """How tokens are drawn."""

    sampler: ParallelDecodeConfig
    guidance: GuidanceConfig

    def changed(self, knob: str, value: Any) -> "Setting":
        """With another value of a knob such as "guidance.scale"."""
        part, _, name = knob.partition(".")
        return dataclasses.replace(
            self, **{part: dataclasses.replace(getattr(self, part), **{name: value})}
        )

    def get(self, knob: str) -> Any:
        part, _, name = knob.partition(".")
        return getattr(getattr(self, part), name)

    def with_steps(self, num_steps: int) -> "Setting":
        return self.changed("sampler.num_steps", num_steps)


class Judge:
    """Samples pictures of captions of Scenes, times that, and has the oracle read them."""

    def __init__(self, trained: Trained, batch_size: int):
        self.task = trained.objective.task
        self.batch_size = batch_size
        found = self.task.tokenizer.image_size
        if found != renderer.IMAGE_SIZE:
            raise UserError(
                f"generator: found images of {found} pixels, expected Scenes' {renderer.IMAGE_SIZE}"
            )
        self._params = jax.device_put(trained.params)
        data = config_lib.build(DataConfig, trained.config["data"])
        self._vocabulary = load_vocabulary(data.vocabulary)
        self._decode = jax.jit(make_decode(self.task.tokenizer))

    def score(
        self, settings: Sequence[Setting], captions: Sequence[str], seeds: Sequence[int]
    ) -> list[dict[str, Any]]:
        """A row for each setting: shares of what captions say that is right, and pace.

        "distinct" is the share of a caption's pictures, one a seed, that differ from one another.

        Args:
          captions: a multiple of the batch size.
        """
        if not captions or len(captions) % self.batch_size:
            raise UserError(
                f"captions: found {len(captions)}, expected a multiple of {self.batch_size}, "
                "the batch size"
            )
        text_XT = text_ids(captions, self._vocabulary, self.task.text_length)
        samplers = [self._sampler(setting) for setting in settings]
        starts = range(0, len(captions), self.batch_size)
        seconds: list[list[float]] = [[] for _ in settings]
        shares: list[list[dict[str, float]]] = [[] for _ in settings]
        tokens: list[list[np.ndarray]] = [[] for _ in settings]
        for sample in samplers:
            jax.block_until_ready(sample(text_XT[: self.batch_size], 0, 0))  # compiles
        for seed in seeds:
            ids = [[] for _ in settings]
            for start in starts:
                text_BT = text_XT[start : start + self.batch_size]
                for which, sample in enumerate(samplers):
                    begun = time.perf_counter()
                    ids[which].append(jax.block_until_ready(sample(text_BT, seed, start)))
                    seconds[which].append(time.perf_counter() - begun)
            for which, batches in enumerate(ids):
                images = [np.asarray(self._decode(self._params["tokenizer"], b)) for b in batches]
                seen = oracle.read(np.concatenate(images))
                shares[which].append(scores.agreement_shares(captions, seen))
                tokens[which].append(np.concatenate(batches))
        found = zip(settings, shares, tokens, seconds, strict=True)
        return [self._row(*of_setting) for of_setting in found]

    def _sampler(self, setting: Setting):
        """(text_BT, seed, number of the first caption) -> ids_BN; a row knows its own number."""
        generate = make_generate(Generator(self.task.generator), setting.sampler, setting.guidance)
        tokenizer = VQTokenizer(self.task.tokenizer)

        @jax.jit
        def sample(params, text_BT, seed, first):
            numbers_B = first + jnp.arange(len(text_BT))
            keys_B = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), numbers_B)
            codebook_KC = tokenizer.apply({"params": params["tokenizer"]}, method="codes")
            return generate(params["generator"], codebook_KC, text_BT, text_BT != 0, keys_B)

        return lambda text_BT, seed, first: sample(self._params, text_BT, seed, first)

    def _row(
        self,
        setting: Setting,
        by_seed: list[dict[str, float]],
        tokens: list[np.ndarray],
        seconds: list[float],
    ) -> dict[str, Any]:
        median = statistics.median(seconds)
        weights = jax.tree.leaves(self._params["generator"]["maskgit"])
        flops = model_flops.sample(self.task, self.batch_size, setting.sampler, setting.guidance)
        objects = [share["objects_right"] for share in by_seed]
        tokens_XSN = np.stack(tokens, axis=1)
        distinct = np.mean([len(np.unique(ids_SN, axis=0)) for ids_SN in tokens_XSN])
        return {
            **dataclasses.asdict(setting),
            **{name: float(np.mean([share[name] for share in by_seed])) for name in SHARES},
            "objects_right_by_seed": objects,
            "spread": float(np.std(objects, ddof=1)) if len(objects) > 1 else 0.0,
            "distinct": float(distinct / len(tokens)),
            "seconds": median,
            "pairs_per_second": self.batch_size / median,
            "flops": flops.total,
            "bytes": setting.sampler.num_steps * sum(leaf.nbytes for leaf in weights),
        }
