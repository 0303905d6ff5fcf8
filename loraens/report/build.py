"""The report of some runs: all its sections, its page and its pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from loraens.ensemble.cross_validation import FOLDS
from loraens.ensemble.methods import REPEATS
from loraens.errors import InputError
from loraens.files import write_atomically
from loraens.records import Epoch
from loraens.report import sections as make
from loraens.report.content import Content, read
from loraens.report.drawing import png
from loraens.report.elements import Missing, Picture, Section
from loraens.report.page import page
from loraens.report.tables import adapters, overall_scores, scores, verdict


@dataclass(frozen=True)
class Report:
    """A report that was written.

    Args:
        path: The page.
        pictures: PNG files by name.
        verdicts: One sentence a task.
    """

    path: Path
    pictures: dict[str, Path]
    verdicts: list[str]


def sections_of(content: Content, texts: bool) -> list[Section]:
    """All sections of one task; those that need texts are left out, with a reason, where the texts
    cannot be had.
    """
    with tqdm(
        total=FOLDS * REPEATS, desc=f"{content.task.name}: folds", disable=None, leave=False
    ) as bar:
        frontier = make.frontier(content, bar.update)
    of_adapters = adapters(content)
    return [
        scores(content),
        *([] if of_adapters is None else [of_adapters]),
        frontier,
        make.scores(content),
        make.heatmap(content),
        make.diversity(content),
        make.gains(content),
        make.reliability(content),
        make.outcomes(content),
        make.curves(content),
        *_of_texts(content, texts),
    ]


def _of_texts(content: Content, wanted: bool) -> list[Section]:
    """The sections that need the backbone or the texts."""
    titles = "Embeddings of low and high rank", "Hardest examples"
    if not wanted:
        return [Missing(title, "--texts false was given") for title in titles]
    from loraens.inference.texts import read_texts

    try:
        texts = read_texts(content.members)["dev"].texts
        return [make.maps(content, texts), *make.hardest(content, texts)]
    except (InputError, OSError) as error:
        reason = f"the texts or the backbone cannot be had ({error})"
        return [Missing(title, reason) for title in titles]


def write_report(
    runs: Sequence[Path],
    out: Path,
    tasks: Sequence[str] | None = None,
    epoch: Epoch | None = None,
    texts: bool = True,
    version: str = "",
    backbone: str | None = None,
    unfinished: bool = False,
) -> Report:
    """Make the report of some runs.

    Args:
        runs: Directories of runs or sweeps, ensembles included.
        out: Directory of the page.
        tasks: Names of tasks; all by default.
        epoch: Epoch of each member; that of the ensembles by default.
        texts: Whether to show texts and maps of embeddings.
        version: Version of loraens, for the page's footer.
        backbone: Where the backbone is now, if it was moved: a directory or hub name of the same
            weights.
        unfinished: Whether to show members whose training has not ended, too.

    Raises:
        InputError: The runs cannot be read.
    """
    contents = read(runs, tasks, epoch, backbone=backbone, unfinished=unfinished)
    parts: dict[str, list[Section]] = {}
    if (overall := overall_scores(contents)) is not None:
        parts["All tasks"] = [overall]
    parts |= {name: sections_of(content, texts) for name, content in contents.items()}
    title = f"LoRA members and their ensembles: {', '.join(contents)}"
    sizes = [f"{len(content.members.dev)} members of {name}" for name, content in contents.items()]
    backbones = dict.fromkeys(content.backbone for content in contents.values())
    footer = f"Made by loraens {version} from {', '.join(sizes)} on {', '.join(backbones)}."
    verdicts = [verdict(content) for content in contents.values()]
    html = page(title, verdicts, parts, footer)
    pictures = {}
    for part, of_part in parts.items():
        for section in of_part:
            if isinstance(section, Picture):
                name = f"{part}-{section.name}"
                pictures[name] = out / f"{name}.png"
                write_atomically(pictures[name], png(section.drawn))
    write_atomically(out / "index.html", html.encode())
    return Report(out / "index.html", pictures, verdicts)
