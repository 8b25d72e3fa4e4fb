"""Bytes of memory traffic, counted by hand for the smallest programs that have each kind."""

import jax
import jax.numpy as jnp
import pytest

from synth2_jax.planning import hlo

# A layer of a stack of 24, in a fusion within a fusion.
SLICE = """
%inner (a.1: f32[24,64,128], b.1: s32[]) -> bf16[64,128] {
  %a.1 = f32[24,64,128]{2,1,0} parameter(0)
  %b.1 = s32[] parameter(1)
  %c.1 = s32[] constant(0)
  %layer.1 = f32[1,64,128]{2,1,0} dynamic-slice(%a.1, %b.1, %c.1, %c.1), dynamic_slice_sizes={1,64,128}
  %flat.1 = f32[64,128]{1,0} bitcast(%layer.1)
  ROOT %half.1 = bf16[64,128]{1,0} convert(%flat.1)
}

%outer (x.2: bf16[8,64], a.2: f32[24,64,128], b.2: s32[]) -> bf16[8,128] {
  %x.2 = bf16[8,64]{1,0} parameter(0)
  %a.2 = f32[24,64,128]{2,1,0} parameter(1)
  %b.2 = s32[] parameter(2)
  %w.2 = bf16[64,128]{1,0} fusion(%a.2, %b.2), kind=kLoop, calls=%inner
  ROOT %y.2 = bf16[8,128]{1,0} dot(%x.2, %w.2), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

ENTRY %main (x: bf16[8,64], a: f32[24,64,128], b: s32[]) -> bf16[8,128] {
  %x = bf16[8,64]{1,0} parameter(0)
  %a = f32[24,64,128]{2,1,0} parameter(1)
  %b = s32[] parameter(2)
  ROOT %y = bf16[8,128]{1,0} fusion(%x, %a, %b), kind=kOutput, calls=%outer
}
"""  # noqa: E501
# A layer's activations are written into a stack by a fusion within a fusion, beside a sum.
UPDATE = """
%inner (a.1: bf16[24,8,128], u.1: f32[8,128], b.1: s32[]) -> bf16[24,8,128] {
  %a.1 = bf16[24,8,128]{2,1,0} parameter(0)
  %u.1 = f32[8,128]{1,0} parameter(1)
  %b.1 = s32[] parameter(2)
  %c.1 = s32[] constant(0)
  %half.1 = bf16[8,128]{1,0} convert(%u.1)
  %layer.1 = bf16[1,8,128]{2,1,0} bitcast(%half.1)
  ROOT %whole.1 = bf16[24,8,128]{2,1,0} dynamic-update-slice(%a.1, %layer.1, %b.1, %c.1, %c.1)
}

%outer (a.2: bf16[24,8,128], u.2: f32[8,128], b.2: s32[]) -> (bf16[24,8,128], f32[8]) {
  %a.2 = bf16[24,8,128]{2,1,0} parameter(0)
  %u.2 = f32[8,128]{1,0} parameter(1)
  %b.2 = s32[] parameter(2)
  %zero.2 = f32[] constant(0)
  %whole.2 = bf16[24,8,128]{2,1,0} fusion(%a.2, %u.2, %b.2), kind=kLoop, calls=%inner
  %sums.2 = f32[8]{0} reduce(%u.2, %zero.2), dimensions={1}, to_apply=%add
  ROOT %both.2 = (bf16[24,8,128]{2,1,0}, f32[8]{0}) tuple(%whole.2, %sums.2)
}

ENTRY %main (a: bf16[24,8,128], u: f32[8,128], b: s32[]) -> (bf16[24,8,128], f32[8]) {
  %a = bf16[24,8,128]{2,1,0} parameter(0)
  %u = f32[8,128]{1,0} parameter(1)
  %b = s32[] parameter(2)
  ROOT %both = (bf16[24,8,128]{2,1,0}, f32[8]{0}) fusion(%a, %u, %b), kind=kLoop, calls=%outer
}
"""
# A part of an array is fetched into fast memory while something else runs; another array leaves it.
ASYNCHRONOUS = """
ENTRY %main (a: bf16[24,128], f: f32[64]) -> (bf16[2,128], f32[64]) {
  %a = bf16[24,128]{1,0:T(8,128)} parameter(0)
  %f = f32[64]{0:T(128)S(1)} parameter(1)
  %s = ((bf16[24,128]{1,0:T(8,128)}), bf16[2,128]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%a), slice={[4:6], [0:128]}
  %c = (f32[64]{0:T(128)}, f32[64]{0:T(128)S(1)}, u32[]{:S(2)}) copy-start(%f)
  %part = bf16[2,128]{1,0:T(8,128)S(1)} slice-done(%s)
  %whole = f32[64]{0:T(128)} copy-done(%c)
  ROOT %both = (bf16[2,128]{1,0:T(8,128)S(1)}, f32[64]{0:T(128)}) tuple(%part, %whole)
}
"""  # noqa: E501
# The same by the general notation, and within HBM.
WRAPPED = """
%wrapped (a.1: bf16[24,128], b.1: s32[]) -> bf16[2,128] {
  %a.1 = bf16[24,128]{1,0} parameter(0)
  %b.1 = s32[] parameter(1)
  %c.1 = s32[] constant(0)
  ROOT %part.1 = bf16[2,128]{1,0} dynamic-slice(%a.1, %b.1, %c.1), dynamic_slice_sizes={2,128}
}

ENTRY %main (a: bf16[24,128], b: s32[]) -> bf16[2,128] {
  %a = bf16[24,128]{1,0} parameter(0)
  %b = s32[] parameter(1)
  %start = ((bf16[24,128]{1,0}, s32[]), bf16[2,128]{1,0}, u32[]) async-start(%a, %b), calls=%wrapped
  %update = ((bf16[24,128]{1,0}, s32[]), bf16[2,128]{1,0}, u32[]) async-update(%start)
  ROOT %done = bf16[2,128]{1,0} async-done(%update)
}
"""
# A buffer is allocated, gets a row, and is then one of two names; rows are looked up in a table.
NAMES = """
ENTRY %main (u: f32[1,128], t: f32[1000,128], i: s32[4,1]) -> (f32[24,128], f32[4,128]) {
  %u = f32[1,128]{1,0} parameter(0)
  %t = f32[1000,128]{1,0} parameter(1)
  %i = s32[4,1]{1,0} parameter(2)
  %zero = s32[] constant(0)
  %empty = f32[24,128]{1,0} custom-call(), custom_call_target="AllocateBuffer"
  %row = f32[24,128]{1,0} dynamic-update-slice(%empty, %u, %zero, %zero)
  %named = f32[24,128]{1,0} custom-call(%row), custom_call_target="ConcatBitcast"
  %rows = f32[4,128]{1,0} gather(%t, %i), offset_dims={1}, collapsed_slice_dims={0}, slice_sizes={1,128}
  ROOT %both = (f32[24,128]{1,0}, f32[4,128]{1,0}) tuple(%named, %rows)
}
"""  # noqa: E501
# What is updated and then read as a whole is no update in place; a half of it is half read.
WHOLE = """
%parts (a.1: f32[24,128], u.1: f32[1,128], b.1: s32[], h.1: f32[48,128]) -> f32[24,128] {
  %a.1 = f32[24,128]{1,0} parameter(0)
  %u.1 = f32[1,128]{1,0} parameter(1)
  %b.1 = s32[] parameter(2)
  %h.1 = f32[48,128]{1,0} parameter(3)
  %c.1 = s32[] constant(0)
  %new.1 = f32[24,128]{1,0} dynamic-update-slice(%a.1, %u.1, %b.1, %c.1)
  %twice.1 = f32[48,128]{1,0} add(%h.1, %h.1)
  %half.1 = f32[24,128]{1,0} slice(%twice.1), slice={[0:24], [0:128]}
  ROOT %sum.1 = f32[24,128]{1,0} add(%new.1, %half.1)
}

ENTRY %main (a: f32[24,128], u: f32[1,128], b: s32[], h: f32[48,128]) -> f32[24,128] {
  %a = f32[24,128]{1,0} parameter(0)
  %u = f32[1,128]{1,0} parameter(1)
  %b = s32[] parameter(2)
  %h = f32[48,128]{1,0} parameter(3)
  ROOT %sum = f32[24,128]{1,0} fusion(%a, %u, %b, %h), kind=kLoop, calls=%parts
}
"""


@pytest.mark.parametrize(
    "program, expected",
    {
        "slice": (SLICE, 64 * 128 * 4 + 4 + 8 * 64 * 2 + 8 * 128 * 2),
        "update": (UPDATE, 8 * 128 * 4 + 4 + 8 * 128 * 2 + 8 * 4),
        "asynchronous": (ASYNCHRONOUS, 2 * 128 * 2 + 64 * 4),
        "wrapped": (WRAPPED, 2 * 128 * 2 + 4 + 2 * 128 * 2),
        "names": (NAMES, 2 * 128 * 4 + 2 * 4 + 4 * 128 * 4 + 4 * 4 + 4 * 128 * 4),
        "whole": (WHOLE, 24 * 128 * 4 + 128 * 4 + 4 + 24 * 128 * 4 + 24 * 128 * 4),
    }.values(),
    ids=["slice", "update", "asynchronous", "wrapped", "names", "whole"],
)
def test_what_is_touched_counts(program, expected):
    assert hlo.cost("HloModule small, is_scheduled=true\n" + program).hbm_bytes == expected


def test_a_scan_reads_one_layer_a_round():
    """As this machine compiles it, whatever it fuses: 30 layers more are their own bytes more."""

    def num_bytes(num_layers):
        def layers(x_BD, w_LDD):
            return jax.lax.scan(lambda x_BD, w_DD: (jnp.tanh(x_BD @ w_DD), None), x_BD, w_LDD)[0]

        inputs = jnp.zeros((1, 256)), jnp.zeros((num_layers, 256, 256))
        return hlo.cost(jax.jit(layers).lower(*inputs).compile().as_text()).hbm_bytes

    one = 256 * 256 * 4
    assert one <= (num_bytes(40) - num_bytes(10)) / 30 <= 3.1 * one  # it may be copied out first
