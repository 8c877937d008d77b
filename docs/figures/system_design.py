"""Draw the pictures of the system design chapter: `python docs/figures/system_design.py [FOLDER]`.

Numbers in them come from the code (page bytes, layers, query bytes), so a change of the layout changes the picture.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from drawing import CONTROL, EDGE, INK, LEDGER, MODEL, PLAIN, TENSOR, WIRE, arrow, box, canvas, caption, heading
from matplotlib.patches import Rectangle

from pikv_kernels import CODECS
from pikv_runtime.config import RuntimeConfig
from pikv_runtime.profiles import load_geometry

HERE = Path(__file__).resolve().parent
PAGE = RuntimeConfig().page_tokens
PAGES = (
    "PagedStore on every rank: K and V by codec\n"
    "CentroidTable: mean keys on every rank\n"
    "Shadows: exact keys of audited requests"
)
OF_A_PAGE = (
    "a page = (block, layer):\ncodec, rank, tag, references, error.\n\n"
    "A layer may drop or demote a\npage that another keeps.\nBytes free with the last reference.\n\n"
    "ghost: evicted; its centroid stays\nfor as long as the request runs,\nso that a wish for it is seen."
)
OF_CODECS = (
    "int8 and int4: codes, K scales and zeros per channel, V scales per token. "
    "Ratio: bf16 bytes over stored bytes, metadata included."
)
BESIDE = (
    "beside the pages, counted:\ncentroid {} bytes a page where\nreading is sparse (ghosts too)\n\n"
    "not under the cap:\nexact shadows of audits (audit_bytes),\nhost tier (host_bytes)"
)
WHY = (
    "Why not fetch the pages: at Mixtral's shape a question (bf16) and its answer (fp32) are {:,} bytes a layer and"
    " rank; K and V of\na token are {:,}. Reading more than {:.0f} remote tokens is cheaper this way. No page table"
    " travels: each end works out\nthe sizes of all messages from its own replica. Prompt chunks ask the same way, with"
    " more rows. LocalTransport counts\nthe same bytes in one process."
)
CODEC_COLOURS = dict(zip(CODECS, ("#08306b", "#2171b5", "#6baed6", "#c6dbef"), strict=True))


def decode_step() -> Any:
    """One iteration of the engine, and the slower loop of control around it."""
    figure, axes = canvas(10.4, 6.15)
    heading(axes, 0.2, 5.95, "One iteration of Engine.step")
    for x, text, note in (
        (0.2, "ledger.plan", "arrivals, victims,\nprompt chunks"),
        (2.35, "events → tensors", "encode, move,\nfree, swap"),
        (8.55, "ledger.observe, price,\ncommit", "mass, tags, errors, time"),
    ):
        fill = TENSOR if "tensors" in text else LEDGER
        box(axes, x, 4.75, 1.7, 0.8, text, fill, note)
    arrow(axes, (1.9, 5.15), (2.35, 5.15))
    arrow(axes, (4.05, 5.15), (4.4, 5.15))
    axes.add_patch(Rectangle((4.4, 2.2), 3.75, 3.5, fc="#fafbfc", ec=EDGE[MODEL], lw=1.1, ls="--", zorder=0))
    caption(axes, 4.5, 5.64, "the model, one packed pass: every layer", 8.2, INK)
    _layer(axes)
    arrow(axes, (8.15, 5.15), (8.55, 5.15))
    box(axes, 8.55, 3.45, 1.7, 0.75, "next tokens", MODEL, "audited requests follow\ntheir exact continuation")
    arrow(axes, (8.15, 3.82), (8.55, 3.82))
    arrow(axes, (9.4, 4.2), (9.4, 4.75))
    box(axes, 0.2, 2.75, 3.85, 1.45, "the pages", TENSOR, PAGES)
    arrow(axes, (3.2, 4.75), (3.2, 4.2))
    arrow(axes, (4.05, 3.4), (4.55, 3.4), colour=EDGE[TENSOR])
    arrow(axes, (4.55, 4.9), (4.05, 3.95), colour=EDGE[TENSOR])
    heading(axes, 0.2, 1.8, "Once per control interval")
    for x, text, note, fill in (
        (0.2, "write_telemetry", "shares, ratios, logs:\nno ids, no lengths", LEDGER),
        (2.9, "policy.decide", "rank 0; bundle behind its\nguard, or a heuristic", CONTROL),
        (5.6, "clip, broadcast, stage", "same control on all ranks", WIRE),
        (8.3, "apply_control", "seal, evict, ladder down,\ncached blocks", LEDGER),
    ):
        box(axes, x, 0.7, 1.95, 0.85, text, fill, note)
    for x in (2.15, 4.85, 7.55):
        arrow(axes, (x, 1.12), (x + 0.75, 1.12))
    caption(axes, 0.2, 0.48, "blue: the ledger, numpy and numba, the same code live and in traces     orange: tensors"
            "     grey: the model     green: the policy     pink: crosses ranks", 7.8)  # fmt: skip
    return figure


def _layer(axes: Any) -> None:
    steps = (
        ("q, k, v", MODEL, "k, v into the open page", 4.85),
        ("router scores + bias → read set", LEDGER, "predicted gate · centroids; readset.select", 4.23),
        ("attention where the pages are", WIRE, "question out; partial and log-sum-exp back", 3.61),
        ("merge by log-sum-exp", TENSOR, "−inf where nothing was read", 2.99),
        ("gate and experts", MODEL, "now the tag is known: bound when the page fills", 2.37),
    )
    for text, fill, note, y in steps:
        box(axes, 4.6, y, 3.35, 0.48, text, fill, note, 8.6)
    for (*_, upper), (*_, lower) in pairwise(steps):
        arrow(axes, (6.27, upper), (6.27, lower + 0.48))


def training_step() -> Any:
    """Where a training step gets its numbers from, and how what was learned comes back to the engine."""
    figure, axes = canvas(10.4, 5.5)
    heading(axes, 0.2, 5.3, "What is recorded and priced once")
    for x, text, note, fill in (
        (0.2, "pikv record", "a real model, served exactly:\ntags, mass, scores, codec errors", TENSOR),
        (2.85, "a workload family", "arrivals, sharing, lengths,\nclasses", PLAIN),
        (5.5, "profile × geometry", "seconds per unit,\nbytes per page", PLAIN),
        (8.15, "reference run U", "no cap, exact: the\ndenominator of L", LEDGER),
    ):
        box(axes, x, 4.2, 2.05, 0.85, text, fill, note)
        arrow(axes, (x + 1.02, 4.2), (x + 1.02, 3.65))
        axes.add_patch(Rectangle((0.2, 1.85), 10.0, 1.8, fc="#fafbfc", ec=EDGE[MODEL], lw=1.1, ls="--", zorder=0))
    heading(axes, 0.4, 3.4, "A control interval, in every lane")
    for x, w, text, note, fill in (
        (0.4, 2.1, "TraceBatch", "lanes of the runtime's ledger;\niterations until the interval ends", LEDGER),
        (2.95, 1.75, "telemetry", "68 numbers, normalised", LEDGER),
        (5.15, 1.6, "policy net", "64 · 64, tanh", CONTROL),
        (7.2, 1.25, "coef view", "w · features\nof each group", CONTROL),
        (8.9, 1.15, "Control", "clipped to\nwhat is legal", WIRE),
    ):
        box(axes, x, 2.3, w, 0.85, text, fill, note)
    for x0, x1 in ((2.5, 2.95), (4.7, 5.15), (6.75, 7.2), (8.45, 8.9)):
        arrow(axes, (x0, 2.72), (x1, 2.72))
    arrow(axes, (9.47, 2.3), (1.45, 2.3), "put into force; the ledger charges latency, byte-seconds and lost mass",
          bend=-0.055, at=(5.4, 1.98))  # fmt: skip
    heading(axes, 0.95, 1.57, "Learning, and the way back")
    for x, w, text, note, fill in (
        (0.2, 2.2, "reward", "−ΔJ, for the learner minus\nthat of the static start", LEDGER),
        (2.8, 1.75, "PPO update", "only the preset's levers", CONTROL),
        (4.95, 1.75, "best checkpoint", "by validation, the start\nis a candidate", CONTROL),
        (7.1, 1.35, "bundle", "hashes, golden\npairs, card", CONTROL),
        (8.85, 1.35, "Engine", "behind the guard", MODEL),
    ):
        box(axes, x, 0.45, w, 0.85, text, fill, note)
    for x0, x1 in ((2.4, 2.8), (4.55, 4.95), (6.7, 7.1), (8.45, 8.85)):
        arrow(axes, (x0, 0.87), (x1, 0.87))
    arrow(axes, (0.75, 2.3), (0.75, 1.3))
    caption(axes, 0.2, 0.28, "pikv train does the middle and the lower row, pikv export makes the bundle, pikv evaluate"
            " and pikv parity say what it is worth.", 7.8)  # fmt: skip
    return figure


def memory() -> Any:
    """From a request's slot to blocks, pages by codec, and what is counted beside them."""
    figure, axes = canvas(10.4, 5.6)
    shape = load_geometry("embedded").shape(PAGE)
    layers, pages = shape.layers, 10
    heading(
        axes, 0.2, 5.4, f"The ledger: a request's slot lists block slots; a block is {PAGE} positions over all layers"
    )
    blocks = (7, 3, 12, 4, 9, 15, 2, 11, 6, 1)
    caption(axes, 0.2, 4.98, "page_block[r]", 8.2, INK)
    for p, block in enumerate(blocks):
        x = 1.6 + 0.62 * p
        axes.add_patch(Rectangle((x, 4.72), 0.56, 0.3, fc=LEDGER, ec=EDGE[LEDGER]))
        axes.text(x + 0.28, 4.87, f"b{block}", ha="center", va="center", size=8, color=INK)
    codecs = [
        ["native", "bf16", "bf16", "int8", "int8", "bf16", "bf16", "native", "native", "native"],
        ["native", "bf16", "int8", "int8", None, "bf16", "int8", "native", "native", "native"],
        ["native", "int8", "int4", None, "int8", "int8", "bf16", "native", "native", "native"],
        ["native", "bf16", None, "int4", "int4", "int8", "bf16", "native", "native", "native"],
    ]
    for layer in range(layers):
        y = 4.2 - 0.36 * layer
        caption(axes, 0.2, y + 0.24, f"layer {layer}", 8.2, INK)
        for p in range(pages):
            x, codec = 1.6 + 0.62 * p, codecs[layer][p]
            face = "#ffffff" if codec is None else CODEC_COLOURS[codec]
            edge = EDGE[WIRE] if codec is None else "#ffffff"
            axes.add_patch(Rectangle((x, y), 0.56, 0.3, fc=face, ec=edge, ls="--" if codec is None else "-"))
            dark = codec in ("native", "bf16")
            axes.text(x + 0.28, y + 0.15, codec or "ghost", ha="center", va="center", size=6.8,
                      color="white" if dark else EDGE[WIRE] if codec is None else INK)  # fmt: skip
    for x, kind in ((1.88, "sink"), (4.05, "sealed: read set"), (6.84, "window, open")):
        caption(axes, x, 2.98, kind, 7.6, EDGE[LEDGER], ha="center")
    caption(axes, 8.05, 5.05, OF_A_PAGE, 7.9)
    _payloads(axes, shape)
    return figure


def _payloads(axes: Any, shape: Any) -> None:
    heading(axes, 0.2, 2.6, "The store of a rank: one payload per codec, shared by all layers; a page is a row")
    for i, codec in enumerate(CODECS):
        size = shape.codec_bytes[i]
        y = 1.95 - 0.4 * i
        axes.add_patch(Rectangle((1.6, y), 4.6 * size / shape.codec_bytes[0], 0.3, fc=CODEC_COLOURS[codec], ec="none"))
        caption(axes, 0.2, y + 0.24, codec, 8.2, INK)
        caption(axes, 1.7 + 4.6 * size / shape.codec_bytes[0], y + 0.24,
                f"{size:,} bytes, ratio {shape.codec_bytes[1] / size:.2f}", 7.9)  # fmt: skip
    caption(axes, 0.2, 0.42, f"embedded model (fp32, {PAGE} tokens a page). {OF_CODECS}", 7.6)
    caption(axes, 8.05, 2.35, BESIDE.format(shape.centroid_bytes), 7.9)


def ranks() -> Any:
    """What travels between two ranks, and how many bytes of it."""
    figure, axes = canvas(10.4, 5.3)
    g = load_geometry("mixtral-8x7b")
    query = g.query_heads * (2 * g.head_dim + 4 * g.head_dim + 4)  # q in bf16, partial output and log-sum-exp in fp32
    token = 2 * g.kv_heads * g.head_dim * 2
    heading(axes, 0.2, 5.1, "Queries travel to pages")
    for x, name, experts in ((0.2, "rank 0, owner of request A", "0–3"), (7.2, "rank 1, owner of request B", "4–7")):
        axes.add_patch(Rectangle((x, 1.15), 3.0, 3.7, fc="#fafbfc", ec=EDGE[MODEL], lw=1.1, ls="--", zorder=0))
        caption(axes, x + 0.1, 4.8, name, 8.6, INK)
        box(axes, x + 0.2, 3.75, 2.6, 0.7, "forward pass of its requests", MODEL, "weights whole on every rank")
        box(
            axes,
            x + 0.2,
            2.75,
            2.6,
            0.75,
            "open page, window, sinks",
            TENSOR,
            "always read; stay until they are sealed",
        )
        box(axes, x + 0.2, 1.95, 2.6, 0.6, f"shards of experts {experts}", TENSOR, "sealed pages of anybody's requests")
        box(axes, x + 0.2, 1.25, 2.6, 0.5, "replica of the ledger", LEDGER, "all ranks' pages, no tensors")
    rows = (
        (4.35, "question: q and the read set's bits", EDGE[WIRE], 1, "every layer, ranks with pages to read"),
        (3.75, "answer: partial output, log-sum-exp", EDGE[WIRE], -1, "every layer"),
        (3.1, "a page that is sealed moves home", EDGE[TENSOR], 1, "once; spills stay if home is full"),
        (2.4, "outcome: tokens, tags, errors, mass", EDGE[LEDGER], 0, "all-gather, once an iteration"),
        (1.7, "control and clock of rank 0", EDGE[CONTROL], 1, "broadcast, once an interval / iteration"),
    )
    for y, text, colour, way, when in rows:
        start, end = ((3.25, y), (7.15, y)) if way >= 0 else ((7.15, y), (3.25, y))
        arrow(axes, start, end, text, colour=colour, at=(5.2, y + 0.13))
        if way == 0:
            arrow(axes, end, start, colour=colour)
        axes.text(5.2, y - 0.11, when, ha="center", va="center", size=7.2, color=EDGE[MODEL])
    caption(axes, 0.2, 0.95, WHY.format(query, token, query / token), 8.0)
    return figure


FIGURES: dict[str, Callable[[], Any]] = {
    "design-decode-step": decode_step,
    "design-training-step": training_step,
    "design-memory": memory,
    "design-ranks": ranks,
}


def main(folder: Path) -> None:
    """Draw all of them into `folder`."""
    plt.rcParams.update({"font.family": "DejaVu Sans", "savefig.dpi": 130})
    for name, draw in FIGURES.items():
        figure = draw()
        figure.savefig(folder / f"{name}.png", metadata={"Software": None})
        plt.close(figure)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
