"""Tables of proved ensembles: for the terminal, for CSV files and for frames."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from rich.table import Table

from loraens.ensemble.cross_validation import FOLDS
from loraens.ensemble.methods import METHODS, REPEATS
from loraens.ensemble.prove import CALIBRATION
from loraens.ensemble.record import EnsembleRecord
from loraens.ensemble.significance import Interval
from loraens.metrics import overall

HEADINGS = {  # of the measures of `diversity.summary`, in words that fit
    "mean_agreement": "agree",
    "mean_cosine": "cosine",
    "mean_pearson": "r",
    "mean_probabilities": "r of p",
    "mean_errors": "r of errors",
    "disagreement": "differ",
    "double_fault": "both wrong",
    "q_statistic": "Q",
    "vote_error_predicted": "error by formula",
    "vote_error_observed": "error seen",
    "member_mse": "member MSE",
    "ambiguity": "ambiguity",
    "mean_mse": "combined MSE",
    "error_variance_predicted": "variance by formula",
    "error_variance_observed": "variance seen",
}


def row(record: EnsembleRecord) -> dict[str, Any]:
    """An ensemble as one row, by column."""
    metric = record.task.metric
    cells: dict[str, Any] = {
        "task": record.task.name,
        "method": record.method,
        "rule": record.rule,
        "members": len(record.members),
        "train_epochs": record.train_epochs,
        "dev": record.score,
        "held_out": record.interval.value,
        "low": record.interval.low,
        "high": record.interval.high,
        "to_best": record.to_best.value,
        "to_best_low": record.to_best.low,
        "to_best_high": record.to_best.high,
        "to_omni": record.to_omni.value,
        "to_omni_low": record.to_omni.low,
        "to_omni_high": record.to_omni.high,
        "p_best": record.p_best,
        "test": record.test,
        "temperature": record.temperature,
    }
    assert metric in record.dev
    for name in CALIBRATION:
        cells[name] = record.held_out.get(name)
        cells[f"{name}_calibrated"] = record.calibrated.get(name)
    return {name: None if value != value else value for name, value in cells.items()}  # NaN


def to_csv(records: Sequence[EnsembleRecord]) -> str:
    """The rows as CSV with a header."""
    text = io.StringIO()
    writer = csv.writer(text)
    rows = [row(record) for record in records]
    writer.writerow(rows[0])
    writer.writerows(cells.values() for cells in rows)
    return text.getvalue()


def score_table(records: Sequence[EnsembleRecord], recommended: str | None = None) -> Table:
    """Scores of one task's ensembles.

    Args:
        records: The ensembles.
        recommended: Name of the one that is recommended, `<task>-<method>-<rule>`; it is marked.
    """
    first = records[0]
    once = " (greedy_soup: once)" if any(METHODS[r.method].repeats == 1 for r in records) else ""
    p = not all(record.p_best != record.p_best for record in records)
    test = any(record.test is not None for record in records)
    trained = len({_epochs_each(record) for record in records}) > 1
    apart = any(record.apart is not None for record in records)
    pool = f"{first.pool_size} {_kind(first)} to choose from"
    table = _table(
        title=f"{first.task.name}: {first.task.metric}, {pool}",
        columns=[
            *("method", "rule", "members"),
            *(["if refit"] if first.folds else []),
            *(["train epochs"] if trained else []),
            "dev" if first.folds is None else "out of fold",
            *("held out", "minus best", "minus omni"),
            *(["p"] if p else []),
            *(["dev"] if apart else []),
            *(["test"] if test else []),
        ],
        caption=(
            f"{_chosen_on(first)}, so not held out. held out: {REPEATS} x {FOLDS}"
            f" cross-validation{once} of the choice; 95 % intervals from bags in which it is made"
            f" again{_epochs(first)}."
            + (" p: of minus best, adjusted for the rows (Holm)." if p else "")
            + (" train epochs: of its members together." if trained else "")
            + (" if refit: members after --refit." if first.folds else "")
        ),
    )
    if recommended:
        table.caption = f"{table.caption} *: recommended."
    for record in records:
        marked = record.candidate.name(record.task.name) == recommended
        method = f"{record.method} *" if marked else record.method
        cells = [method, record.rule, str(len(record.members))]
        cells += [str(len(record.members) // record.folds)] if record.folds else []
        cells += [_number(record.train_epochs, 0)] if trained else []
        cells += [f"{record.score:.4f}"]
        cells += [_interval(record.interval), _interval(record.to_best, "+")]
        cells += [_interval(record.to_omni, "+")]
        cells += [_number(record.p_best)] if p else []
        cells += [_number(record.apart)] if apart else []
        cells += [_number(record.test)] if test else []
        table.add_row(*cells)
    return table


def calibration_table(records: Sequence[EnsembleRecord]) -> Table | None:
    """How far one task's probabilities can be trusted; None without probabilities."""
    calibrated = [record for record in records if record.calibrated]
    if not calibrated:
        return None
    columns = ["method", "rule", "temperature"]
    for name in CALIBRATION:
        columns += [name.replace("_", " "), "at that T"]
    table = _table(
        title=f"{records[0].task.name}: calibration, held out",
        columns=columns,
        caption="temperature: of all of dev; the folds' own in the columns after.",
    )
    for record in calibrated:
        numbers = [record.temperature]
        for name in CALIBRATION:
            numbers += [record.held_out[name], record.calibrated[name]]
        table.add_row(record.method, record.rule, *(f"{value:.3f}" for value in numbers))
    return table


def diversity_table(records: Sequence[EnsembleRecord]) -> Table | None:
    """How different the members of one task's ensembles are; None where each is a single model."""
    by_method = {r.method: r for r in records if r.size > 1}
    if not by_method:
        return None
    names = list(next(iter(by_method.values())).diversity)
    table = _table(
        title=f"{records[0].task.name}: diversity on dev",
        columns=["method", *(HEADINGS[name] for name in names)],
        caption="by formula: by the paper's.",
    )
    for method, record in by_method.items():
        table.add_row(method, *(_number(record.diversity[name], 3) for name in names))
    return table


def overall_sentences(records: Sequence[EnsembleRecord]) -> Iterable[str]:
    """The paper's overall score of each method with the paper's rules, where the three tasks are
    there.
    """
    for method in dict.fromkeys(record.method for record in records):
        chosen = [
            record
            for record in records
            if (record.method, record.rule) == (method, record.task.label_kind.rules[0])
        ]
        dev = overall({record.task.name: record.score for record in chosen})
        held_out = overall({record.task.name: record.interval.value for record in chosen})
        if dev is not None and held_out is not None:
            yield f"overall, {method}: dev {dev:.4f}, held out {held_out:.4f}"


def _epochs_each(record: EnsembleRecord) -> float | None:
    """Mean epochs that a member was trained: where it is the same for all ensembles, the number of
    members tells their training.
    """
    return None if record.train_epochs is None else record.train_epochs / len(record.members)


def _kind(record: EnsembleRecord) -> str:
    """What was chosen."""
    return "members" if record.folds is None else f"configurations of {record.folds} folds"


def _chosen_on(record: EnsembleRecord) -> str:
    """What the ensemble was chosen on."""
    return "dev: chosen on it" if record.folds is None else "out of fold: chosen on these scores"


def _epochs(record: EnsembleRecord) -> str:
    """What the cross-validation does not repeat."""
    if record.epoch == "last" or record.epochs_chosen:
        return ""
    return "; each member's best epoch was chosen on all of dev (not so with --epoch last)"


def _table(title: str, columns: Sequence[str], caption: str) -> Table:
    table = Table(title=title, caption=caption)
    for column in columns:
        left = column in ("method", "rule")
        table.add_column(column, justify="left" if left else "right", no_wrap=left)
    return table


def _number(value: float | None, digits: int = 4) -> str:
    return "" if value is None or value != value else f"{value:.{digits}f}"


def _interval(interval: Interval, sign: str = "") -> str:
    return f"{interval.value:{sign}.4f} [{interval.low:{sign}.3f}, {interval.high:{sign}.3f}]"
