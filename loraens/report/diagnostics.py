"""Figures of calibration, predictions, training and gains.

Shape letters: M members, N examples, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from loraens.report.drawing import COLOURS, INK, colour_scale, figure, level_ticks, styled


@styled
def reliability(panels: Mapping[str, tuple[np.ndarray, np.ndarray]], bins: int = 10) -> Figure:
    """Share of right answers against confidence, in equal bins: of each panel, confidences `(N,)`
    and whether right `(N,)`.
    """
    drawn = figure(7.2, 3.6)
    row = drawn.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (title, (confidence, right)), colour in zip(
        row, panels.items(), COLOURS, strict=False
    ):
        bin_of = np.clip((confidence * bins).astype(int), 0, bins - 1)
        counts = np.bincount(bin_of, minlength=bins)
        there = np.flatnonzero(counts)
        heights = np.bincount(bin_of, right, bins)[there] / counts[there]
        axes.bar(
            (there + 0.5) / bins,
            heights,
            0.9 / bins,
            color=colour,
            alpha=0.35 + 0.65 * counts[there][:, None].max() * 0,
        )
        sure = np.bincount(bin_of, confidence, bins)[there] / counts[there]
        axes.scatter(
            sure, heights, s=8 + 120 * counts[there] / counts.sum(), color=colour, zorder=3
        )
        axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=":")
        axes.set(title=title, xlabel="confidence", xlim=(0, 1), ylim=(0, 1))
    row[0].set_ylabel("share that is right")
    return drawn


@styled
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


@styled
def against_labels(labels: np.ndarray, predicted: np.ndarray) -> Figure:
    """Predicted numbers `(N,)` against labels `(N,)`."""
    drawn = figure(5.0, 4.4)
    axes = drawn.subplots()
    axes.scatter(labels, predicted, s=8, color=COLOURS[0], alpha=0.4, linewidths=0)
    ends = [min(labels.min(), predicted.min()), max(labels.max(), predicted.max())]
    axes.plot(ends, ends, color=INK, linewidth=0.8, linestyle=":")
    axes.set(xlabel="label", ylabel="prediction")
    return drawn


@styled
def curves(
    histories: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], ranks: np.ndarray, label: str
) -> Figure:
    """Training loss and dev score of each member after each epoch: epochs, losses, scores; coloured
    by rank `(M,)`.
    """
    drawn = figure(7.2, 3.4)
    row = drawn.subplots(1, 2)
    colours = colour_scale(ranks, "plasma")
    for (epochs, losses, scores), rank in zip(histories, ranks, strict=True):
        for axes, values in zip(row, (losses, scores), strict=True):
            axes.plot(
                epochs, values, color=colours.to_rgba(rank), linewidth=0.9, marker=".", alpha=0.8
            )
    for axes, name in zip(row, ("training loss", label), strict=True):
        axes.set(xlabel="epoch", ylabel=name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    drawn.colorbar(colours, ax=row.tolist(), label="rank", **level_ticks(ranks))
    return drawn


@styled
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
