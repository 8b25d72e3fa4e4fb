"""Which arguments a value comes from: on literal HLO, and on a small compiled program."""

import pathlib

import jax
import jax.numpy as jnp

from synth2_jax.planning import dataflow
from synth2_jax.planning.hlo_text import parse

FOLDER = pathlib.Path(__file__).parents[1] / "data" / "hlo"
OVERLAP = (FOLDER / "overlap.txt").read_text()
INNER_LOOP = (FOLDER / "inner_loop.txt").read_text()

BATCH, PARAMS = "batch", "state.params"


def test_parameters_stay_apart_from_the_rows_beside_them_in_a_loop():
    found = dataflow.sources(OVERLAP)
    assert found["w.1"] == found["part.4"] == found["whole.2"] == {PARAMS}
    assert found["y.1"] == found["x.2"] == {BATCH, PARAMS}
    assert found["loop"] == {BATCH, PARAMS}  # all that its state holds
    assert found["collective-permute-done.2"] == {"state.opt_state"}
    assert found["zero"] == found["i.2"] == set()
    # An argument without a name is its instruction.
    nameless = OVERLAP.replace("metadata={op_name=\"batch[\\'image_tokens\\']\"}", "")
    assert nameless != OVERLAP
    assert dataflow.sources(nameless)["x.2"] == {"x", PARAMS}
    # Data goes into fusions and out of them.
    found = dataflow.sources(INNER_LOOP)
    assert found["p.2"] == found["all-gather.2"] == found["whole"] == {"params"}
    assert found["dot.1"] == {"params", "text_tokens_BT"}


def test_what_a_later_round_brings_is_found():
    """The rows meet the parameters in the first round; the second reads what came of it."""
    again = OVERLAP.replace("%w.1, %whole.2)", "%p, %whole.2)").replace(
        "  ROOT %next", "  %p = bf16[4,32]{1,0} slice(%x.2), slice={[0:4], [0:16]}\n  ROOT %next"
    )
    found = dataflow.sources(again)
    assert found["w.1"] == found["whole.2"] == {BATCH, PARAMS}
    assert found["y.2"] == {BATCH, PARAMS} and found["all-gather.5"] == {PARAMS}


def test_both_branches_of_a_conditional_count():
    text = """HloModule branches

%first (a: f32[2]) -> f32[2] {
  ROOT %a = f32[2]{0} parameter(0)
}

%second (b: f32[2]) -> f32[2] {
  %b = f32[2]{0} parameter(0)
  ROOT %c = f32[2]{0} add(%b, %b)
}

ENTRY %main (which: s32[], u: f32[2], v: f32[2]) -> f32[2] {
  %which = s32[] parameter(0)
  %u = f32[2]{0} parameter(1)
  %v = f32[2]{0} parameter(2)
  ROOT %r = f32[2]{0} conditional(%which, %u, %v), branch_computations={%first, %second}
}
"""
    found = dataflow.sources(text)
    assert found["r"] == {"u", "v"} and found["c"] == {"v"}


def test_a_scan_as_compiled():
    """The sums of the layers' matrices, which the scan returns, are of parameters alone."""

    def layers(params, batch):
        def layer(x_BD, w_DD):
            return jnp.tanh(x_BD @ w_DD), w_DD.sum()

        x_BD, sums_L = jax.lax.scan(layer, batch["x"], params["w"])
        return {"x": x_BD, "sums": jnp.sort(sums_L)}

    params, batch = {"w": jnp.zeros((3, 8, 8))}, {"x": jnp.zeros((4, 8))}
    text = jax.jit(layers).lower(params, batch).compile().as_text()
    found = dataflow.sources(text)
    computations, entry = parse(text)
    (root,) = (line for line in computations[entry] if line.is_root)
    assert sorted(map(sorted, (found[name] for name in root.operands))) == [
        ["batch", "params"],
        ["params"],
    ]
