"""FLOPs and collectives of HLO: on literal text, and on small compiled programs."""

import pathlib

import jax
import jax.numpy as jnp
import pytest

from synth2_jax.planning import hlo
from synth2_jax.planning.hlo_collectives import Collective

# A loop of 3 rounds with a product in a fusion and an all-gather over 4 chips; a convolution that
# the TPU compiler makes of a product over heads (padding and holes are no work); an all-reduce
# of which a slice is kept.
FOLDER = pathlib.Path(__file__).parents[1] / "data" / "hlo"
MODULE = (FOLDER / "step.txt").read_text()
# In a loop of 5 rounds, as the TPU compiler writes it: a parameter gathered by fusions that start,
# go on beside a product and end, and rows gathered with nothing beside it. Outside of it, two pairs
# of start and done, with a product between one and a sum between the other.
OVERLAP = (FOLDER / "overlap.txt").read_text()
# A gather that starts before a loop of 4 rounds, takes a step in each, and ends behind it.
INNER_LOOP = (FOLDER / "inner_loop.txt").read_text()


@pytest.fixture(scope="module")
def cost():
    return hlo.cost(MODULE)


def test_a_loops_body_counts_as_often_as_it_runs(cost):
    in_loop = 3 * 2 * 8 * 16 * 32
    # 64 x 64 rows, 1024 inputs, 16 heads of 64: though the window passes over 16 x 16 places, each
    # head meets its own weights only.
    heads = 2 * 64 * 64 * 1024 * 16 * 64
    assert cost.flops == in_loop + heads
    assert cost.unknown_loops == 0


def test_collectives_by_kind_and_by_what_a_chip_sends(cost):
    assert cost.collectives == {
        "all-gather": Collective(3, 3 * 3 * 4 * 32 * 2, 0),  # to three others, 3 rounds
        "reduce-scatter": Collective(1, 64 * 8 * 4 * 3 / 4, 0),
    }


def test_fast_memory_is_not_hbm(cost):
    line = "  %all-gather.1 = bf16[16,32]{1,0:T(8,128)S(1)}"
    slower = hlo.cost(MODULE.replace(line, line.replace("S(1)", ""))).hbm_bytes
    assert slower - cost.hbm_bytes == 3 * 2 * 16 * 32 * 2  # written once and read once a round


def test_a_loop_of_unknown_length_counts_once_and_is_told(cost):
    unknown = MODULE.replace("compare(%i.1, %three)", "compare(%i.1, %i.1)")
    found = hlo.cost(unknown)
    assert found.unknown_loops == 1
    assert found.flops == cost.flops - 2 * 2 * 8 * 16 * 32
    assert hlo.loops(unknown) == [None]
    assert hlo.loops(OVERLAP) == [5] and hlo.loops(INNER_LOOP) == [4]
    assert hlo.num_instructions(INNER_LOOP) == sum(" = " in x for x in INNER_LOOP.splitlines())


@pytest.mark.parametrize(
    "groups",
    [
        "{{0,1,2,3},{4,5,6,7}}",
        "[2,4]<=[2,4]T(1,0)",
        "mesh['a'=2,'b'=1,'c'=4], device_ids=([8]) {'c'}",
        "mesh['a'=2,'b'=2,'c'=2], device_ids=([4,2]T(1,0)) {'a', 'c'}",
    ],
)
def test_groups_of_four_in_every_notation(cost, groups):
    found = hlo.cost(MODULE.replace("[2,4]<=[8]", groups))
    assert found.collectives == cost.collectives
    with pytest.raises(ValueError, match="replica groups: found 'all"):  # no guess
        hlo.cost(MODULE.replace("[2,4]<=[8]", "all"))


@pytest.mark.parametrize("step, rounds", [(1, 3), (2, 2), (3, 1)])
def test_a_loop_may_count_in_larger_steps(cost, step, rounds):
    """As XLA's unrolled loops do that gather a matrix while they multiply by what they have."""
    found = hlo.cost(MODULE.replace("%one = s32[] constant(1)", f"%one = s32[] constant({step})"))
    assert cost.flops - found.flops == (3 - rounds) * 2 * 8 * 16 * 32
    assert found.unknown_loops == 0


def test_rounds_that_were_peeled_off_a_loop_share_its_channels():
    """What stands twice runs twice, unless it is the steps of one gather."""
    peeled = "  %whole.3 = bf16[16,32]{1,0} all-gather(%w.1), channel_id=7, "
    peeled += "replica_groups=[2,4]<=[8], dimensions={0}\n"
    before = "  %heads = "
    assert before in MODULE
    found = hlo.cost(MODULE.replace(before, peeled + before)).collectives
    assert found["all-gather"] == Collective(4, 4 * 3 * 4 * 32 * 2, 0)


def calls_by_channel(text):
    found = {}
    for call in hlo.cost(text).calls:
        channel = int(call.line.attribute(r"channel_id=(\d+)"))
        found[channel] = (call.kind, call.count, call.num_bytes, call.overlapped)
    return found


def test_what_runs_beside_products():
    assert calls_by_channel(OVERLAP) == {
        1: ("all-gather", 5, 3 * 4 * 32 * 2, True),
        2: ("all-gather", 5, 3 * 8 * 32 * 2, False),
        3: ("collective-permute", 1, 4 * 32 * 4, True),
        4: ("collective-permute", 1, 4 * 32 * 4, False),
        5: ("all-gather", 1, 3 * 16 * 32 * 2, False),
    }
    found = hlo.cost(OVERLAP).collectives
    assert found["collective-permute"] == Collective(2, 2 * 512, 512)
    assert found["all-gather"].overlapped_bytes == 5 * 3 * 4 * 32 * 2


def test_a_gather_without_a_product_in_its_steps_is_waited_for():
    product = "dot(%p.7, %p.8), lhs_contracting_dims={1}, rhs_contracting_dims={0}"
    assert product in OVERLAP
    changed = calls_by_channel(OVERLAP.replace(product, "add(%p.7, %p.8)"))
    assert changed == calls_by_channel(OVERLAP) | {1: ("all-gather", 5, 3 * 4 * 32 * 2, False)}


def test_a_gather_may_go_on_in_a_loop():
    """It starts before the loop and ends behind it: it runs once, however often it takes a step."""
    assert calls_by_channel(INNER_LOOP) == {1: ("all-gather", 1, 3 * 4 * 32 * 2, True)}
    assert hlo.cost(INNER_LOOP).flops == 4 * 2 * 8 * 16 * 32


SCATTERING = """
%scattering.N (a.N: f32[64,8], b.N: f32[16,4]) -> (f32[16,8], f32[4,4]) {
  %a.N = f32[64,8]{1,0} parameter(0)
  %b.N = f32[16,4]{1,0} parameter(1)
  %zero.N = s32[] constant(0)
  %all-reduce.N = (f32[64,8]{1,0}, f32[16,4]{1,0}) all-reduce(%a.N, %b.N), channel_id=1, replica_groups={{0,1,2,3}}, to_apply=%add
  %first.N = f32[64,8]{1,0} get-tuple-element(%all-reduce.N), index=0
  %second.N = f32[16,4]{1,0} get-tuple-element(%all-reduce.N), index=1
  %part.N = f32[16,8]{1,0} dynamic-slice(%first.N, %zero.N, %zero.N), dynamic_slice_sizes={16,8}
  %other.N = f32[4,4]{1,0} dynamic-slice(%second.N, %zero.N, %zero.N), dynamic_slice_sizes={4,4}
  ROOT %parts.N = (f32[16,8]{1,0}, f32[4,4]{1,0}) tuple(%part.N, %other.N)
}
"""  # noqa: E501
SHARED_CHANNEL = (
    "HloModule shared, is_scheduled=true\n"
    + SCATTERING.replace(".N", ".1")
    + SCATTERING.replace(".N", ".2")
    + """
ENTRY %main (g: f32[64,8], h: f32[16,4]) -> f32[64,64] {
  %g = f32[64,8]{1,0} parameter(0)
  %h = f32[16,4]{1,0} parameter(1)
  %one = (f32[16,8]{1,0}, f32[4,4]{1,0}) fusion(%g, %h), kind=kCustom, calls=%scattering.1
  %y = f32[64,64]{1,0} dot(%g, %g), lhs_contracting_dims={1}, rhs_contracting_dims={1}
  %two = (f32[16,8]{1,0}, f32[4,4]{1,0}) fusion(%g, %h), kind=kCustom, calls=%scattering.2
  ROOT %z = f32[64,64]{1,0} add(%y, %y)
}
"""
)


def test_two_that_only_share_a_channel_are_no_steps_of_one():
    """Each sends 3/4 of both of its arrays, and the product between them is beside neither."""
    sent = (64 * 8 + 16 * 4) * 4 * 3 / 4
    found = hlo.cost(SHARED_CHANNEL).collectives
    assert found == {"reduce-scatter": Collective(2, 2 * sent, 0)}
    # A whole sum that is used is an all-reduce.
    text = SHARED_CHANNEL.replace("tuple(%part.2, %other.2)", "tuple(%part.2, %second.2)")
    assert hlo.cost(text).collectives == {
        "all-reduce": Collective(1, 2 * sent, 0),
        "reduce-scatter": Collective(1, sent, 0),
    }


def test_memory_that_a_gather_in_steps_passes_through():
    """Its start counts part and whole; what a step only hands on, and the end, count nothing."""
    start = (4 * 32 + 16 * 32) * 2 + 4  # its own counter, too
    step = (8 * 16 + 16 * 32 + 8 * 32) * 2  # the product's operands and result
    rows = (8 * 32 + 32 * 32) * 2 + 2 * (8 * 16) * 2  # the other gather; of it, a slice
    loop = 3 * 4 + 4 + 4 + 1  # a sum and a comparison
    fewer = OVERLAP.replace("%five = s32[] constant(5)", "%five = s32[] constant(4)")
    found = hlo.cost(OVERLAP).hbm_bytes - hlo.cost(fewer).hbm_bytes
    assert found == start + step + rows + loop


LIBRARIES = """HloModule libraries, is_scheduled=true

ENTRY %main (x: bf16[2,8,8,3], w: bf16[3,3,3,5], a: bf16[6,16], b: bf16[16,32]) -> bf16[6,32] {
  %x = bf16[2,8,8,3]{3,2,1,0} parameter(0)
  %w = bf16[3,3,3,5]{2,1,0,3} parameter(1)
  %a = bf16[6,16]{1,0} parameter(2)
  %b = bf16[16,32]{1,0} parameter(3)
CALL
  ROOT %c = bf16[6,32]{1,0} custom-call(%a, %b), custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}
}
"""  # noqa: E501
ONE_PIXEL = ", window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, custom_call_target="
IMAGE, FILTERS = "bf16[2,8,8,3]{3,2,1,0}", "bf16[5,3,3,3]{3,2,1,0}"
OUTPUT = "bf16[2,8,8,5]{3,2,1,0}"


@pytest.mark.parametrize(
    "kind, result, operands",
    [
        ("Forward", OUTPUT, (IMAGE, FILTERS)),
        ("BiasActivationForward", OUTPUT, (IMAGE, FILTERS)),
        ("BackwardInput", IMAGE, (OUTPUT, FILTERS)),
        ("BackwardFilter", FILTERS, (IMAGE, OUTPUT)),
    ],
)
def test_calls_of_libraries_multiply_too(kind, result, operands):
    """A convolution of 8 x 8 pixels with zeros around them has 22 x 22 pairs of places."""
    lines = [f"  %o{i} = {shape} copy(%x)" for i, shape in enumerate(operands)]
    call = f'  %y = ({result}, u8[0]{{0}}) custom-call(%o0, %o1){ONE_PIXEL}"__cudnn$conv{kind}"'
    found = hlo.cost(LIBRARIES.replace("CALL", "\n".join([*lines, call])))
    assert found.flops == 2 * 6 * 32 * 16 + 2 * 2 * 3 * 5 * 22**2


@pytest.mark.parametrize("num_layers", [1, 5])
def test_a_scan_as_compiled(num_layers):
    def layers(x_BD, w_LDD):
        return jax.lax.scan(lambda x_BD, w_DD: (jnp.tanh(x_BD @ w_DD), None), x_BD, w_LDD)[0]

    x_BD, w_LDD = jnp.zeros((4, 32)), jnp.zeros((num_layers, 32, 32))
    found = hlo.cost(jax.jit(layers).lower(x_BD, w_LDD).compile().as_text())
    assert found.flops == num_layers * 2 * 4 * 32 * 32 and found.unknown_loops == 0


@pytest.mark.parametrize("stride, dilation", [(1, 1), (2, 1), (1, 2)])
def test_convolutions_count_what_meets_the_image(stride, dilation):
    """A 3x3 kernel over 8x8 pixels with zeros around them: the zeros are not multiplied."""
    size, channels = 8, 3

    def convolve(x, w):
        padded = (x, w, (stride, stride), "SAME")
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            *padded, rhs_dilation=(dilation, dilation), dimension_numbers=layout
        )

    x, w = jnp.zeros((2, size, size, channels)), jnp.zeros((3, 3, channels, 5))
    found = hlo.cost(jax.jit(convolve).lower(x, w).compile().as_text())
    low = {(1, 1): 1, (2, 1): 0, (1, 2): 2}[stride, dilation]  # of SAME padding, in front
    along = sum(
        0 <= place * stride + offset * dilation - low < size
        for place in range(size // stride)
        for offset in range(3)
    )
    assert found.flops == 2 * 2 * channels * 5 * along**2
