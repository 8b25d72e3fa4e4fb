import pytest

from synth2_jax.caption_writing.drafts import Draft
from synth2_jax.caption_writing.filters import DraftFilterConfig
from synth2_jax.caption_writing.selection import Selection
from synth2_jax.errors import UserError


def offer(selection, *captions, class_name="dog"):
    return [selection.offer(Draft(class_name, i, text)) for i, text in enumerate(captions)]


def kept(selection):
    return {name: [draft.caption for draft in drafts] for name, drafts in selection.kept.items()}


def test_each_class_gets_its_quota_and_no_more():
    selection = Selection({"dog": 2, "cat": 1}, DraftFilterConfig())
    assert offer(selection, "a big dog", "a dog", "a red dog", "a wet dog") == [
        *(True, False, True),
        True,  # whether it is over the quota shows when all is settled
    ]
    assert selection.lacks() == {"dog": 2, "cat": 1}
    assert selection.settle() == 1
    assert kept(selection) == {"dog": ["a big dog", "a red dog"], "cat": []}
    assert selection.lacks() == {"cat": 1} and not selection.is_full()
    assert offer(selection, "an old dog") == [False]
    assert selection.dropped == {"too short": 1, "over quota": 2}
    offer(selection, "a big cat", class_name="cat")
    assert selection.settle() == 0 and selection.is_full()


def test_a_class_without_quota_takes_all_and_is_never_full():
    selection = Selection({None: None}, DraftFilterConfig())
    offer(selection, *(f"a dog number {i}" for i in range(50)), class_name=None)
    selection.settle()
    assert len(selection.kept[None]) == 50
    assert selection.lacks() == {} and not selection.is_full()


def test_near_duplicates_go_when_it_is_settled_and_leave_room_for_others():
    near = DraftFilterConfig(duplicates="near", similarity=0.7)
    selection = Selection({"dog": 2}, near)
    long = "a dog that sits on the green grass in front of a house"
    assert offer(selection, long, f"{long} here", "another dog on a sofa") == [True] * 3
    assert selection.settle() == 1
    assert kept(selection) == {"dog": [long, "another dog on a sofa"]}
    assert selection.dropped == {"near-duplicate": 1}


def test_a_draft_of_no_class_of_the_list_is_dropped():
    selection = Selection({"dog": 2}, DraftFilterConfig())
    assert offer(selection, "a big cat", class_name="cat") == [False]
    assert offer(selection, "a big cat", class_name=None) == [False]
    assert selection.dropped == {"unknown class": 2}
    assert offer(selection, "a big cat and a dog") == [True]  # what was dropped makes no duplicates


def test_too_much_that_is_bad_stops_the_run():
    selection = Selection({"dog": 1000}, DraftFilterConfig(), max_dropped_share=0.5)
    offer(selection, *(f"a dog number {i}" for i in range(50)), *["dog"] * 50)  # half is allowed
    with pytest.raises(UserError) as error:
        offer(selection, "dog", "dog")
    assert str(error.value) == (
        "--config.max_dropped_share: 51 of 101 drafts were dropped (found {'too short': 51}, "
        "expected a share of at most 0.5). Change the prompt, the model or the filter, or "
        "raise the limit."
    )


def test_near_duplicates_count_as_bad_and_what_is_over_quota_does_not():
    texts = [f"a dog that sits on the green grass in front of a house {i % 2}" for i in range(150)]
    texts = [f"{text}{'.' * i}" for i, text in enumerate(texts)]
    near = DraftFilterConfig(duplicates="near", similarity=0.7)
    selection = Selection({"dog": 1000}, near, max_dropped_share=0.9)
    with pytest.raises(UserError, match="'duplicate'"):
        offer(selection, *texts)
        selection.settle()
    selection = Selection({"dog": 1}, DraftFilterConfig(), max_dropped_share=0.0)
    offer(selection, "a first dog")
    selection.settle()
    assert offer(selection, *(f"a dog number {i}" for i in range(150))) == [False] * 150
    assert selection.settle() == 0
