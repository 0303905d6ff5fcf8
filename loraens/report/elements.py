"""What a report is made of: pictures, tables, and sentences that say why one is missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure


@dataclass
class Picture:
    """A figure with a name for its file, a caption, and a text for readers who cannot see it."""

    name: str
    title: str
    caption: str
    alt: str
    drawn: Figure


@dataclass
class Rows:
    """A table that can be sorted; numbers and intervals are shown with `digits`."""

    title: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    digits: int = 4


@dataclass
class Missing:
    """A section that is left out, and why."""

    title: str
    why: str


Section = Picture | Rows | Missing
