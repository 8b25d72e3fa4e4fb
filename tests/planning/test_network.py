"""Who sends to whom, by HLO's notations, and how fast a grid of chips is."""

import pytest

from synth2_jax.planning.chips import CHIPS
from synth2_jax.planning.hlo_collectives import Call
from synth2_jax.planning.hlo_groups import participants
from synth2_jax.planning.hlo_text import Instruction
from synth2_jax.planning.network import Network


@pytest.mark.parametrize(
    "attributes, expected",
    [
        ("replica_groups={{0,4},{1,5}}, dimensions={0}", [[0, 4]]),
        ("replica_groups=[2,4]<=[8], dimensions={0}", [[0, 1, 2, 3]]),
        ("replica_groups=[4,2]<=[2,4]T(1,0), dimensions={0}", [[0, 4]]),
        ("replica_groups=mesh['a'=2,'b'=1,'c'=4] {'c'}, channel_id=1", [[0, 1, 2, 3]]),
        ("replica_groups=mesh['a'=2,'c'=4] {'a'}", [[0, 4]]),
        ("replica_groups=mesh['a'=2,'c'=2], device_ids=([2,2]T(1,0)) {'a','c'}", [[0, 2, 1, 3]]),
        ("source_target_pairs={{0,1},{1,0}}", [[0, 1], [1, 0]]),
    ],
)
def test_who_takes_part(attributes, expected):
    assert participants(attributes) == expected


def pod(chip, x, y, z=1, num_slices=1):
    coords = [(i, j, k) for k in range(z) for j in range(y) for i in range(x)]
    slices = [number for number in range(num_slices) for _ in coords]
    return Network(CHIPS[chip], coords * num_slices, slices)


def seconds(network, group, num_bytes=1e9):
    attributes = f"replica_groups={{{{{','.join(map(str, group))}}}}}"
    line = Instruction("x", "f32[1]", "all-gather", "", (), attributes, True)
    return network.seconds(Call("all-gather", 1, num_bytes, False, line))


@pytest.mark.parametrize(
    "network, group, links",
    [
        (pod("v5e", 16, 16), range(16), 2),  # both ways round the side of a whole pod
        (pod("v5e", 16, 16), range(0, 256, 16), 2),  # along the other side
        (pod("v5e", 16, 16), range(256), 4),
        (pod("v5e", 16, 16), range(8), 1),  # half of a side is a line
        (pod("v5e", 16, 16), range(0, 16, 4), 2 / 4),  # a ring, whose links four groups share
        (pod("v5e", 4, 4), range(4), 1),  # a part of a pod has no ring
        (pod("v5e", 4, 4), range(16), 2),
        (pod("v5e", 8, 16), [8 * place for place in range(16)], 2),
        (pod("v5e", 8, 16), range(8), 1),
        (pod("v6e", 16, 16), range(16), 2),
        (pod("v5p", 4, 4, 4), range(4), 2),  # whole cubes are rings
        (pod("v5p", 2, 4, 4), range(0, 8, 2), 1),
        (pod("v4", 4, 4, 8), range(128), 6),
    ],
)
def test_links_that_a_collective_uses(network, group, links):
    assert seconds(network, group) == pytest.approx(1e9 / (links * network.chip.link_bandwidth))


def test_a_collective_alone_is_free():
    assert seconds(pod("v5e", 4, 4), [3]) == seconds(pod("v5e", 4, 4), [3, 3]) == 0


def test_slices_send_over_the_data_centers_network():
    """Of what four chips in two slices sum, each sends half of its half to the other slice."""
    network = pod("v5e", 2, 1, num_slices=2)
    chip, size = network.chip, 8e9  # of what is summed; a ring of four sends 2 * 3/4 of it
    found = seconds(network, range(4), 2 * size * 3 / 4)
    inside = 2 * size / 2 / chip.link_bandwidth
    assert found == pytest.approx(inside + 2 * size / 2 / 2 / chip.dcn_bandwidth)
    far_only = seconds(pod("v5e", 1, 1, num_slices=2), range(2), 2 * size / 2)
    assert far_only == pytest.approx(size / chip.dcn_bandwidth)
