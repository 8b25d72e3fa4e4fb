"""Selects the drafts that become captions: good, distinct, and up to a quota for each class."""

import collections
from collections.abc import Mapping

from synth2_jax.caption_writing.drafts import Draft
from synth2_jax.caption_writing.duplicates import NearDuplicates
from synth2_jax.caption_writing.filters import DraftFilterConfig, make_filter
from synth2_jax.errors import UserError

OVER_QUOTA = "over quota"
_MIN_DRAFTS = 100  # a share of fewer drafts means little


class Selection:
    """Takes drafts one by one. Call `settle` now and then, and at the end.

    Args:
      quotas: {class name: number of captions, or None for all}; drafts without a class have the
        name None. A draft of another class is dropped.
      filter_config: settings of the filter.
      max_dropped_share: largest share of drafts that may be dropped, apart from those over a quota.

    Attributes:
      kept: {class name: drafts}, in the order of `offer`.
      dropped: {reason: number of drafts}.
    """

    def __init__(
        self,
        quotas: Mapping[str | None, int | None],
        filter_config: DraftFilterConfig,
        max_dropped_share: float = 1.0,
    ):
        self.kept: dict[str | None, list[Draft]] = {name: [] for name in quotas}
        self.dropped: collections.Counter[str] = collections.Counter()
        self._quotas = quotas
        self._drop_reason = make_filter(filter_config)
        near = filter_config.duplicates == "near"
        self._near = NearDuplicates(filter_config.similarity) if near else None
        self._max_dropped_share = max_dropped_share
        self._offered = 0
        self._waiting: list[Draft] = []

    def offer(self, draft: Draft) -> bool:
        """Returns whether the draft is kept, unless `settle` drops it.

        Raises:
          UserError: more than `max_dropped_share` of the drafts were dropped.
        """
        self._offered += 1
        if draft.class_name not in self.kept:
            reason = draft.drop_reason or "unknown class"
        elif self._is_full(draft.class_name):
            reason = OVER_QUOTA
        else:
            reason = self._drop_reason(draft)
        if not reason:
            self._waiting.append(draft)
            return True
        self.dropped[reason] += 1
        self._check_share()
        return False

    def settle(self) -> int:
        """Drops near-duplicates and drafts over a quota; returns how many. Raises as `offer`."""
        waiting, self._waiting = self._waiting, []
        near = [False] * len(waiting)
        if self._near:
            near = self._near.add([draft.caption for draft in waiting])
        before = self.dropped.total()
        for draft, is_near in zip(waiting, near, strict=True):
            if is_near:
                self.dropped["near-duplicate"] += 1
            elif self._is_full(draft.class_name):
                self.dropped[OVER_QUOTA] += 1
            else:
                self.kept[draft.class_name].append(draft)
        self._check_share()
        return self.dropped.total() - before

    def lacks(self) -> dict[str | None, int]:
        """Returns {class name: number of captions that are missing}, without full classes."""
        return {
            name: quota - len(self.kept[name])
            for name, quota in self._quotas.items()
            if quota is not None and not self._is_full(name)
        }

    def is_full(self) -> bool:
        """Returns whether every class has its quota."""
        return all(map(self._is_full, self._quotas))

    def _is_full(self, name: str | None) -> bool:
        quota = self._quotas[name]
        return quota is not None and len(self.kept[name]) >= quota

    def _check_share(self) -> None:
        bad = self.dropped.total() - self.dropped[OVER_QUOTA]
        if self._offered >= _MIN_DRAFTS and bad > self._max_dropped_share * self._offered:
            raise UserError(
                f"--config.max_dropped_share: {bad} of {self._offered} drafts were dropped (found "
                f"{dict(self.dropped.most_common())}, expected a share of at most "
                f"{self._max_dropped_share}). Change the prompt, the model or the filter, or raise "
                "the limit."
            )
