"""Fills a selection of captions: by a model in rounds, or from a file."""

import collections
import contextlib

from synth2_jax.caption_writing.drafts import Request
from synth2_jax.caption_writing.language_model import LanguageModelSource
from synth2_jax.caption_writing.openai_server import OpenAIServerSource
from synth2_jax.caption_writing.selection import Selection
from synth2_jax.caption_writing.templates import Prompts
from synth2_jax.caption_writing.text_file import TextFileSource
from synth2_jax.progress import Progress
from synth2_jax.stop_signal import StopSignal

_SETTLE_EVERY = 1 << 18  # lines of a text file
_HOPELESS = 1000  # the run stops after a round of this many drafts without a usable one


def ask_in_rounds(
    source: LanguageModelSource | OpenAIServerSource,
    selection: Selection,
    prompts: Prompts,
    stop: StopSignal,
    *,
    max_rounds: int,
    kept: str,
) -> None:
    """Asks for drafts until every class has its quota, so that the set is balanced.

    `kept` says in words what a run keeps that `stop` ends. Raises as `source.write` and
    `selection.offer`.
    """
    indices = {name: index for index, name in enumerate(selection.kept)}
    asked = collections.Counter()
    with Progress("captions", sum(selection.lacks().values()), "captions") as progress:
        for _ in range(max_rounds):
            requests = []
            before = selection.dropped.total()
            for name, number in selection.lacks().items():
                for draw in range(asked[name], asked[name] + number):
                    requests.append(Request(indices[name], name, draw, prompts.prompt(name, draw)))
                asked[name] += number
            with contextlib.closing(source.write(requests)) as drafts:
                for draft in drafts:
                    if stop.requested():
                        stop.exit(kept)
                    if draft is not None and selection.offer(draft):
                        progress.add(1)
            progress.add(-selection.settle())
            hopeless = _HOPELESS <= selection.dropped.total() - before == len(requests)
            if selection.is_full() or hopeless:
                break


def read_file(source: TextFileSource, selection: Selection, stop: StopSignal) -> None:
    """Offers the lines of a file until every class has its quota; raises as `selection.offer`."""
    with Progress("captions", source.num_lines(), "lines") as progress:
        for number, draft in enumerate(source.read(), start=1):
            if stop.received:
                stop.exit("nothing is written yet")
            selection.offer(draft)
            progress.add(1)
            if number % _SETTLE_EVERY == 0:
                selection.settle()
                if selection.is_full():
                    break
        selection.settle()
