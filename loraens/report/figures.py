"""The report's figures: each is made of arrays, and drawn for a page that may be dark or light.

Colours are told apart by colour-blind readers: categories are those of Okabe and Ito (2008),
amounts those of viridis and cividis.

Shape letters: M members, N examples, K classes, D width of the encoder.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, ParamSpec

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

INK = "#24292f"  # text and axes; in the page it is the page's own colour
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6BB1", "#999999")
MARKERS = "osD^vP*X"
STYLE: Any = {
    "font.size": 10,
    "font.family": "sans-serif",
    "svg.fonttype": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "legend.frameon": False,
    "figure.dpi": 100,
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK
    ),
}
P = ParamSpec("P")
LABELLED = 40  # members whose names still fit beside a heatmap


def _styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    @wraps(draw)
    def styled(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return styled


def figure(width: float, height: float) -> Figure:
    """An empty figure, in inches."""
    return Figure(figsize=(width, height), layout="constrained")


def svg(drawn: Figure, name: str) -> str:
    """A figure as SVG for a page: transparent, its ink the page's, without any address.

    Args:
        drawn: The figure.
        name: Keeps ids apart from those of other figures.
    """
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        drawn.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    return text[text.index("<svg") :].replace(INK, "currentColor")


def png(drawn: Figure) -> bytes:
    """A figure as a PNG file, on white."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        drawn.savefig(buffer, format="png", dpi=150, facecolor="white")
    return buffer.getvalue()


def cluster_order(alike: np.ndarray) -> np.ndarray:
    """Order `(M,)` in which members that are alike `(M, M)` come together: average linkage of 1 -
    likeness.
    """
    if len(alike) < 3:
        return np.arange(len(alike))
    apart = np.clip(1 - (alike + alike.T) / 2, 0, None)
    np.fill_diagonal(apart, 0)
    order: np.ndarray = leaves_list(
        linkage(squareform(apart, checks=False), "average", optimal_ordering=len(alike) < 500)
    )
    return order


@_styled
def heatmap(
    alike: np.ndarray,
    order: np.ndarray,
    names: Sequence[str],
    sides: Mapping[str, np.ndarray],
    label: str,
) -> Figure:
    """Figure 1 of the paper: how alike members are `(M, M)`, clustered, with a bar at the side for
    each setting.

    Args:
        alike: `(M, M)`.
        order: `(M,)` from `cluster_order`.
        names: Names of the members.
        sides: Settings by name, `(M,)` each.
        label: What likeness is.
    """
    size = len(alike)
    drawn = figure(7.2, 6.2)
    widths = [0.035] * len(sides) + [1.0]
    grid = drawn.add_gridspec(1, len(widths), width_ratios=widths, wspace=0.01)
    main = drawn.add_subplot(grid[0, -1])
    off = alike[~np.eye(size, dtype=bool)] if size > 1 else alike
    image = main.imshow(
        alike[np.ix_(order, order)],
        cmap="viridis",
        vmin=float(off.min()),
        vmax=1.0,
        aspect="auto",
        interpolation="none",
    )
    main.set_yticks([])
    ticks = range(size) if size <= LABELLED else []
    main.set_xticks(
        ticks, [names[m] for m in order] if size <= LABELLED else [], rotation=90, fontsize=7
    )
    main.spines[:].set_visible(False)
    drawn.colorbar(image, ax=main, label=label, shrink=0.6, pad=0.02)
    for place, (name, values) in enumerate(sides.items()):
        bar = drawn.add_subplot(grid[0, place])
        colours = _scale_of(values, "cividis" if place else "plasma")
        bar.imshow(colours.to_rgba(values[order])[:, None], aspect="auto", interpolation="none")
        bar.set_yticks([])
        bar.set_xticks([0], [name], rotation=90, fontsize=8)
        bar.spines[:].set_visible(False)
        drawn.colorbar(colours, ax=main, label=name, shrink=0.6, pad=0.02, **_ticks(values))
    return drawn


def _scale_of(values: np.ndarray, name: str) -> ScalarMappable:
    """A colour for each value there is, in order: steps, not lengths, so that 1, 2 and 30 are told
    apart.
    """
    known = np.unique(values)
    edges = np.concatenate([[known[0] - 1], (known[1:] + known[:-1]) / 2, [known[-1] + 1]])
    colours = ListedColormap(
        matplotlib.colormaps[name](np.linspace(0.25, 0.92, 256))
    )  # lines must show on dark and on light
    return ScalarMappable(BoundaryNorm(edges, colours.N) if len(known) > 1 else None, colours)


def _ticks(values: np.ndarray) -> dict[str, Any]:
    known = np.unique(values)
    shown = (
        known if len(known) <= 8 else known[np.linspace(0, len(known) - 1, 8).round().astype(int)]
    )
    return {"ticks": shown, "format": "%g"} if len(known) > 1 else {"ticks": []}


def _few_ticks(axes: Axes, values: np.ndarray) -> None:
    """Ticks at the values themselves, where they are few."""
    known = np.unique(values)
    if len(known) <= 8 and (len(known) == 1 or np.diff(known).min() * 16 > known[-1] - known[0]):
        axes.set_xticks(known, [f"{value:g}" for value in known])


@_styled
def alikeness(likeness: np.ndarray, settings: Mapping[str, np.ndarray], label: str) -> Figure:
    """How alike each member is to the others on average `(M,)`, against each setting that
    varies.
    """
    drawn = figure(7.2, 3.0)
    panels = drawn.subplots(1, len(settings), sharey=True, squeeze=False)[0]
    # strict=False here and below: there are more colours and sizes than panels
    for axes, (name, values), colour in zip(panels, settings.items(), COLOURS, strict=False):
        known = np.unique(values)
        axes.scatter(values, likeness, s=14, color=colour, alpha=0.6, linewidths=0)
        axes.plot(known, [likeness[values == value].mean() for value in known], color=colour)
        axes.set_xlabel(name)
        _few_ticks(axes, values)
    panels[0].set_ylabel(label)
    return drawn


@_styled
def scores(
    ranks: np.ndarray,
    scales: np.ndarray,
    values: np.ndarray,
    chosen: Mapping[str, Sequence[int]],
    label: str,
) -> Figure:
    """Figure 3 of the paper: score against rank, a line for each scale; the band is all members of
    one rank and scale.

    Args:
        ranks: `(M,)`.
        scales: `(M,)`.
        values: `(M,)`.
        chosen: Members to mark: at most two ensembles, by name.
        label: Name of the score.
    """
    drawn = figure(7.2, 4.2)
    axes = drawn.subplots()
    for place, scale in enumerate(np.unique(scales)):
        colour = COLOURS[place % len(COLOURS)]
        here = scales == scale
        known = np.unique(ranks[here])
        parts = [values[here & (ranks == rank)] for rank in known]
        means = [part.mean() for part in parts]
        marker = MARKERS[place % len(MARKERS)]
        axes.plot(
            known,
            means,
            marker=marker,
            markersize=4,
            color=colour,
            label=f"scale {scale:g}",
            gid=f"line-{scale:g}",
        )
        if any(len(part) > 1 for part in parts):
            low = [part.min() for part in parts]
            high = [part.max() for part in parts]
            axes.fill_between(known, low, high, color=colour, alpha=0.15, linewidth=0)
            axes.scatter(ranks[here], values[here], s=8, color=colour, linewidths=0, alpha=0.7)
    for (name, members), size in zip(chosen.items(), (110, 190), strict=False):
        options: dict[str, Any] = {
            "facecolors": "none",
            "edgecolors": INK,
            "linewidths": 1.1,
            "gid": f"chosen-{name}",
        }
        axes.scatter(
            ranks[members],
            values[members],
            s=size,
            marker="o" if size == 110 else "s",
            label=name,
            **options,
        )
    axes.set_xlabel("rank")
    axes.set_ylabel(label)
    _few_ticks(axes, ranks)
    axes.legend(ncols=2, fontsize=8)
    return drawn


@_styled
def embedding_maps(
    panels: Mapping[str, np.ndarray], labels: np.ndarray, classes: Sequence[str]
) -> Figure:
    """Figure 4 of the paper: maps `(N, 2)` of embeddings side by side, coloured by label; without
    classes by value.
    """
    drawn = figure(7.2, 3.8)
    row = drawn.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, places) in zip(row, panels.items(), strict=True):
        axes.set_title(title)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
        options: dict[str, Any] = {"s": 7, "linewidths": 0, "alpha": 0.8}
        if classes:
            for number, name in enumerate(classes):
                here = labels == number
                axes.scatter(
                    *places[here].T, color=COLOURS[number % len(COLOURS)], label=name, **options
                )
        else:
            image = axes.scatter(*places.T, c=labels, cmap="viridis", **options)
    if classes:
        drawn.legend(
            *row[0].get_legend_handles_labels(),
            loc="outside lower center",
            ncols=min(5, len(classes)),
            markerscale=2,
        )
    else:
        drawn.colorbar(image, ax=row.tolist(), label="label", shrink=0.7)
    return drawn


@_styled
def frontier(
    lines: Mapping[str, np.ndarray], points: Mapping[str, np.ndarray], label: str
) -> Figure:
    """Held-out score against the number of members.

    Args:
        lines: Of methods that are told a size: `(sizes, 4)` with size, score, low, high.
        points: Of the others: `(4,)`.
        label: Name of the score.
    """
    drawn = figure(7.2, 4.4)
    axes = drawn.subplots()
    for place, (name, rows) in enumerate(lines.items()):
        size, value, low, high = np.asarray(rows).T
        colour = COLOURS[place]
        axes.plot(size, value, marker=MARKERS[place], markersize=4, color=colour, label=name)
        axes.fill_between(size, low, high, color=colour, alpha=0.1, linewidth=0)
    sizes = [row[0] for row in points.values()]
    for place, (name, (size, value, low, high)) in enumerate(points.items(), len(lines)):
        number = place - len(lines)
        size += (
            0.02 * max(sizes) * (sizes[:number].count(size) - (sizes.count(size) - 1) / 2)
        )  # beside each other, not on top
        colour = COLOURS[place % len(COLOURS)]
        marker = MARKERS[(place + place // len(COLOURS)) % len(MARKERS)]
        bars = [[value - low], [high - value]]
        axes.errorbar(
            [size],
            [value],
            yerr=bars,
            fmt=marker,
            color=colour,
            label=name,
            elinewidth=0.8,
            capsize=2,
        )
    axes.set_xlabel("members")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel(label)
    drawn.legend(loc="outside lower center", ncols=6, fontsize=8)
    return drawn


@_styled
def reliability(panels: Mapping[str, tuple[np.ndarray, np.ndarray]], bins: int = 10) -> Figure:
    """Share of right answers against confidence, in equal bins: of each panel, confidences `(N,)`
    and whether right `(N,)`.
    """
    drawn = figure(7.2, 3.6)
    row = drawn.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (title, (confidence, right)), colour in zip(
        row, panels.items(), COLOURS, strict=False
    ):
        places = np.clip((confidence * bins).astype(int), 0, bins - 1)
        counts = np.bincount(places, minlength=bins)
        there = np.flatnonzero(counts)
        heights = np.bincount(places, right, bins)[there] / counts[there]
        axes.bar(
            (there + 0.5) / bins,
            heights,
            0.9 / bins,
            color=colour,
            alpha=0.35 + 0.65 * counts[there][:, None].max() * 0,
        )
        sure = np.bincount(places, confidence, bins)[there] / counts[there]
        axes.scatter(
            sure, heights, s=8 + 120 * counts[there] / counts.sum(), color=colour, zorder=3
        )
        axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=":")
        axes.set(title=title, xlabel="confidence", xlim=(0, 1), ylim=(0, 1))
    row[0].set_ylabel("share that is right")
    return drawn


@_styled
def confusion(counts: np.ndarray, classes: Sequence[str]) -> Figure:
    """Labels (rows) against predictions (columns), `(K, K)`, coloured by the share of the label."""
    size = len(counts)
    drawn = figure(1.8 + 0.75 * size, 1.4 + 0.6 * size)
    axes = drawn.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    for row in range(size):
        for column in range(size):
            colour = "black" if shares[row, column] > 0.5 else "white"
            axes.text(
                column,
                row,
                f"{counts[row, column]:,}",
                ha="center",
                va="center",
                color=colour,
                fontsize=9,
            )
    axes.set_xticks(range(size), classes, rotation=30, ha="right")
    axes.set_yticks(range(size), classes)
    axes.spines[:].set_visible(False)
    axes.set(xlabel="prediction", ylabel="label")
    return drawn


@_styled
def against_labels(labels: np.ndarray, predicted: np.ndarray) -> Figure:
    """Predicted numbers `(N,)` against labels `(N,)`."""
    drawn = figure(5.0, 4.4)
    axes = drawn.subplots()
    axes.scatter(labels, predicted, s=8, color=COLOURS[0], alpha=0.4, linewidths=0)
    ends = [min(labels.min(), predicted.min()), max(labels.max(), predicted.max())]
    axes.plot(ends, ends, color=INK, linewidth=0.8, linestyle=":")
    axes.set(xlabel="label", ylabel="prediction")
    return drawn


@_styled
def curves(
    histories: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], ranks: np.ndarray, label: str
) -> Figure:
    """Training loss and dev score of each member after each epoch: epochs, losses, scores; coloured
    by rank `(M,)`.
    """
    drawn = figure(7.2, 3.4)
    row = drawn.subplots(1, 2)
    colours = _scale_of(ranks, "plasma")
    for (epochs, losses, found), rank in zip(histories, ranks, strict=True):
        for axes, values in zip(row, (losses, found), strict=True):
            axes.plot(
                epochs, values, color=colours.to_rgba(rank), linewidth=0.9, marker=".", alpha=0.8
            )
    for axes, name in zip(row, ("training loss", label), strict=True):
        axes.set(xlabel="epoch", ylabel=name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    drawn.colorbar(colours, ax=row.tolist(), label="rank", **_ticks(ranks))
    return drawn


@_styled
def gains(
    names: Sequence[str], predicted: Sequence[float], observed: Sequence[float], label: str
) -> Figure:
    """The paper's formula beside what was observed, a row for each ensemble."""
    drawn = figure(7.2, 1.2 + 0.3 * len(names))
    axes: Axes = drawn.subplots()
    rows = np.arange(len(names))[::-1]
    axes.hlines(rows, predicted, observed, color=COLOURS[-1], linewidth=1)
    axes.scatter(
        predicted,
        rows,
        facecolors="none",
        edgecolors=COLOURS[1],
        marker="s",
        label="by the paper's formula",
        zorder=3,
    )
    axes.scatter(observed, rows, color=COLOURS[0], label="observed", zorder=3)
    axes.set_yticks(rows, names)
    axes.set_xlabel(label)
    drawn.legend(loc="outside lower center", ncols=2, fontsize=8)
    return drawn
