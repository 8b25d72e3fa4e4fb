"""FLOPs and collectives of HLO: on literal text, and on small compiled programs."""

import pathlib

import jax
import jax.numpy as jnp
import pytest

from synth2_jax.planning import hlo

# A loop of 3 rounds with a product in a fusion and an all-gather over 4 chips; a convolution that
# the TPU compiler makes of a product over heads (padding and holes are no work); an all-reduce
# of which a slice is kept.
MODULE = (pathlib.Path(__file__).parents[1] / "data" / "hlo" / "step.txt").read_text()


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
        "all-gather": hlo.Collective(3, 3 * 3 * 4 * 32 * 2),  # its part to three others, 3 rounds
        "reduce-scatter": hlo.Collective(1, 64 * 8 * 4 * 3 / 4),
    }


def test_fast_memory_is_not_hbm():
    line = "  %all-gather.1 = bf16[16,32]{1,0:T(8,128)S(1)}"
    slower = hlo.cost(MODULE.replace(line, line.replace("S(1)", ""))).hbm_bytes
    # Written once and read once a round.
    assert slower - hlo.cost(MODULE).hbm_bytes == 3 * 2 * 16 * 32 * 2


def test_a_loop_of_unknown_length_counts_once_and_is_told():
    found = hlo.cost(MODULE.replace("compare(%i.1, %three)", "compare(%i.1, %i.1)"))
    assert found.unknown_loops == 1
    assert found.flops == hlo.cost(MODULE).flops - 2 * 2 * 8 * 16 * 32


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


def test_groups_in_another_notation_are_no_guess():
    with pytest.raises(ValueError, match="replica groups: found 'all"):
        hlo.cost(MODULE.replace("[2,4]<=[8]", "all"))


@pytest.mark.parametrize("step, rounds", [(1, 3), (2, 2), (3, 1)])
def test_a_loop_may_count_in_larger_steps(step, rounds):
    """As XLA's unrolled loops do that gather a matrix while they multiply by what they have."""
    found = hlo.cost(MODULE.replace("%one = s32[] constant(1)", f"%one = s32[] constant({step})"))
    assert hlo.cost(MODULE).flops - found.flops == (3 - rounds) * 2 * 8 * 16 * 32
    assert found.unknown_loops == 0


def test_parts_of_one_collective_count_once():
    """TPUs run a collective beside products, in several steps that share its channel."""
    step = "  %all-gather.1 = bf16"
    again = MODULE.replace(
        step,
        f"{step}[16,32]{{1,0}} all-gather(%w), channel_id=7, "
        f"replica_groups=[2,4]<=[8], dimensions={{0}}\n  %all-gather.2 = bf16",
    )
    assert hlo.cost(again).collectives == hlo.cost(MODULE).collectives


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
        return jax.lax.conv_general_dilated(
            x,
            w,
            (stride, stride),
            "SAME",
            rhs_dilation=(dilation, dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
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
