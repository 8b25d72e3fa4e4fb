"""Exact and near-duplicates among a million captions, as `synth2 captions` finds them.

    python benchmarks/deduplicate_captions.py [--captions=1000000]

Of the captions a tenth are copies, in other case and punctuation, and a tenth have one word
changed. Prints seconds, memory and what was found of these, and writes
benchmarks/results/DEVICE/deduplicate_captions.json. Required: 1M within 300 s and 4 GiB on 2 cores.
"""

import argparse
import pathlib
import random
import resource
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.result import write_result  # noqa: E402
from synth2_jax.caption_writing.classes import COMMON_OBJECTS, load_classes  # noqa: E402
from synth2_jax.caption_writing.drafts import Draft  # noqa: E402
from synth2_jax.caption_writing.duplicates import jaccard  # noqa: E402
from synth2_jax.caption_writing.filters import DraftFilterConfig  # noqa: E402
from synth2_jax.caption_writing.selection import Selection  # noqa: E402

SIMILARITY = 0.8
NUM_CHECKED = 20_000  # changed captions whose true similarity is computed
ADJECTIVES = (
    *("red", "blue", "green", "yellow", "white", "black", "brown", "old", "new", "small", "large"),
    *("wooden", "shiny", "dusty", "wet", "broken", "striped", "round", "tall", "colourful"),
)
VERBS = (
    *("stands", "lies", "rests", "leans", "waits", "sits", "hangs", "shines", "is left"),
    *("is placed", "is seen", "can be found", "is parked", "is kept"),
)
PLACES = (
    *("beside", "behind", "in front of", "under", "near", "above", "between", "next to"),
    *("across from", "on top of", "not far from", "to the left of", "to the right of"),
)
ENDINGS = (
    *("on a sunny day", "in the rain", "at night", "in a crowded street", "in an empty room"),
    *("while people walk by", "in soft morning light", "in the middle of a garden"),
    *("with mountains in the background", "seen from above", "on a white background"),
)


def write(num: int, rng: random.Random) -> tuple[list[str], dict[int, int], dict[int, int]]:
    """(captions, {copy: its original}, {changed: its original}) by position in the list."""
    classes = load_classes(COMMON_OBJECTS)

    def thing() -> str:
        return f"a {rng.choice(ADJECTIVES)} {rng.choice(classes)}"

    captions, copies, changed = [], {}, {}
    for i in range(num):
        kind = rng.random() if i else 1.0
        original = rng.randrange(i) if i else 0
        if kind < 0.1:
            copies[i] = original
            captions.append(f"{captions[original].capitalize()}{'.' * rng.randint(0, 2)}")
        elif kind < 0.2:
            changed[i] = original
            words = captions[original].split()
            words[rng.randrange(len(words))] = rng.choice(ADJECTIVES)
            captions.append(" ".join(words))
        else:
            captions.append(
                f"{thing()} {rng.choice(VERBS)} {rng.choice(PLACES)} {thing()} and {thing()} "
                f"{rng.choice(ENDINGS)}"
            )
    return captions, copies, changed


def measure(num: int) -> dict:
    """What it took, and what was found of what was hidden."""
    captions, copies, changed = write(num, random.Random(0))
    before = peak_gib()
    start = time.monotonic()
    selection = Selection({None: None}, DraftFilterConfig(duplicates="near", similarity=SIMILARITY))
    for number, caption in enumerate(captions):
        selection.offer(Draft(None, number, caption))
    selection.settle()
    seconds = time.monotonic() - start
    kept = {draft.draw for draft in selection.kept[None]}
    near = [
        copy
        for copy, original in list(changed.items())[:NUM_CHECKED]
        if jaccard(captions[copy], captions[original]) >= SIMILARITY
    ]
    # A changed caption is missed when it is kept beside its original; both may also be dropped.
    missed = sum(copy in kept and changed[copy] in kept for copy in near)
    return {
        "captions": num,
        "seconds": seconds,
        "captions_per_second": num / seconds,
        "peak_memory_gib": peak_gib(),
        "peak_memory_gib_before": before,
        "similarity": SIMILARITY,
        "kept": len(kept),
        "dropped": dict(selection.dropped),
        "copies_missed": sum(copy in kept and copies[copy] in kept for copy in copies),
        "copies": len(copies),
        "near_duplicates_missed": missed,
        "near_duplicates_checked": len(near),
    }


def peak_gib() -> float:
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--captions", type=int, default=1_000_000)
    result = measure(parser.parse_args().captions)
    path = write_result("deduplicate_captions", result)
    print(
        f"{result['captions']} captions in {result['seconds']:.0f} s and "
        f"{result['peak_memory_gib']:.1f} GiB: {result['kept']} kept, dropped {result['dropped']}"
    )
    print(
        f"missed: {result['copies_missed']} of {result['copies']} copies, "
        f"{result['near_duplicates_missed']} of {result['near_duplicates_checked']} near-duplicates"
        f"  ({path})"
    )


if __name__ == "__main__":
    main()
