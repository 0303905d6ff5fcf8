"""`loraens ensemble`: choose members, join them, and prove what that is worth."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from loraens.ensemble.combine import Rule, combine, rules
from loraens.ensemble.diversity import SIMILARITIES, summary
from loraens.ensemble.pool import metric
from loraens.ensemble.prove import FOLDS, REPEATS, Candidate, Proof, prove
from loraens.ensemble.read import Candidates, read_runs
from loraens.ensemble.select import METHODS, SOUPS, Options
from loraens.ensemble.significance import Interval
from loraens.errors import InputError
from loraens.metrics import overall
from loraens.store import (
    ENSEMBLE,
    ENSEMBLE_FORMAT,
    MANIFEST,
    checksum,
    without_nan,
    write_atomically,
)
from loraens.train.account import ensembles_run


def candidates(
    found: Candidates, methods: Sequence[str], only: Sequence[Rule] | None, options: Options
) -> list[Candidate]:
    """Every method with every rule that applies; `best` and `omni` are always there, to compare
    with.

    Raises:
        InputError: A method or rule is unknown, or does not apply to the task.
    """
    groups = {"all": list(METHODS), "soup": list(SOUPS)}
    names = list(dict.fromkeys(name for given in methods for name in groups.get(given, [given])))
    for name in names:
        if name not in METHODS and name not in SOUPS:
            raise InputError(
                f"--method {name} is unknown: give all, or some of {', '.join([*METHODS, *SOUPS])}"
            )
    task = found.dev.task
    apply = rules(task)
    for rule in only or ():
        if rule not in apply:
            raise InputError(
                f"--rule {rule} does not apply to task {task.name}: give one of {', '.join(apply)}"
            )
    wanted = [
        Candidate(name, rule, options)
        for name in names
        if name in METHODS
        for rule in only or apply
    ]
    wanted += [Candidate(name, "merged", options) for name in names if name in SOUPS]
    needed = [Candidate(name, apply[0], options) for name in ("best", "omni")]
    return [*(candidate for candidate in needed if candidate not in wanted), *wanted]


def _soup(found: Candidates, which: str) -> Any:
    """What merges the members; their pools learn to run the merged model."""
    from loraens.inference.soup import Soup

    bar = tqdm(desc=f"{found.dev.task.name}: merged models", unit="", disable=None, leave=False)
    soup = Soup(found, which, bar.update)
    found.dev = replace(found.dev, merged=soup.of("dev"))
    found.test = found.test and replace(found.test, merged=soup.of("test"))
    return soup


def test_score(found: Candidates, proof: Proof) -> float | None:
    """The task's metric on test, where labels are there."""
    if found.test is None or math.isnan(found.test.labels[0]):
        return None
    outcome = combine(found.test, proof.weights, proof.candidate.rule, found.dev.places)
    return metric(found.dev.task, found.dev.task.metric, outcome, found.test.labels)


def record(found: Candidates, proof: Proof, which: str, folder: Path) -> dict[str, Any]:
    """An ensemble as JSON holds it: all that is needed to use it, and what it is worth."""
    members = [
        {
            "name": found.dev.names[index],
            "directory": os.path.relpath(found.directories[index], folder),
            "epoch": found.manifests[index]["epochs"][which],
            "rank": int(found.dev.ranks[index]),
            "place": int(found.dev.places[index]),
            "weight": float(weight),
            "manifest_sha256": checksum(found.directories[index] / MANIFEST),
        }
        for index, weight in enumerate(proof.weights)
        if weight > 0
    ]
    settings = found.manifests[0]["settings"]
    name = found.dev.task.name
    fields = {
        key: value
        for key, value in asdict(proof).items()
        if key not in ("candidate", "weights", "members")
    }
    data = {key: value for key, value in settings["data"].items() if key.startswith(f"{name}-")}
    return {
        "format": ENSEMBLE_FORMAT,
        "task": found.dev.task.to_dict(),
        "method": proof.candidate.method,
        "rule": proof.candidate.rule,
        "options": asdict(proof.candidate.options),
        "which": which,
        "pool_size": len(found.dev),
        "members": members,
        **fields,
        "test": test_score(found, proof),
        "diversity": summary(
            found.dev.of([i for i, weight in enumerate(proof.weights) if weight > 0])
        ),
        "backbone": settings["backbone"],
        "backbone_fingerprint": settings["backbone_fingerprint"],
        "data": data,
    }


METHOD_HELP = (
    f"all, or some of {', '.join(METHODS)}; soup for soup (all members merged into one model) and"
    " greedy_soup, which need the backbone and the texts, and which all does not hold."
)
HEADINGS = {  # of the measures of `diversity.summary`, in words that fit
    "mean_agreement": "agree",
    "mean_cosine": "cosine",
    "mean_pearson": "r",
    "mean_errors": "r of errors",
    "disagreement": "differ",
    "double_fault": "both wrong",
    "q_statistic": "Q",
    "vote_error_predicted": "error by formula",
    "vote_error_observed": "error seen",
    "member_mse": "member MSE",
    "ambiguity": "ambiguity",
    "mean_mse": "joint MSE",
    "error_variance_predicted": "variance by formula",
    "error_variance_observed": "variance seen",
}
CALIBRATION = ("nll", "brier", "calibration_error")
COLUMNS: list[str | int] = [
    *(
        "task",
        "method",
        "rule",
        "members",
        "dev",
        "held_out",
        "low",
        "high",
        "to_best",
        "to_best_low",
        "to_best_high",
    ),
    *("to_omni", "to_omni_low", "to_omni_high", "p_best", "test", "temperature"),
    *(f"{name}{when}" for name in CALIBRATION for when in ("", "_calibrated")),
]


def row(entry: dict[str, Any]) -> list[Any]:
    """One line of the CSV file."""
    name = entry["task"]["metric"]
    intervals = [
        entry[key][part]
        for key in ("interval", "to_best", "to_omni")
        for part in ("value", "low", "high")
    ]
    cells = [
        entry["task"]["name"],
        entry["method"],
        entry["rule"],
        len(entry["members"]),
        entry["dev"][name],
        *intervals,
    ]
    held_out = entry["held_out"]
    calibrated = entry["calibrated"]
    calibration = [scores.get(name) for name in CALIBRATION for scores in (held_out, calibrated)]
    return [*cells, entry["p_best"], entry["test"], entry["temperature"], *calibration]


def print_table(entries: Sequence[dict[str, Any]]) -> None:
    """Print one task's ensembles."""
    task = entries[0]["task"]
    cross = (
        f"{REPEATS} x {FOLDS}"
        f" cross-validation{' (greedy_soup: once)' if entries[-1]['method'] in SOUPS else ''}"
    )
    known = {"p_best": "p", "test": "test"}
    known = {
        key: name for key, name in known.items() if any(entry[key] is not None for entry in entries)
    }
    table = _table(
        f"{task['name']}: {task['metric']}, {entries[0]['pool_size']} members to choose from",
        (
            "method",
            "rule",
            "members",
            "dev",
            "held out",
            "minus best",
            "minus omni",
            *known.values(),
        ),
        f"dev: chosen on it, so not held out. held out: {cross} of the choice, 95 %"
        f" interval{_epochs(entries[0]['which'])}.",
    )
    for entry in entries:
        intervals = [Interval(**entry[key]) for key in ("interval", "to_best", "to_omni")]
        cells = [
            entry["method"],
            entry["rule"],
            str(len(entry["members"])),
            f"{entry['dev'][task['metric']]:.4f}",
        ]
        cells += [_cell(intervals[0]), *(_cell(interval, "+") for interval in intervals[1:])]
        table.add_row(*cells, *("" if entry[key] is None else f"{entry[key]:.4f}" for key in known))
    _print(table)


def _epochs(which: str) -> str:
    """What the cross-validation does not repeat."""
    return (
        "; each member's best epoch was chosen on all of dev (not so with --which last)"
        if which == "best"
        else ""
    )


def _table(title: str, columns: Sequence[str], caption: str) -> Any:
    from rich.table import Table

    table = Table(title=title, caption=caption)
    for column in columns:
        left = column in ("method", "rule")
        table.add_column(column, justify="left" if left else "right", no_wrap=left)
    return table


def _print(table: Any) -> None:
    from rich.console import Console

    Console().print(table)


def print_details(entries: Sequence[dict[str, Any]]) -> None:
    """Print how far one task's probabilities can be trusted, and how different the members are."""
    name = entries[0]["task"]["name"]
    if calibrated := [entry for entry in entries if entry["calibrated"]]:
        columns = [
            "method",
            "rule",
            "temperature",
            *(text for key in CALIBRATION for text in (_words(key), "at that T")),
        ]
        table = _table(
            f"{name}: calibration, held out",
            columns,
            "temperature: of all of dev; the folds' own in the columns after.",
        )
        for entry in calibrated:
            pairs = [(entry["held_out"][key], entry["calibrated"][key]) for key in CALIBRATION]
            numbers = [entry["temperature"], *(value for pair in pairs for value in pair)]
            table.add_row(entry["method"], entry["rule"], *(f"{value:.3f}" for value in numbers))
        _print(table)
    several = {
        entry["method"]: entry
        for entry in entries
        if len(entry["members"]) > 1 and entry["method"] not in SOUPS
    }
    if several:
        keys = list(next(iter(several.values()))["diversity"])
        table = _table(
            f"{name}: diversity on dev",
            ["method", *(HEADINGS[key] for key in keys)],
            "by formula: by the paper's.",
        )
        for method, entry in several.items():
            found = (entry["diversity"][key] for key in keys)
            table.add_row(method, *("" if value is None else f"{value:.3f}" for value in found))
        _print(table)


def _words(key: str) -> str:
    return key.replace("_", " ")


def _cell(interval: Interval, sign: str = "") -> str:
    return f"{interval.value:{sign}.4f} [{interval.low:{sign}.3f}, {interval.high:{sign}.3f}]"


def log(entries: Sequence[dict[str, Any]], folder: Path, first: Path) -> None:
    """A W&B run of job type `ensemble` in the group of the first sweep, with the table."""
    import wandb

    names = "-".join(dict.fromkeys(entry["task"]["name"] for entry in entries))
    with wandb.init(
        **ensembles_run(first, folder), config={"task": names, **entries[0]["options"]}
    ) as run:
        run.log({"ensembles": wandb.Table(COLUMNS, [row(entry) for entry in entries])})
        for entry in entries:
            name = f"{entry['task']['name']}/{entry['method']}/{entry['rule']}"
            run.summary.update(
                {
                    f"{name}/held_out": entry["interval"]["value"],
                    f"{name}/to_best": entry["to_best"]["value"],
                }
            )


def run(
    runs: Sequence[str],
    methods: Sequence[str],
    only: Sequence[Rule] | None,
    tasks: Sequence[str] | None,
    which: str,
    options: Options,
    out: Path | None,
    logged: bool = False,
) -> list[dict[str, Any]]:
    """Choose, prove and write ensembles; returns them."""
    if options.measure is not None and options.measure not in SIMILARITIES:
        raise InputError(
            f"--measure {options.measure} is unknown: give one of {', '.join(SIMILARITIES)}"
        )
    folder = out or Path(runs[0]) / "ensembles"
    entries = []
    for name, found in read_runs([Path(path) for path in runs], tasks, which).items():
        if math.isnan(found.dev.labels[0]):
            raise InputError(f"task {name} has no labels on dev: ensembles cannot be chosen")
        chosen = candidates(found, methods, only, options)
        soup = (
            _soup(found, which) if any(candidate.method in SOUPS for candidate in chosen) else None
        )
        with tqdm(total=FOLDS * REPEATS, desc=f"{name}: folds", disable=None, leave=False) as bar:
            proofs = prove(found.dev, chosen, bar.update)
        of_task = []
        for proof in proofs:
            place = folder / f"{name}-{proof.candidate.method}-{proof.candidate.rule}"
            of_task.append(without_nan(record(found, proof, which, place)))
            if soup is not None and proof.candidate.method in SOUPS:
                soup.write(place, proof.weights, proof.dev)
            write_atomically(place / ENSEMBLE, (json.dumps(of_task[-1], indent=2) + "\n").encode())
        print_table(of_task)
        print_details(of_task)
        entries.extend(of_task)
    text = io.StringIO()
    csv.writer(text).writerows([COLUMNS, *map(row, entries)])
    write_atomically(folder / "ensembles.csv", text.getvalue().encode())
    write_atomically(folder / "ensembles.json", (json.dumps(entries, indent=2) + "\n").encode())
    print_overall(entries)
    if logged:
        log(entries, folder, Path(runs[0]))
    print(f"the ensembles lie in {folder}")
    return entries


def print_overall(entries: Sequence[dict[str, Any]]) -> None:
    """Print the paper's overall score of each method with the paper's rules, where the three tasks
    are there.
    """
    for method in dict.fromkeys(entry["method"] for entry in entries):
        chosen = [
            e
            for e in entries
            if e["method"] == method
            and e["rule"] == ("logits" if e["task"]["kind"] == "number" else "vote")
        ]
        dev = overall({e["task"]["name"]: e["dev"][e["task"]["metric"]] for e in chosen})
        held_out = overall({e["task"]["name"]: e["interval"]["value"] for e in chosen})
        if dev is not None and held_out is not None:
            print(f"overall, {method}: dev {dev:.4f}, held out {held_out:.4f}")


def main(args: list[str]) -> None:
    """Run `ensemble` with the options of the command line."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog="loraens ensemble", description=__doc__, exit_on_error=False)
    parser.add_argument(
        "--runs", nargs="+", type=str, required=True, help="Directories of runs, sweeps or members."
    )
    parser.add_argument("--method", nargs="+", type=str, default=["all"], help=METHOD_HELP)
    parser.add_argument(
        "--rule",
        nargs="+",
        type=str,
        default=None,
        help="vote, logits or probs; all that apply by default.",
    )
    parser.add_argument(
        "--task", nargs="+", type=str, default=None, help="Names of tasks; all by default."
    )
    parser.add_argument(
        "--which", type=str, choices=["best", "last"], default="best", help="Epoch of each member."
    )
    parser.add_argument(
        "--out", type=str | None, default=None, help="Where ensembles go; RUN/ensembles by default."
    )
    parser.add_argument("--logger", type=bool, default=True, help="Whether to log a W&B run.")
    parser.add_class_arguments(Options)
    given = parser.parse_args(args)
    options = Options(**{name: given[name] for name in asdict(Options())})
    out = None if given.out is None else Path(given.out)
    run(given.runs, given.method, given.rule, given.task, given.which, options, out, given.logger)
