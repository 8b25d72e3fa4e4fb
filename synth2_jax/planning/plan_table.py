"""A plan of `synth2 plan` in lines for a terminal."""

from collections.abc import Mapping
from typing import Any

CAPTION_BYTES = 200  # assumed, of 30 to 40 words, with key and framing of a record
_GIB = 2**30


def table(plan: Mapping[str, Any]) -> str:
    """The plan in lines."""
    mesh = " ".join(f"{axis}={size}" for axis, size in plan["mesh"].items())
    memory, hbm = plan["memory_bytes_per_chip"], plan["hbm_bytes_per_chip"]
    guess = plan["estimate"]
    lines = [
        f"{plan['what']} {plan['model']} on {plan['chips']} chips of {plan['topology']}, {mesh}, "
        f"batch {plan['batch']}",
        "memory a chip",
        *(f"  {kind:<20} {size / _GIB:8.2f} GiB" for kind, size in memory.items()),
        f"  {'of HBM':<20} {hbm / _GIB:8.2f} GiB ({memory['total'] / hbm:.0%})",
        f"compiled FLOPs a chip   {plan['flops_per_chip']:.3e}",
    ]
    if plan["model_flops_per_chip"]:
        lines += [
            f"model FLOPs a chip      {plan['model_flops_per_chip']:.3e}  (by formula; compiled / "
            f"model {plan['flops_ratio']:.3f})"
        ]
    lines += ["collectives a chip, bytes sent"]
    for kind, found in plan["collectives_per_chip"].items():
        lines.append(f"  {kind:<20} {found['num_bytes'] / _GIB:8.3f} GiB in {found['count']} calls")
    if plan["collective_bytes_per_chip"]:
        activations = plan["gathered_bytes_per_chip"]["activations"]
        lines += [
            f"  {plan['overlapped_share']:.0%} of it beside matrix products; gathers of "
            f"activations: {activations / _GIB:.3f} GiB"
        ]
    lines += [
        f"compiled in {plan['compile_seconds']:.0f} s",
        f"estimate by the compiler's schedule, no measurement: {guess['seconds'] * 1e3:.1f} ms, "
        f"bound by {guess['bound_by']}",
        f"  {_milliseconds(guess['by_kind'])}",
        f"  at best, if all the rest were hidden: {guess['at_best'] * 1e3:.1f} ms",
        f"  {_milliseconds({name: guess[name] for name in ('compute', 'memory', 'network')})}",
    ]
    if guess["mfu"]:
        lines.append(f"  MFU {guess['mfu']:.1%} = model FLOPs / (those ms x peak bfloat16 FLOP/s)")
    if "pairs" in plan:
        found = plan["pairs"]
        lines += [
            f"{found['pairs']:.4g} pairs at {found['pairs_per_second']:.4g} a second: "
            f"{found['chip_hours']:.4g} chip-hours, {found['days']:.3g} days",
            f"  stored in {found['stored_bytes'] / 1e9:.4g} GB ({found['bytes_per_pair']} bytes a "
            f"pair: 2 a token, {CAPTION_BYTES} assumed for caption, key and framing)",
        ]
    return "\n".join(lines)


def _milliseconds(seconds: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value * 1e3:.1f}" for name, value in seconds.items())
