"""Features of captions by a text encoder, in batches of one shape.

Legend: B batch, T text tokens, E text width.
"""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from synth2_jax import sharding
from synth2_jax.data.records import Pair
from synth2_jax.device_stream import BusyClock, in_background, in_rows, on_device
from synth2_jax.loading.text_encoders import LoadedTextEncoder
from synth2_jax.models.text_encoder import TextEncoder
from synth2_jax.progress import Progress
from synth2_jax.text.caption_ids import text_ids
from synth2_jax.text.vocabulary import Vocabulary

_BATCHES_AHEAD = 4


class CaptionEncoder:
    """Puts features bf16[T,E] into pairs, as many as a caption has tokens."""

    def __init__(
        self,
        encoder: LoadedTextEncoder,
        vocabulary: Vocabulary,
        length: int,
        batch_size: int,
        mesh: Mesh,
        rules: sharding.AxisRules,
    ):
        self._shape, self._vocabulary, self._mesh = (batch_size, length), vocabulary, mesh
        self._params = encoder.params
        model = TextEncoder(encoder.config)

        def encode(params, text_BT: jax.Array) -> jax.Array:
            with sharding.constraints(mesh, rules):
                features = model.apply(
                    {"params": params}, text_BT, text_BT != 0, deterministic=True
                )
            return features.astype(jnp.bfloat16)

        self._encode = jax.jit(encode)

    def pairs(
        self, shards: Iterable[tuple[int, Iterable[Pair]]], clock: BusyClock, progress: Progress
    ) -> Iterator[tuple[int, Pair | None]]:
        """(shard, pair with its features) of each pair, each shard ended by None.

        A batch ends with its shard, so that a shard comes out the same to the last bit whichever
        others are made with it.
        """
        with contextlib.closing(in_background(self._batches(shards), _BATCHES_AHEAD)) as batches:
            results = on_device(self._dispatch, batches, clock)
            for (shard, part, lengths, is_last), features_BTE in results:
                for pair, length, features_TE in zip(part, lengths, features_BTE, strict=False):
                    yield shard, dataclasses.replace(pair, text_features=features_TE[:length])
                progress.add(len(part))
                if is_last:
                    yield shard, None

    def _batches(
        self, shards: Iterable[tuple[int, Iterable[Pair]]]
    ) -> Iterator[tuple[tuple[int, Sequence[Pair], list[int], bool], tuple[np.ndarray]]]:
        """((shard, pairs, tokens of each, whether the last), (text_tokens i32[B,T],))."""
        for shard, pairs in shards:
            parts = in_rows(pairs, self._shape[0], lambda pair: True)
            part = next(parts, [])
            while part is not None:
                following = next(parts, None)
                text_BT = np.zeros(self._shape, np.int32)  # rows that fill it up are zeros
                captions = [pair.caption for pair in part]
                text_BT[: len(part)] = text_ids(captions, self._vocabulary, self._shape[1])
                lengths = np.count_nonzero(text_BT, axis=1).tolist()
                yield (shard, part, lengths, following is None), (text_BT,)
                part = following

    def _dispatch(self, text_BT: np.ndarray) -> jax.Array:
        where = sharding.batch_sharding(self._mesh)
        return self._encode(self._params, jax.device_put(text_BT, where))
