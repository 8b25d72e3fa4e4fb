"""Text decoding: greedy, beam and nucleus over a step function, each one `while_loop`.

`step_fn(tokens_B, cache) -> (logits_BV, cache)` feeds one token a row and returns the logits of
the next. Decoding starts from `logits_BV`, those after the prompt: the caller has put the prompt
through the model into the cache in one go, so all prompts of a batch have one length. `captions` is
the example.

B batch, V vocabulary, T max_length, K beams, C candidates.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from synth2_jax.config import check_choices, check_counts
from synth2_jax.errors import UserError
from synth2_jax.text.vocabulary import EOS_ID, PAD_ID

PyTree = Any
StepFn = Callable[[jax.Array, PyTree], tuple[jax.Array, PyTree]]

_METHODS = ("greedy", "beam", "nucleus")
_CACHE_BATCH_AXIS = 1  # a KVCache's


@dataclasses.dataclass(frozen=True)
class TextDecodeConfig:
    """Settings of writing text.

    Attributes:
      method: "greedy", "beam" or "nucleus".
      max_length: the longest text, in tokens.
      num_beams: beams of "beam" (Flamingo: 3).
      length_penalty: "beam" divides scores by ((5 + length) / 6) to this power.
      temperature: "nucleus" divides logits by it.
      top_p: "nucleus" draws from the fewest tokens that have this probability together.
    """

    method: str = "beam"
    max_length: int = 64
    num_beams: int = 3
    length_penalty: float = 0.6
    temperature: float = 1.0
    top_p: float = 0.9

    def __post_init__(self):
        check_choices(self, method=_METHODS)
        check_counts(self, "max_length", "num_beams")
        if not self.temperature > 0:
            raise UserError(
                f"temperature: found {self.temperature}, expected more than 0 (or method greedy)"
            )
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p: found {self.top_p}, expected more than 0, at most 1")

    def describe(self) -> str:
        """The method with the settings that it has, on one line."""
        how = {
            "greedy": "greedy",
            "beam": f"beam of {self.num_beams}, length penalty {self.length_penalty:g}",
            "nucleus": f"nucleus of {self.top_p:g} at temperature {self.temperature:g}",
        }[self.method]
        return f"{how}, up to {self.max_length} tokens"


def decode(
    step_fn: StepFn,
    logits_BV: jax.Array,
    cache: PyTree,
    config: TextDecodeConfig,
    *,
    keys_B: jax.Array | None = None,
    eos_id: int = EOS_ID,
) -> tuple[jax.Array, jax.Array]:
    """(ids i32[B, T], scores f32[B]): generated ids with eos, then pads.

    No eos in a row that was cut at max_length. The cache sees at most max_length - 1 more tokens.
    Pad is never generated. A row's result does not depend on the other rows.

    greedy: the likeliest token each time. nucleus: samples among the likeliest tokens that hold
    `top_p` of the mass (arXiv 1904.09751), row b with `keys_B[b]` only. Their scores are the ids'
    log probabilities under the model itself, without temperature and truncation. beam: see `_beam`.
    """
    if config.method == "beam":
        return _beam(step_fn, logits_BV, cache, config, eos_id)

    def likeliest(logp_BV, position):
        return jnp.argmax(logp_BV, axis=-1)

    def drawn(logp_BV, position):
        scaled_BV = logp_BV / config.temperature
        filtered_BV = jnp.where(nucleus_mask(scaled_BV, config.top_p), scaled_BV, -jnp.inf)
        step_keys_B = jax.vmap(jax.random.fold_in, (0, None))(keys_B, position)
        return jax.vmap(jax.random.categorical)(step_keys_B, filtered_BV)

    if config.method == "nucleus" and keys_B is None:
        raise ValueError("nucleus decoding needs keys_B, one key a row")
    choose = likeliest if config.method == "greedy" else drawn
    return _one_path(step_fn, logits_BV, cache, choose, config.max_length, eos_id)


def nucleus_mask(logits_BV: jax.Array, top_p: float) -> jax.Array:
    """bool[B, V]: the fewest likeliest ids that together have at least `top_p`; never none.

    Among equally likely ids the lowest come first.
    """
    sorted_BV = -jnp.sort(-logits_BV, axis=-1)
    probs_BV = jax.nn.softmax(sorted_BV)
    mass_before_BV = jnp.cumsum(probs_BV, axis=-1) - probs_BV
    count_B1 = jnp.maximum(jnp.sum(mass_before_BV < top_p, axis=-1, keepdims=True), 1)
    # Values are sorted without their ids, the cheapest sort; ties are told apart by counting.
    least_B1 = jnp.take_along_axis(sorted_BV, count_B1 - 1, axis=-1)
    above_BV, tied_BV = logits_BV > least_B1, logits_BV == least_B1
    room_B1 = count_B1 - jnp.sum(above_BV, axis=-1, keepdims=True)
    return above_BV | (tied_BV & (jnp.cumsum(tied_BV, axis=-1) <= room_B1))


def _one_path(
    step_fn: StepFn,
    logits_BV: jax.Array,
    cache: PyTree,
    choose: Callable[[jax.Array, jax.Array], jax.Array],
    max_length: int,
    eos_id: int,
) -> tuple[jax.Array, jax.Array]:
    """Decodes one sequence a row; `choose(logp_BV, position) -> tokens_B`."""
    batch_size = logits_BV.shape[0]

    def write(logits_BV, position, ids_BT, scores_B, done_B):
        logp_BV = _log_probs(logits_BV)
        tokens_B = choose(logp_BV, position).astype(jnp.int32)
        logp_B = jnp.take_along_axis(logp_BV, tokens_B[:, None], axis=-1)[:, 0]
        tokens_B = jnp.where(done_B, PAD_ID, tokens_B)
        scores_B = scores_B + jnp.where(done_B, 0.0, logp_B)
        ids_BT = ids_BT.at[:, position].set(tokens_B)
        return position + 1, ids_BT, scores_B, done_B | (tokens_B == eos_id)

    def keep_on(carry):
        (position, _, _, done_B), _ = carry
        return (position < max_length) & ~jnp.all(done_B)

    def body(carry):
        (position, ids_BT, scores_B, done_B), cache = carry
        logits_BV, cache = step_fn(ids_BT[:, position - 1], cache)
        return write(logits_BV, position, ids_BT, scores_B, done_B), cache

    state = write(
        logits_BV,
        jnp.zeros((), jnp.int32),
        jnp.full((batch_size, max_length), PAD_ID, jnp.int32),
        jnp.zeros((batch_size,), jnp.float32),
        jnp.zeros((batch_size,), bool),
    )
    (_, ids_BT, scores_B, _), _ = jax.lax.while_loop(keep_on, body, (state, cache))
    return ids_BT, scores_B


def _beam(
    step_fn: StepFn, logits_BV: jax.Array, cache: PyTree, config: TextDecodeConfig, eos_id: int
) -> tuple[jax.Array, jax.Array]:
    """The best of what a beam search finds; one beam is greedy.

    Scores are log probabilities over ((5 + length) / 6) ** length_penalty (arXiv 1609.08144), the
    length with eos. A sequence is finished when its eos is among the K best continuations; a row is
    done when it has K finished ones and none of its open ones, ended now, would beat the worst of
    them. At max_length what is still open counts as ended there.

    `step_fn` gets B * K rows, the K beams of a row next to each other; `cache` has B rows, and its
    leaves without a batch axis (an index) are shared by all. What does not change while decoding
    (an image's keys and values) is better closed over: the beams reorder the cache at every token.
    """
    batch_size, vocab_size = logits_BV.shape
    num_beams, max_length = config.num_beams, config.max_length
    row_B1 = jnp.arange(batch_size)[:, None]
    extend = functools.partial(_extend_beams, row_B1=row_B1, config=config, eos_id=eos_id)

    def map_rows(function, cache):
        return jax.tree.map(
            lambda leaf: function(leaf) if leaf.ndim > _CACHE_BATCH_AXIS else leaf, cache
        )

    def reorder(cache, beam_BK):
        rows = (row_B1 * num_beams + beam_BK).reshape(-1)
        return map_rows(lambda leaf: jnp.take(leaf, rows, axis=_CACHE_BATCH_AXIS), cache)

    def keep_on(carry):
        position, state, _ = carry
        return (position < max_length) & ~jnp.all(state["done_B"])

    def body(carry):
        position, state, cache = carry
        tokens_BK = state["open_ids_BKT"][:, :, position - 1]
        logits, cache = step_fn(tokens_BK.reshape(-1), cache)
        logits_BKV = logits.reshape(batch_size, num_beams, vocab_size)
        position, state, beam_BK = extend(logits_BKV, position, state)
        return position, state, reorder(cache, beam_BK)

    no_ids_BKT = jnp.full((batch_size, num_beams, max_length), PAD_ID, jnp.int32)
    no_score_BK = jnp.full((batch_size, num_beams), -jnp.inf, jnp.float32)
    state = {
        "open_ids_BKT": no_ids_BKT,
        # All beams start from one prompt: only the first may be continued.
        "open_logp_BK": no_score_BK.at[:, 0].set(0.0),
        "ids_BKT": no_ids_BKT,
        "score_BK": no_score_BK,
        "done_B": jnp.zeros((batch_size,), bool),
    }
    logits_BKV = jnp.repeat(logits_BV[:, None], num_beams, axis=1)
    position, state, _ = extend(logits_BKV, jnp.zeros((), jnp.int32), state)
    cache = map_rows(lambda leaf: jnp.repeat(leaf, num_beams, axis=_CACHE_BATCH_AXIS), cache)
    position, state, _ = jax.lax.while_loop(keep_on, body, (position, state, cache))

    score_B = state["score_BK"][:, 0]
    open_score_B = _length_normalized(state["open_logp_BK"][:, 0], position, config)
    cut_B = ~state["done_B"] & (open_score_B > score_B)
    ids_BT = jnp.where(cut_B[:, None], state["open_ids_BKT"][:, 0], state["ids_BKT"][:, 0])
    return ids_BT, jnp.where(cut_B, open_score_B, score_B)


def _extend_beams(
    logits_BKV: jax.Array,
    position: jax.Array,
    state: dict[str, jax.Array],
    *,
    row_B1: jax.Array,
    config: TextDecodeConfig,
    eos_id: int,
) -> tuple[jax.Array, dict[str, jax.Array], jax.Array]:
    """Adds one token to every open sequence; also returns which beam each continues."""
    batch_size, num_beams, vocab_size = logits_BKV.shape
    num_candidates = min(2 * num_beams, num_beams * vocab_size)
    logp_BKV = _log_probs(logits_BKV) + state["open_logp_BK"][:, :, None]
    # 2K candidates: at most K of them end here, so K stay open.
    logp_BC, index_BC = jax.lax.top_k(logp_BKV.reshape(batch_size, -1), num_candidates)
    beam_BC, token_BC = index_BC // vocab_size, index_BC % vocab_size
    ids_BCT = state["open_ids_BKT"][row_B1, beam_BC].at[:, :, position].set(token_BC)
    ended_BC = token_BC == eos_id

    among_best_C = jnp.arange(num_candidates) < num_beams
    counts_BC = ended_BC & among_best_C[None] & ~state["done_B"][:, None]
    normalized_BC = _length_normalized(logp_BC, position + 1, config)
    score_BC = jnp.where(counts_BC, normalized_BC, -jnp.inf)
    scores = jnp.concatenate([state["score_BK"], score_BC], axis=1)
    ids = jnp.concatenate([state["ids_BKT"], ids_BCT], axis=1)
    score_BK, best_BK = jax.lax.top_k(scores, num_beams)

    open_logp_BK, kept_BK = jax.lax.top_k(jnp.where(ended_BC, -jnp.inf, logp_BC), num_beams)
    best_open_B = _length_normalized(open_logp_BK[:, 0], position + 1, config)
    # The worst is -inf until K have finished; a row with nothing left open is done as well.
    done_B = (score_BK[:, -1] >= best_open_B) | (best_open_B == -jnp.inf)
    state = {
        "open_ids_BKT": ids_BCT[row_B1, kept_BK],
        "open_logp_BK": open_logp_BK,
        "ids_BKT": ids[row_B1, best_BK],
        "score_BK": score_BK,
        "done_B": state["done_B"] | done_B,
    }
    return position + 1, state, beam_BC[row_B1, kept_BK]


def _length_normalized(logp: jax.Array, length: jax.Array, config: TextDecodeConfig) -> jax.Array:
    return logp / ((5.0 + length) / 6.0) ** config.length_penalty


def _log_probs(logits: jax.Array) -> jax.Array:
    """f32 log probabilities with no mass on pad, which is no token to generate."""
    return jax.nn.log_softmax(logits.astype(jnp.float32).at[..., PAD_ID].set(-jnp.inf))
