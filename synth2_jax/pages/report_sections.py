"""The sections of the report, one function each.

A section takes (results, material), as `render_page` does, and returns the HTML under its heading.
"""

from collections.abc import Callable, Iterable, Mapping

from synth2_jax.pages.charts import (
    arm_legend,
    bar_table,
    curve_points,
    diagram,
    grouped_bars,
    line_chart,
    lying_bar,
    thinned,
)
from synth2_jax.pages.html import (
    DASH,
    MIXED,
    NOTHING,
    REAL,
    arm_colour,
    arm_name,
    duration,
    escaped,
    figure,
    finite,
    image_tag,
    lookup,
    mark,
    number,
    ordered_arms,
    percent,
    signed,
)

_METRICS = (  # name on the page, key in results["arms"][arm], is it a share
    ("CIDEr", "cider", False),
    ("CIDEr, seen", "cider_seen", False),
    ("CIDEr, never seen", "cider_unseen", False),
    ("BLEU-4", "bleu4", False),
    ("ROUGE-L", "rouge_l", False),
    ("objects named right", "objects_right", True),
)


def _how(results: Mapping, material: Mapping) -> str:
    del results, material
    caption = (
        "Synth². Left: a synthetic pair. Right: a real pair. From the codebook on, both take the "
        "same way."
    )
    return f"""<div class="how"><ol>
<li><b>Captions.</b> A language model, asked class by class, writes captions: balanced over all
combinations, where the real pairs are not.</li>
<li><b>Tokens instead of pictures.</b> A text-to-image generator (MaskGIT), trained on the same few
real pairs, turns each caption into image tokens. No pixel is drawn.</li>
<li><b>Embeddings.</b> The tokens are looked up in the tokenizer's codebook. Real pictures arrive at
the same codebook through the VQ encoder, so the caption model cannot tell the two apart.</li>
<li><b>Caption model.</b> A resampler and gated cross-attention let the frozen language model see
the embeddings; it is trained on real pairs alone, or on both kinds.</li>
</ol>{figure(diagram(), caption)}</div>"""


def _scenes(results: Mapping, material: Mapping) -> str:
    del results
    cards = "".join(
        f'<li class="card">{image_tag(scene.get("picture"), "a real picture")}<div>'
        f"{_caption_lines(scene.get('captions'), 3)}"
        f'<p class="sub">{escaped(scene.get("combinations"))}</p></div></li>'
        for scene in material.get("scenes") or ()
    )
    words = (
        "<p>One to three objects on a plain background, with five captions each. The real pairs "
        "are few and long-tailed: some combinations of colour and shape are common, most are rare, "
        "some never occur. The test pictures show all of them equally often.</p>"
    )
    return words + (f'<ul class="cards">{cards}</ul>' if cards else NOTHING)


def _caption_lines(captions, most: int) -> str:
    return "".join(f'<p class="caption">{escaped(line)}</p>' for line in (captions or ())[:most])


def _reconstructions(results: Mapping, material: Mapping) -> str:
    share = percent(lookup(results, "tokenizer", "objects_right"))
    cards = "".join(
        f'<li><div class="pair">{image_tag(item.get("original"), "original")}'
        '<span aria-hidden="true">→</span>'
        f"{image_tag(item.get('reconstruction'), 'reconstruction')}</div>"
        + mark(
            None if item.get("right") is None else float(item["right"]),
            {True: "read back right", False: "read back wrong"}.get(item.get("right"), "not read"),
        )
        + "</li>"
        for item in material.get("reconstructions") or ()
    )
    words = (
        "<p>The tokenizer turns a picture into tokens and back. An exact reader of pictures (the "
        f"oracle) finds <b>{share}</b> of the objects right after that: what the tokenizer loses, "
        "nothing behind it can win back.</p>"
    )
    return words + (f'<ul class="pairs">{cards}</ul>' if cards else NOTHING)


def _verdict(name: str, counts) -> str:
    """Mark of one kind of claim from (right, claimed); a share comes as (share, 1)."""
    right, claimed = (finite(c) for c in (counts or (None, None)))
    if right is None or claimed is None:
        return mark(None, f"{name}: not read")
    if claimed <= 0:
        return mark(None, f"{name}: none claimed")
    share = right / claimed
    if claimed > 1 and right == int(right):
        words = f"{int(right)} of {int(claimed)} right"
    else:
        words = "right" if share >= 1 else "wrong" if share <= 0 else f"{percent(share)} right"
    return mark(share, f"{name}: {words}")


def _unseen_tag(unseen) -> str:
    return '<span class="tag">never in real pairs</span>' if unseen else ""


def _synthetic(results: Mapping, material: Mapping) -> str:
    shares = (
        (name, percent(lookup(results, "generator", f"{name}_right")))
        for name in ("objects", "sizes", "places")
    )
    words = (
        "<p>The caption model trains on the tokens; they are decoded here only to be looked at. "
        "The oracle reads each picture back and compares it with its caption. Over the whole set: "
        + ", ".join(f"{name} right <b>{share}</b>" for name, share in shares)
        + ".</p>"
    )
    cards = "".join(
        f'<li class="card">{image_tag(item.get("picture"), "a decoded synthetic picture")}<div>'
        f'<p class="caption">{escaped(item.get("caption"))}</p>'
        f'<p class="marks">{_unseen_tag(item.get("unseen"))}'
        + "".join(_verdict(n, lookup(item, "verdict", n)) for n in ("objects", "sizes", "places"))
        + f'</p><p class="sub">Oracle: {escaped(item.get("read_back"))}</p></div></li>'
        for item in material.get("synthetic") or ()
    )
    return words + (f'<ul class="cards">{cards}</ul>' if cards else NOTHING)


def _objects_words(share) -> str:
    share = finite(share)
    if share is None:
        return "not scored"
    return (
        "objects right"
        if share >= 1
        else "objects wrong"
        if share <= 0
        else f"{percent(share)} of objects right"
    )


def _test_captions(results: Mapping, material: Mapping) -> str:
    items = material.get("test") or ()
    arms = ordered_arms(results.get("arms"), *(item.get("captions") for item in items))
    cards = []
    for item in items:
        lines = []
        for arm in arms:
            said = lookup(item, "captions", arm) or {}
            right = said.get("objects_right")
            lines.append(
                f'<dt class="arm{arm_colour(arm, arms)}">{arm_name(arm)}</dt>'
                f'<dd><span class="caption">{escaped(said.get("text"))}</span> '
                f"{mark(right, _objects_words(right))}</dd>"
            )
        first = (item.get("references") or [None])[0]
        cards.append(
            f'<li class="card">{image_tag(item.get("picture"), "a test picture")}<div>'
            f'<p class="marks">{_unseen_tag(item.get("unseen"))}</p>'
            f'<dl class="said">{"".join(lines)}'
            f'<dt class="sub">reference</dt><dd class="sub">{escaped(first)}</dd></dl></div></li>'
        )
    words = (
        "<p>The same pictures, captioned by each arm; right means every object named and none made "
        "up.</p>"
    )
    return words + (f'<ul class="cards">{"".join(cards)}</ul>' if cards else NOTHING)


def _measured(results: Mapping, name: str) -> str:
    """ " by greedy decoding of 256 test pictures", of "curve" or "table"; "" where unknown."""
    by = lookup(results, "measured", name)
    if not by:
        return ""
    method = escaped(lookup(by, "method"))
    if method == "beam":
        method = f"{number(lookup(by, 'num_beams'), 0)}-beam"
    return f" by {method} decoding of {number(lookup(by, 'pictures'), 0)} test pictures"


def _curves(results: Mapping, material: Mapping) -> str:
    curves = material.get("curves") or {}
    arms = ordered_arms(curves)
    lines = [(arm_colour(arm, arms), curve_points(curves[arm])) for arm in arms]
    baseline = curve_points(curves.get(REAL))
    level = (baseline[-1][1], f"real only ends at {number(baseline[-1][1])}") if baseline else None
    reached = results.get("steps_to_baseline")
    chart = line_chart(
        lines,
        "CIDEr over training steps, one line an arm",
        (440, 270),
        x_title="training steps",
        y_title="CIDEr",
        from_zero=True,
        level=level,
        crossing=finite(lookup(reached, "steps")),
    )
    if chart == NOTHING:
        return chart
    caption = (
        f"CIDEr while training{_measured(results, 'curve')}. Dashed: where the real-only arm ends."
    )
    if table := _measured(results, "table"):
        caption += f" All other scores are{table}, after the last step."
    if reached:
        caption += (
            f" Dotted: real + synthetic gets there after {number(lookup(reached, 'steps'), 0)} "
            f"steps, {percent(lookup(reached, 'share'))} of the real-only arm's. "
            "(Synth²: about a third, by a secondary summary.)"
        )
    elif not results.get("tiny"):
        caption += " Real + synthetic does not get there, or it was not measured."
    return figure(arm_legend(arms) + chart, caption)


def _seen_unseen(results: Mapping, material: Mapping) -> str:
    del material
    by_arm = results.get("arms") or {}
    arms = ordered_arms((REAL, MIXED), by_arm)
    groups = [
        (name, {arm: finite(lookup(by_arm, arm, key)) for arm in arms})
        for name, key in (("all", "cider"), ("seen", "cider_seen"), ("never seen", "cider_unseen"))
    ]
    chart = grouped_bars(groups, arms)
    caption = (
        "CIDEr on test pictures by whether real pairs show all their combinations of colour and "
        "shape (seen) or not."
    )
    if measured := _measured(results, "table"):
        caption += f" Captions{measured}."
    head = "".join(f'<th scope="col" class="n">{arm_name(arm)}</th>' for arm in arms)
    rows = "".join(
        f'<tr><th scope="row">{name}</th>'
        + "".join(
            f'<td class="n">{(percent if is_share else number)(lookup(by_arm, arm, key), 1)}</td>'
            for arm in arms
        )
        + f'<td class="n">{_difference(by_arm, key, is_share)}</td></tr>'
        for name, key, is_share in _METRICS
    )
    table = (
        f'<div class="scroll"><table><thead><tr><th scope="col">score</th>{head}'
        f'<th scope="col" class="n">difference</th></tr></thead><tbody>{rows}</tbody></table></div>'
    )
    return (figure(arm_legend(arms) + chart, caption) if chart != NOTHING else chart) + table


def _difference(by_arm: Mapping, key: str, is_share: bool) -> str:
    before, after = (finite(lookup(by_arm, arm, key)) for arm in (REAL, MIXED))
    if before is None or after is None:
        return DASH
    return signed(100 * (after - before), 1, " pts") if is_share else signed(after - before)


def _balance(results: Mapping, material: Mapping) -> str:
    del material
    sets = results.get("balance") or {}
    if not sets:
        return NOTHING
    highest = max([finite(lookup(s, "entropy")) or 0.0 for s in sets.values()], default=0.0)
    rows = "".join(
        f'<tr><th scope="row">{escaped(name)}</th>'
        f'<td class="n">{number(lookup(one, "captions"), 0)}</td>'
        f'<td class="measure">{percent(lookup(one, "top5_share"), 1)}'
        f"{lying_bar(lookup(one, 'top5_share'), 1.0)}</td>"
        f'<td class="measure">{number(lookup(one, "entropy"), 2)}'
        f"{lying_bar(lookup(one, 'entropy'), highest)}</td>"
        "</tr>"
        for name, one in sets.items()
    )
    return f"""<p>Captions are clustered; a balanced set has a small share of its captions in the
five largest clusters and a high entropy over clusters. (Synth², by a secondary summary: 57.7&nbsp;%
for its synthetic set, 69.8 to 83.0&nbsp;% for real ones.)</p>
<div class="scroll"><table><thead><tr><th scope="col">caption set</th>
<th scope="col" class="n">captions</th><th scope="col">in the 5 largest clusters</th>
<th scope="col">entropy, nats</th></tr></thead>
<tbody>{rows}</tbody></table></div>"""


def _speed(results: Mapping, material: Mapping) -> str:
    del material
    rows = [
        (label, value, DASH if value is None else f"{number(value, 2)} steps/s")
        for label, key in (("embeddings", "embedding"), ("pixels", "pixel"))
        for value in [finite(lookup(results, "steps_per_second", key))]
    ]
    return (
        "<p>Training steps a second of the caption model when synthetic tokens are looked up "
        "(embeddings), and when they are first drawn and encoded again (pixels). Synth² reports "
        "25&nbsp;% more for embeddings (abstract); the ratio depends on how large the tokenizer is "
        "beside the caption model.</p>" + bar_table(rows)
    )


def _losses(results: Mapping, material: Mapping) -> str:
    del results
    charts = []
    for model, curve in (material.get("losses") or {}).items():
        name = escaped(model).replace("_", " ")
        points = curve_points(curve)
        chart = line_chart([(None, thinned(points))], f"training loss of {model}", (190, 120))
        last = f"last {number(points[-1][1], 3)}" if points else DASH
        charts.append(f'<div><p><b>{name}</b><br><span class="sub">{last}</span></p>{chart}</div>')
    if not charts:
        return NOTHING
    return figure(
        f'<div class="multiples">{"".join(charts)}</div>',
        "Training loss over steps, means of neighbouring steps; each model has its own scale.",
    )


def _time(results: Mapping, material: Mapping) -> str:
    del material
    stages = results.get("seconds_by_stage") or {}
    rows = [
        (escaped(name).replace("_", " "), finite(value), duration(value))
        for name, value in stages.items()
    ]
    memory = finite(results.get("peak_memory_gib"))
    most = "" if memory is None else f", with at most {number(memory)} GiB of memory"
    total = f"<p>In all {duration(results.get('seconds'))}{most}.</p>"
    return total + (bar_table(rows) if rows else NOTHING)


def _flat(tree: Mapping, prefix: str = "") -> Iterable[tuple[str, object]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _settings(results: Mapping, material: Mapping) -> str:
    del material

    def table(rows: Iterable[tuple[str, object]]) -> str:
        body = "".join(
            f'<tr><th scope="row"><code>{escaped(k)}</code></th>'
            f"<td><code>{escaped(v)}</code></td></tr>"
            for k, v in rows
        )
        return f'<div class="scroll"><table class="settings">{body}</table></div>'

    versions = list(_flat(results.get("versions") or {}))
    config = list(_flat(results.get("config") or {}))
    parts = [table([("commit", results.get("commit")), *versions])]
    if config:
        parts.append(
            f"<details><summary>The whole config, {len(config)} keys</summary>"
            f"{table(config)}</details>"
        )
    return "".join(parts)


SECTIONS: tuple[tuple[str, str, Callable[[Mapping, Mapping], str]], ...] = (
    ("how", "How it works", _how),
    ("scenes", "Real pairs", _scenes),
    ("tokenizer", "Tokenizer", _reconstructions),
    ("synthetic", "Synthetic pairs", _synthetic),
    ("test", "Captions of test pictures", _test_captions),
    ("curves", "Learning curves", _curves),
    ("unseen", "Seen and unseen combinations", _seen_unseen),
    ("balance", "Balance of the captions", _balance),
    ("speed", "Embeddings or pixels", _speed),
    ("losses", "Training losses", _losses),
    ("time", "Where the time went", _time),
    ("settings", "Settings", _settings),
)  # (anchor, heading, writer), in the page's order
