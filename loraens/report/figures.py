"""The report's figures: each is made of arrays, and drawn for a page that may be dark or light.

Shape letters: M members, N examples, K classes, D width of the encoder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from loraens.report.drawing import (
    COLOURS,
    INK,
    MARKERS,
    colour_scale,
    figure,
    level_ticks,
    mark_levels,
    styled,
)

LABELLED = 40  # members whose names still fit beside a heatmap


def cluster_order(matrix: np.ndarray) -> np.ndarray:
    """Order `(M,)` in which members that are similar `(M, M)` come together: average linkage of 1 -
    similarity.
    """
    if len(matrix) < 3:
        return np.arange(len(matrix))
    apart = np.clip(1 - (matrix + matrix.T) / 2, 0, None)
    np.fill_diagonal(apart, 0)
    order: np.ndarray = leaves_list(
        linkage(squareform(apart, checks=False), "average", optimal_ordering=len(matrix) < 500)
    )
    return order


@styled
def heatmap(
    matrix: np.ndarray,
    order: np.ndarray,
    names: Sequence[str],
    sides: Mapping[str, np.ndarray],
    label: str,
) -> Figure:
    """Figure 1 of the paper: similarity of members `(M, M)`, clustered, with a bar at the side for
    each setting.

    Args:
        matrix: `(M, M)`.
        order: `(M,)` from `cluster_order`.
        names: Names of the members.
        sides: Settings by name, `(M,)` each.
        label: Name of the similarity.
    """
    size = len(matrix)
    drawn = figure(7.2, 6.2)
    widths = [0.035] * len(sides) + [1.0]
    grid = drawn.add_gridspec(1, len(widths), width_ratios=widths, wspace=0.01)
    main = drawn.add_subplot(grid[0, -1])
    off = matrix[~np.eye(size, dtype=bool)] if size > 1 else matrix
    image = main.imshow(
        matrix[np.ix_(order, order)],
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
    for number, (name, values) in enumerate(sides.items()):
        bar = drawn.add_subplot(grid[0, number])
        colours = colour_scale(values, "cividis" if number else "plasma")
        bar.imshow(colours.to_rgba(values[order])[:, None], aspect="auto", interpolation="none")
        bar.set_yticks([])
        bar.set_xticks([0], [name], rotation=90, fontsize=8)
        bar.spines[:].set_visible(False)
        drawn.colorbar(colours, ax=main, label=name, shrink=0.6, pad=0.02, **level_ticks(values))
    return drawn


@styled
def mean_similarities(means: np.ndarray, settings: Mapping[str, np.ndarray], label: str) -> Figure:
    """Mean similarity of each member to the others `(M,)`, against each setting that
    varies.
    """
    drawn = figure(7.2, 3.0)
    panels = drawn.subplots(1, len(settings), sharey=True, squeeze=False)[0]
    # strict=False here and below: there are more colours and sizes than panels
    for axes, (name, values), colour in zip(panels, settings.items(), COLOURS, strict=False):
        levels = np.unique(values)
        axes.scatter(values, means, s=14, color=colour, alpha=0.6, linewidths=0)
        axes.plot(levels, [means[values == value].mean() for value in levels], color=colour)
        axes.set_xlabel(name)
        mark_levels(axes, values)
    panels[0].set_ylabel(label)
    return drawn


@styled
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
    for number, scale in enumerate(np.unique(scales)):
        colour = COLOURS[number % len(COLOURS)]
        here = scales == scale
        levels = np.unique(ranks[here])
        parts = [values[here & (ranks == rank)] for rank in levels]
        means = [part.mean() for part in parts]
        marker = MARKERS[number % len(MARKERS)]
        axes.plot(
            levels,
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
            axes.fill_between(levels, low, high, color=colour, alpha=0.15, linewidth=0)
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
    mark_levels(axes, ranks)
    axes.legend(ncols=2, fontsize=8)
    return drawn


@styled
def embedding_maps(
    panels: Mapping[str, np.ndarray], labels: np.ndarray, classes: Sequence[str]
) -> Figure:
    """Figure 4 of the paper: maps `(N, 2)` of embeddings side by side, coloured by label; without
    classes by value.
    """
    drawn = figure(7.2, 3.8)
    row = drawn.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, coordinates) in zip(row, panels.items(), strict=True):
        axes.set_title(title)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
        options: dict[str, Any] = {"s": 7, "linewidths": 0, "alpha": 0.8}
        if classes:
            for number, name in enumerate(classes):
                here = labels == number
                axes.scatter(
                    *coordinates[here].T,
                    color=COLOURS[number % len(COLOURS)],
                    label=name,
                    **options,
                )
        else:
            image = axes.scatter(*coordinates.T, c=labels, cmap="viridis", **options)
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


@styled
def frontier(
    lines: Mapping[str, np.ndarray], points: Mapping[str, np.ndarray], label: str
) -> Figure:
    """Held-out score against the number of members.

    Args:
        lines: Of methods with a given size: `(sizes, 4)` with size, score, low, high.
        points: Of the others: `(4,)`.
        label: Name of the score.
    """
    drawn = figure(7.2, 4.4)
    axes = drawn.subplots()
    for number, (name, rows) in enumerate(lines.items()):
        size, value, low, high = np.asarray(rows).T
        colour = COLOURS[number]
        axes.plot(size, value, marker=MARKERS[number], markersize=4, color=colour, label=name)
        axes.fill_between(size, low, high, color=colour, alpha=0.1, linewidth=0)
    sizes = [row[0] for row in points.values()]
    for number, (name, (size, value, low, high)) in enumerate(points.items()):
        style = number + len(lines)
        size += (
            0.02 * max(sizes) * (sizes[:number].count(size) - (sizes.count(size) - 1) / 2)
        )  # beside each other, not on top
        colour = COLOURS[style % len(COLOURS)]
        marker = MARKERS[(style + style // len(COLOURS)) % len(MARKERS)]
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
