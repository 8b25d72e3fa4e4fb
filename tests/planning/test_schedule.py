"""How long literal schedules take, on a chip of round numbers."""

import pytest

from synth2_jax.planning import schedule
from synth2_jax.planning.chips import Chip

CHIP = Chip(1, 1.0, 100.0, 4, 1.0, 1.0, clock=1.0)  # a FLOP, 100 bytes and a cycle a second
SMALL = "f32[25]{0}"  # a second's memory traffic
BODY = """
%product (a.1: f32[25]) -> f32[25] {
  %a.1 = f32[25]{0} parameter(0)
  ROOT %dot.1 = f32[25]{0} dot(%a.1, %a.1), lhs_contracting_dims={0}, rhs_contracting_dims={0}
}

%sum (a.2: f32[25]) -> f32[25] {
  %a.2 = f32[25]{0} parameter(0)
  ROOT %add.2 = f32[25]{0} add(%a.2, %a.2), metadata={op_name="jit(step)/NAME/add"}
}

%move (a.3: f32[25]) -> f32[25] {
  %a.3 = f32[25]{0} parameter(0)
  ROOT %copy.3 = f32[25]{0} copy(%a.3)
}

%round (state.1: (s32[], f32[25])) -> (s32[], f32[25]) {
  %state.1 = (s32[], f32[25]{0}) parameter(0)
  %i.1 = s32[]{:S(2)} get-tuple-element(%state.1), index=0
  %one = s32[]{:S(2)} constant(1)
  %i.2 = s32[]{:S(2)} add(%i.1, %one)
  %x.1 = f32[25]{0} get-tuple-element(%state.1), index=1
LINES
  ROOT %next = (s32[], f32[25]{0}) tuple(%i.2, %x.1)
}

%condition (state.2: (s32[], f32[25])) -> pred[] {
  %state.2 = (s32[], f32[25]{0}) parameter(0)
  %i.3 = s32[]{:S(2)} get-tuple-element(%state.2), index=0
  %four = s32[]{:S(2)} constant(4)
  ROOT %less = pred[] compare(%i.3, %four), direction=LT
}

ENTRY %main (x: f32[25]) -> (s32[], f32[25]) {
  %x = f32[25]{0} parameter(0)
  %zero = s32[]{:S(2)} constant(0)
  %start = (s32[], f32[25]{0}) tuple(%zero, %x)
  ROOT %loop = (s32[], f32[25]{0}) while(%start), condition=%condition, body=%round
}
"""
PRODUCT = (
    '%y = f32[25]{0} fusion(%x.1), kind=kOutput, calls=%product, config={"estimated_cycles":"10"}'
)
SUM = '%z = f32[25]{0} fusion(%x.1), kind=kLoop, calls=%sum, config={"estimated_cycles":"3"}'
MOVE = '%m = f32[25]{0} fusion(%x.1), kind=kLoop, calls=%move, config={"estimated_cycles":"2"}'
GATHER = "%g = f32[50]{0} all-gather(%x.1), channel_id=1, replica_groups={{0,1}}, dimensions={0}"
START = "%s = (f32[25]{0}, f32[25]{0}) collective-permute-start(%x.1), channel_id=2, source_target_pairs={{0,1}}"  # noqa: E501
DONE = "%d = f32[25]{0} collective-permute-done(%s)"
FETCH = "%f = (f32[25]{0:S(1)}, f32[25]{0}, u32[]{:S(2)}) copy-start(%x.1)"
FETCHED = "%e = f32[25]{0:S(1)} copy-done(%f)"


def seconds(*lines, name="model", network=7.0):
    """Of one round of a loop of four."""
    text = "HloModule small, is_scheduled=true\n" + BODY.replace("NAME", name)
    text = text.replace("LINES", "\n".join(f"  {line}" for line in lines))
    found = schedule.seconds_by_kind(text, CHIP, lambda call: network)
    return {kind: value / 4 for kind, value in found.items() if value}


@pytest.mark.parametrize(
    "lines, options, expected",
    [
        ([PRODUCT], {}, {"products": 10}),
        ([PRODUCT, SUM, MOVE], {}, {"products": 10, "vector": 3, "copies": 2}),
        ([PRODUCT, SUM], {"name": "optimizer"}, {"products": 10, "optimizer": 3}),
        ([SUM], {"name": "dropout/jit(_bernoulli)"}, {"random numbers": 3}),
        # What has no cycles takes its memory traffic's time, here both ways.
        ([SUM, "%c = f32[25]{0} copy(%x.1)"], {}, {"vector": 3, "copies": 2}),
        # What is not started ahead is waited for; what is started ahead runs beside the rest.
        ([PRODUCT, GATHER], {}, {"products": 10, "network": 7}),
        ([START, PRODUCT, DONE], {}, {"products": 10}),
        ([START, SUM, DONE, PRODUCT], {}, {"products": 10, "vector": 3, "network": 4}),
        ([FETCH, SUM, FETCHED], {}, {"vector": 3}),
        ([SUM, FETCH, FETCHED], {}, {"vector": 3, "copies": 1}),
        # Two that run at once share the network.
        ([START, GATHER, SUM, DONE], {}, {"network": 14, "vector": 3}),
    ],
)
def test_what_overlaps_overlaps_and_the_rest_adds_up(lines, options, expected):
    assert seconds(*lines, **options) == pytest.approx(expected)


def test_rounds_wait_for_what_the_rounds_before_have_sent():
    """What a round starts and does not wait for holds the network in the next one."""
    later = [GATHER.replace("%x.1", "%y"), START.replace("channel_id=2", "channel_id=3")]
    assert seconds(PRODUCT, *later, network=7.0) == pytest.approx({"products": 10, "network": 7})
    slow = seconds(PRODUCT, *later, network=20.0)
    assert slow == pytest.approx({"products": 10, "network": (20 + 3 * 30) / 4})


def test_a_round_may_wait_for_what_the_round_before_started():
    done = "%d = f32[25]{0} collective-permute-done(%x.1)"  # which came in the loop's state
    found = seconds(SUM, done, START, network=7.0)
    assert found == pytest.approx({"vector": 3, "network": 3 * 4 / 4})


def test_what_has_no_cycles_takes_as_long_as_its_products_or_its_memory_traffic():
    untold = [line.partition(", config=")[0] for line in (PRODUCT, SUM)]
    assert seconds(*untold) == pytest.approx({"products": 2 * 25 * 25, "vector": 2})
