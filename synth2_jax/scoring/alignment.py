"""Does the image fit its caption: by the generator, by the VLM, and by retrieval within a pool.

Each score is a number a pair, larger for a better fit, and depends on its pair alone (a retrieval
on its pool). The functions at the top know no model; `make_likelihood_ratio` and
`make_caption_likelihood` bind them to the generator and the VLM.

Legend: B batch, N image tokens, V vocabulary or codebook, T text tokens, P pairs of a pool, M mask
draws, C codebook width.
"""

import dataclasses
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp

from synth2_jax.config import check_counts, check_seeds
from synth2_jax.errors import UserError
from synth2_jax.models.language_model import init_cache, shift_right
from synth2_jax.models.maskgit import Generator
from synth2_jax.models.vlm import VLM


@dataclasses.dataclass(frozen=True)
class LikelihoodRatioConfig:
    """Which tokens are masked.

    Attributes:
      mask_ratios: shares of the image's tokens; evenly spread ones estimate the bound of
        `likelihood_ratio`.
      draws_per_ratio: masks of each ratio.
      seed: of the draws.
    """

    mask_ratios: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    draws_per_ratio: int = 2
    seed: int = 0

    def __post_init__(self):
        check_counts(self, "draws_per_ratio")
        check_seeds(self, "seed")
        if not self.mask_ratios or not all(0 < ratio <= 1 for ratio in self.mask_ratios):
            raise UserError(
                f"mask_ratios: found {self.mask_ratios}, expected shares above 0 and up to 1"
            )


def likelihood_ratio(
    logits_fn2: Callable[[jax.Array], jax.Array],
    image_tokens_BN: jax.Array,
    keys_B: jax.Array,
    config: LikelihoodRatioConfig,
    *,
    mask_id: int,
) -> jax.Array:
    """f32[B], nats a token: mean of log p(token | caption) - log p(token | null caption).

    A masked-token model with and without its caption is a classifier of captions: by Bayes' rule
    log p(image | caption) - log p(image) is log p(caption | image) up to what the caption alone
    decides (the implicit classifier of classifier-free guidance, arXiv 2207.12598, section 3.2).
    Either log likelihood is bounded from below by the mean, over the number of masked tokens and
    over masks, of the mean log probability of the masked tokens (order-agnostic autoregressive
    models, arXiv 2110.02037, eq. 4); this is the difference of the two bounds, on the same masks.

    Args:
      logits_fn2: ids of 2B rows -> logits of 2B rows; the first B rows see the caption, the last B
        the null caption, as in `sampling.guidance.guided`.
      image_tokens_BN: i32, none of them masked.
      keys_B: one key a row: a row's masks depend on nothing else.
    """
    num_tokens = image_tokens_BN.shape[1]
    counts = [max(1, round(ratio * num_tokens)) for ratio in config.mask_ratios]
    counts_M = jnp.repeat(jnp.asarray(counts), config.draws_per_ratio)

    def add_draw(sum_B, draw):
        number, count = draw
        noise_BN = jax.vmap(
            lambda key: jax.random.uniform(jax.random.fold_in(key, number), (num_tokens,))
        )(keys_B)
        masked_BN = jnp.argsort(jnp.argsort(noise_BN)) < count  # exactly as many in each row
        ids_BN = jnp.where(masked_BN, mask_id, image_tokens_BN)
        logits = logits_fn2(jnp.concatenate([ids_BN, ids_BN]))
        log_probs = _token_log_probs(logits, jnp.concatenate([image_tokens_BN, image_tokens_BN]))
        conditional_BN, unconditional_BN = jnp.split(log_probs, 2)
        return sum_B + _mean(conditional_BN - unconditional_BN, masked_BN), None

    zeros_B = jnp.zeros(len(image_tokens_BN), jnp.float32)
    sum_B, _ = jax.lax.scan(add_draw, zeros_B, (jnp.arange(counts_M.size), counts_M))
    return sum_B / counts_M.size


def caption_log_likelihood(
    logits_BTV: jax.Array, text_tokens_BT: jax.Array, loss_mask_BT: jax.Array
) -> jax.Array:
    """f32[B], nats a token: mean log p of the tokens of `loss_mask_BT`, caption and eos."""
    return _mean(_token_log_probs(logits_BTV, text_tokens_BT), loss_mask_BT)


@flax.struct.dataclass
class Retrieval:
    """The result of `retrieve` for each caption of a pool.

    Attributes:
      rank_P: i32, how many images fit the caption better than its own.
      best_P: i32, the image that fits best: its own one when none fits better.
      margin_P: f32, the own image's score minus the best of the others'; infinite without others.
    """

    rank_P: jax.Array
    best_P: jax.Array
    margin_P: jax.Array


def retrieve(scores_PP: jax.Array, image_tokens_PN: jax.Array, valid_P: jax.Array) -> Retrieval:
    """Finds each caption's image among those of its pool.

    A caption that does not find its own image, or finds a better one, is a pair to drop or to
    re-pair (SynC, arXiv 2507.18616). Images of the same tokens are one image, no rivals. Scores
    f32 are of caption (row) and image (column); `valid_P` is false on rows that fill up the pool.
    """
    own_P = jnp.diagonal(scores_PP)
    same_PP = jnp.all(image_tokens_PN[:, None] == image_tokens_PN[None], axis=-1)
    rivals_PP = jnp.where(same_PP | ~valid_P[None], -jnp.inf, scores_PP)
    best_rival_P = jnp.max(rivals_PP, axis=1)
    best_P = jnp.where(best_rival_P > own_P, jnp.argmax(rivals_PP, axis=1), jnp.arange(len(own_P)))
    return Retrieval(
        rank_P=jnp.sum(rivals_PP > own_P[:, None], axis=1, dtype=jnp.int32),
        best_P=best_P.astype(jnp.int32),
        margin_P=own_P - best_rival_P,
    )


def make_likelihood_ratio(
    model: Generator, config: LikelihoodRatioConfig
) -> Callable[..., jax.Array]:
    """Returns `(params, codebook_KC, text_tokens_BT, image_tokens_BN, numbers_B) -> f32[B]`.

    To be jitted. `numbers_B` are the pairs' numbers, from which their masks are drawn.
    """

    def score(params, codebook_KC, text_tokens_BT, image_tokens_BN, numbers_B):
        variables = {"params": params}
        text = model.apply(
            variables, text_tokens_BT, text_tokens_BT != 0, method="encode_text_and_null"
        )
        key = jax.random.key(config.seed)
        keys_B = jax.vmap(lambda number: jax.random.fold_in(key, number))(numbers_B)

        def logits_fn2(ids):
            return model.apply(variables, ids, text, codebook_KC, method="logits")

        mask_id = model.config.maskgit.mask_id
        return likelihood_ratio(logits_fn2, image_tokens_BN, keys_B, config, mask_id=mask_id)

    return score


def make_caption_likelihood(model: VLM) -> Callable[..., jax.Array]:
    """Returns `(params, image_embeddings_BNC or None, text_tokens_BT, loss_mask_BT) -> f32[B]`.

    To be jitted. None is no image: the likelihood by the bare language model.
    """

    def score(params, image_embeddings_BNC, text_tokens_BT, loss_mask_BT):
        inputs_BT = shift_right(text_tokens_BT)
        logits_BTV = model.apply(
            {"params": params}, image_embeddings_BNC, inputs_BT, deterministic=True
        )
        return caption_log_likelihood(logits_BTV, text_tokens_BT, loss_mask_BT)

    return score


def make_pool_likelihood(model: VLM) -> Callable[..., jax.Array]:
    """Returns `(params, image_embeddings_PNC, text_tokens_PT, loss_mask_PT) -> f32[P, P]`.

    To be jitted. Rows are captions, columns images; each image is read once, each caption once an
    image.
    """

    def scores(params, image_embeddings_PNC, text_tokens_PT, loss_mask_PT):
        variables = {"params": params}
        visual = model.apply(variables, image_embeddings_PNC, method="visual")
        num_images = len(image_embeddings_PNC)

        def of_caption(caption):
            text_PT, mask_PT = (jnp.broadcast_to(x, (num_images, x.size)) for x in caption)
            cache = init_cache(model.config.language_model, *text_PT.shape)
            logits_PTV, _ = model.apply(
                variables, shift_right(text_PT), cache, visual, method="step"
            )
            return caption_log_likelihood(logits_PTV, text_PT, mask_PT)

        return jax.lax.map(of_caption, (text_tokens_PT, loss_mask_PT))

    return scores


def _token_log_probs(logits: jax.Array, ids: jax.Array) -> jax.Array:
    """f32[...] of logits [..., V] and ids [...]."""
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    return jnp.take_along_axis(log_probs, ids[..., None], axis=-1)[..., 0]


def _mean(values: jax.Array, where: jax.Array) -> jax.Array:
    """f32[B] of [B, ...]; 0 for a row of which nothing counts, whose values may be anything."""
    where = where.astype(bool)
    total_B = jnp.sum(jnp.where(where, values, 0.0), axis=-1)
    return total_B / jnp.maximum(jnp.sum(where, axis=-1), 1)
