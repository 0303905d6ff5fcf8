"""`loraens report`: one page, and pictures, of the members and ensembles of one or more tasks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from loraens import __version__
from loraens.ensemble.prove import FOLDS, REPEATS
from loraens.errors import InputError
from loraens.report import sections as make
from loraens.report.content import Content, read
from loraens.report.figures import png
from loraens.report.page import page
from loraens.report.sections import Missing, Picture, Section
from loraens.report.tables import overall_scores, scores, verdict
from loraens.store import write_atomically
from loraens.train.account import ensembles_run


def sections_of(content: Content, texts: bool) -> list[Section]:
    """All sections of one task; those that need texts are left out, with a reason, where the texts
    cannot be had.
    """
    name = content.task.name
    with tqdm(total=FOLDS * REPEATS, desc=f"{name}: folds", disable=None, leave=False) as bar:
        found: list[Section] = [
            scores(content),
            make.frontier(content, bar.update),
            make.scores(content),
            make.heatmap(content),
        ]
    found += [
        make.diversity(content),
        make.gains(content),
        make.reliability(content),
        make.outcomes(content),
    ]
    return [*found, make.curves(content), *_of_texts(content, texts)]


def _of_texts(content: Content, wanted: bool) -> list[Section]:
    """The sections that need the backbone or the texts."""
    titles = "Embeddings of low and high rank", "Hardest examples"
    if not wanted:
        return [Missing(title, "--texts false was given") for title in titles]
    from loraens.inference.texts import read_texts

    try:
        _, texts = read_texts(content.found)["dev"]
        return [make.maps(content, texts), *make.hardest(content, texts)]
    except (InputError, OSError) as error:
        return [
            Missing(title, f"the texts or the backbone cannot be had ({error})") for title in titles
        ]


def run(
    runs: Sequence[str],
    tasks: Sequence[str] | None,
    which: str | None,
    out: Path,
    texts: bool,
    logged: bool,
) -> Path:
    """Make the report; returns the page's path."""
    contents = read([Path(path) for path in runs], tasks, which)
    parts: dict[str, list[Section]] = {}
    if (together := overall_scores(contents)) is not None:
        parts["All tasks"] = [together]
    parts |= {name: sections_of(content, texts) for name, content in contents.items()}
    title = f"LoRA members and their ensembles: {', '.join(contents)}"
    sizes = ", ".join(
        f"{len(content.found.dev)} members of {name}" for name, content in contents.items()
    )
    footer = (
        f"Made by loraens {__version__} from {sizes} on"
        f" {', '.join(dict.fromkeys(c.backbone for c in contents.values()))}."
    )
    whole = page(title, [verdict(content) for content in contents.values()], parts, footer)
    images = {
        f"{part}-{s.name}": png(s.drawn)
        for part, of_part in parts.items()
        for s in of_part
        if isinstance(s, Picture)
    }
    for name, content in images.items():
        write_atomically(out / f"{name}.png", content)
    write_atomically(out / "index.html", whole.encode())
    for sentence in map(verdict, contents.values()):
        print(sentence)
    if logged:
        log(images, out, Path(runs[0]))
    print(f"the report is {out / 'index.html'}, with {len(images)} pictures beside it")
    return out / "index.html"


def log(images: dict[str, bytes], out: Path, first: Path) -> None:
    """The pictures, as images of the ensembles' W&B run."""
    import wandb

    with wandb.init(**ensembles_run(first, first)) as run:
        run.log({f"report/{name}": wandb.Image(str(out / f"{name}.png")) for name in images})


def main(args: list[str]) -> None:
    """Run `report` with the options of the command line."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog="loraens report", description=__doc__, exit_on_error=False)
    parser.add_argument(
        "--runs",
        nargs="+",
        type=str,
        required=True,
        help="Directories of runs or sweeps, ensembles included.",
    )
    parser.add_argument(
        "--task", nargs="+", type=str, default=None, help="Names of tasks; all by default."
    )
    which = "Epoch of each member; that of the ensembles by default."
    parser.add_argument(
        "--which", type=str | None, choices=["best", "last"], default=None, help=which
    )
    parser.add_argument(
        "--out", type=str | None, default=None, help="Directory of the page; RUN/report by default."
    )
    parser.add_argument(
        "--texts", type=bool, default=True, help="Whether to show texts and maps of embeddings."
    )
    parser.add_argument(
        "--logger", type=bool, default=True, help="Whether to log the pictures to W&B."
    )
    given = parser.parse_args(args)
    out = Path(given.runs[0]) / "report" if given.out is None else Path(given.out)
    run(given.runs, given.task, given.which, out, given.texts, given.logger)
