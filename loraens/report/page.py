"""The report as one HTML page that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from loraens.ensemble.significance import Interval
from loraens.report.drawing import svg
from loraens.report.elements import Missing, Picture, Section


def page(
    title: str, verdicts: Sequence[str], parts: Mapping[str, Sequence[Section]], footer: str
) -> str:
    """The page.

    Args:
        title: Its title.
        verdicts: One sentence a task, on what won.
        parts: Sections by the title of the part that they belong to.
        footer: How it was made.
    """
    template = Environment(autoescape=True, trim_blocks=True).from_string(
        files("loraens.report").joinpath("page.html").read_text(encoding="utf-8")
    )
    laid_out = [
        {
            "title": name,
            "anchor": f"part-{index}",
            "sections": [_section(name, section) for section in sections],
        }
        for index, (name, sections) in enumerate(parts.items())
    ]
    return template.render(title=title, verdicts=verdicts, parts=laid_out, footer=footer)


def _section(part: str, section: Section) -> dict[str, Any]:
    if isinstance(section, Missing):
        return {"kind": "missing", "title": section.title, "why": section.why}
    shared = {"title": section.title, "caption": section.caption}
    if isinstance(section, Picture):
        drawn = Markup(svg(section.drawn, f"{part}-{section.name}"))
        return {"kind": "picture", **shared, "alt": section.alt, "svg": drawn}
    rows = [[_cell(value, section.digits) for value in row] for row in section.rows]
    numbers = [any(row[index]["number"] for row in rows) for index in range(len(section.columns))]
    columns = [
        {"name": name, "number": number}
        for name, number in zip(section.columns, numbers, strict=True)
    ]
    return {"kind": "table", **shared, "columns": columns, "rows": rows}


def _cell(value: Any, digits: int) -> dict[str, Any]:
    if value is None:
        return {"text": "", "number": False, "value": None}
    if isinstance(value, Interval):
        text = f"{value.value:.{digits}f} [{value.low:.{digits - 1}f}, {value.high:.{digits - 1}f}]"
        return {"text": text, "number": True, "value": value.value}
    if isinstance(value, (int, float)):
        text = f"{value:,}" if isinstance(value, int) else f"{value:.{digits}f}"
        return {"text": text, "number": True, "value": value}
    return {"text": str(value), "number": False, "value": None}
