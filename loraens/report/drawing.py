"""How figures are drawn: their style, their colours, and their files.

Colours can be told apart by colour-blind readers: categories are those of Okabe and Ito (2008),
amounts those of viridis and cividis.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure

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


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """A function that draws a figure in the style."""

    @wraps(draw)
    def draw_styled(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return draw_styled


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


def colour_scale(values: np.ndarray, name: str) -> ScalarMappable:
    """A colour for each distinct value, by order and not by size, so that 1, 2 and 30 can be told
    apart.
    """
    levels = np.unique(values)
    edges = np.concatenate([[levels[0] - 1], (levels[1:] + levels[:-1]) / 2, [levels[-1] + 1]])
    colours = ListedColormap(
        matplotlib.colormaps[name](np.linspace(0.25, 0.92, 256))
    )  # lines must show on dark and on light
    return ScalarMappable(BoundaryNorm(edges, colours.N) if len(levels) > 1 else None, colours)


def level_ticks(values: np.ndarray) -> dict[str, Any]:
    """Ticks of a colour bar at the values, eight at most."""
    levels = np.unique(values)
    shown = (
        levels
        if len(levels) <= 8
        else levels[np.linspace(0, len(levels) - 1, 8).round().astype(int)]
    )
    return {"ticks": shown, "format": "%g"} if len(levels) > 1 else {"ticks": []}


def mark_levels(axes: Axes, values: np.ndarray) -> None:
    """Ticks at the values themselves, where they are few."""
    levels = np.unique(values)
    if len(levels) <= 8 and (
        len(levels) == 1 or np.diff(levels).min() * 16 > levels[-1] - levels[0]
    ):
        axes.set_xticks(levels, [f"{value:g}" for value in levels])
