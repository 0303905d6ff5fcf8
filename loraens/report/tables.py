"""The report's tables of scores, and the sentence that says what won.

Shape letters: N examples, K labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from loraens.metrics import f1_of_labels, overall
from loraens.report.content import MODES, Content
from loraens.report.elements import Rows
from loraens.tasks import Task

PAPER = "paper (BERT-base)"
# Tables 1 (dev) and 2 (test) of the paper: row -> task -> score
PAPER_DEV = {
    "frozen": {"sst": 0.395, "quora": 0.697, "sts": 0.526, "overall": 0.618},
    "full": {"sst": 0.543, "quora": 0.883, "sts": 0.884, "overall": 0.789},
    "best": {"sst": 0.540, "quora": 0.898, "sts": 0.872, "overall": 0.791},
    "omni": {"sst": 0.530, "quora": 0.905, "sts": 0.874, "overall": 0.791},
    "dicor": {"sst": 0.544, "quora": 0.905, "sts": 0.885, "overall": 0.797},
}
PAPER_TEST = {"dicor": {"sst": 0.550, "quora": 0.904, "sts": 0.882, "overall": 0.798}}
NAMES = {
    **MODES,
    "best": "best single LoRA member",
    "longest": "best of the members trained longest",
    "omni": "Omni-LoRA: all members",
    "dicor": "DiCor-LoRA: accurate, then unlike",
}
COLUMNS = (
    "model",
    "rule",
    "members",
    "train epochs",
    "dev (chosen on)",
    "cross-validated [95 %]",
    "minus best [95 %]",
    "test",
)


def scores(content: Content) -> Rows:
    """Tables 1 and 2 for one task: baselines, the best member and the ensembles."""
    task = content.task
    columns = [*COLUMNS, f"{PAPER} dev", f"{PAPER} test"]
    rows: list[list[Any]] = []
    for mode in MODES:
        dev = content.baselines.get(mode)
        size = None if dev is None else 1
        rows.append(
            [NAMES[mode], None, size, None, dev, None, None, None, *_of_paper(task.name, mode)]
        )
    records = content.paper()
    if not any(record.method == "best" for record in records):
        best = content.dev[int(content.members.dev.order[0])]
        paper = _of_paper(task.name, "best")
        rows.append([NAMES["best"], None, 1, None, best, None, None, content.test, *paper])
    for record in records:
        name = NAMES.get(record.method, record.method)
        to_best = None if record.method == "best" else record.to_best
        row = [name, record.rule, record.size, record.train_epochs]
        row += [record.score, record.interval, to_best]
        rows.append([*row, record.test, *_of_paper(task.name, record.method)])
    caption = (
        f"{content.metric[:1].upper()}{content.metric[1:]}; backbone of all but the last two"
        f" columns: {content.backbone}. Dev is what the choice was made on; cross-validated scores"
        " are of examples that the choice did not see. The best of many rows is a little lucky."
    )
    missing = [NAMES[mode] for mode in MODES if mode not in content.baselines]
    if missing:
        caption += (
            f" Not trained here: {', '.join(missing)} (`loraens fit` with configs/frozen.yaml or"
            " configs/full.yaml)."
        )
    if _without_empty(columns, rows, "test"):
        caption += " Test has no labels here, so there is no column for it."
    _without_empty(columns, rows, "train epochs")
    return Rows("Scores", caption, columns, rows)


def adapters(content: Content) -> Rows | None:
    """Scores of the members by adapter kind, targets and ratio of learning rates; None where these
    are the same for all.
    """
    members: dict[tuple[Any, ...], list[int]] = {}
    for index, manifest in enumerate(content.members.manifests):
        settings, ratio = manifest.settings, manifest.member.loraplus_lr_ratio
        if settings.mode == "lora":
            kind = settings.adapter, ", ".join(settings.targets), f"{ratio:g}"
            members.setdefault(kind, []).append(index)
    if len(members) < 2:
        return None
    sign = 1 if content.task.main_metric.higher_is_better else -1
    rows = []
    for kind, indices in members.items():
        dev = content.dev[indices]
        numbers = [content.members.manifests[index].trainable_parameters for index in indices]
        most = None if None in numbers else max(filter(None, numbers))
        rows.append([*kind, len(indices), sign * (sign * dev).max(), dev.mean(), most])
    caption = f"{content.metric[:1].upper()}{content.metric[1:]} of members on dev, chosen on it."
    columns = ["adapter", "targets", "rate of B by A", "members", "best", "mean", "most parameters"]
    return Rows("Adapter kinds and targets", caption, columns, rows)


def _of_paper(task: str, row: str) -> list[float | None]:
    """The paper's scores of a row on dev and test."""
    return [table.get(row, {}).get(task) for table in (PAPER_DEV, PAPER_TEST)]


def _without_empty(columns: list[str], rows: list[list[Any]], name: str) -> bool:
    """Remove a column if it is empty; whether it was."""
    index = columns.index(name)
    empty = all(row[index] is None for row in rows)
    if empty:
        for cells in (columns, *rows):
            del cells[index]
    return empty


def overall_scores(contents: Mapping[str, Content]) -> Rows | None:
    """The paper's overall score of each row that all three tasks have; None without the three
    tasks.
    """
    if not {"sst", "quora", "sts"} <= contents.keys():
        return None
    methods: dict[str, None] = dict.fromkeys(MODES)
    for content in contents.values():
        methods.update(dict.fromkeys(record.method for record in content.paper()))
    rows: list[list[Any]] = []
    for method in methods:
        values = _overall_values(contents, method)
        if any(value is not None for value in values):
            rows.append([NAMES.get(method, method), *values, *_of_paper("overall", method)])
    columns = [
        *("model", "dev (chosen on)", "cross-validated", "test"),
        f"{PAPER} dev",
        f"{PAPER} test",
    ]
    backbones = ", ".join(dict.fromkeys(content.backbone for content in contents.values()))
    caption = (
        "(SST accuracy + Quora accuracy + (1 + STS Pearson) / 2) / 3; the paper's are BERT-base,"
        f" others {backbones}."
    )
    if _without_empty(columns, rows, "test"):
        caption += " Test has no labels here for all three, so there is no column for it."
    return Rows("Overall score", caption, columns, rows)


def _overall_values(contents: Mapping[str, Content], method: str) -> list[float | None]:
    """Overall score of a mode or method on dev, cross-validated, and on test."""
    dev: dict[str, float] = {}
    held_out: dict[str, float] = {}
    test: dict[str, float] = {}
    for name, content in contents.items():
        if method in content.baselines:
            dev[name] = content.baselines[method]
        for record in content.paper():
            if record.method == method:
                dev[name] = record.score
                held_out[name] = record.interval.value
                if record.test is not None:
                    test[name] = record.test
    return [overall(scores) for scores in (dev, held_out, test)]


def by_label(
    title: str, caption: str, task: Task, labels: np.ndarray, predicted: np.ndarray
) -> Rows:
    """How often each label is there, predicted and both, `(N, K)`."""
    there = labels.sum(axis=0).astype(int).tolist()
    given = predicted.sum(axis=0).astype(int).tolist()
    both = (labels * predicted).sum(axis=0).astype(int).tolist()
    rows: list[list[Any]] = []
    for name, *counts, f1 in zip(
        task.class_names, there, given, both, f1_of_labels(predicted, labels).tolist(), strict=True
    ):
        precision = counts[2] / counts[1] if counts[1] else None
        recall = counts[2] / counts[0] if counts[0] else None
        rows.append([name, *counts, precision, recall, None if np.isnan(f1) else f1])
    columns = ["label", "there", "predicted", "both", "precision", "recall", "F1"]
    return Rows(title, f"{caption} Thresholds were chosen without them, too.", columns, rows)


def verdict(content: Content) -> str:
    """One sentence: what is recommended; in runs without that, what won, and whether it is proved
    to beat the best member.
    """
    if content.recommended is not None:
        return content.recommended.sentence
    task = content.task
    winner = content.winner()
    if winner is None:
        names = content.members.dev.names
        best = names[int(content.members.dev.order[0])]
        return (
            f"{task.name}: no ensemble was made yet; the best of {len(names)} members on dev is"
            f" {best}."
        )
    count = len(content.several())
    ensembles = "1 ensemble" if count == 1 else f"{count} ensembles"
    score = winner.interval
    gain = winner.to_best
    proof = "a proved gain" if gain.low > 0 else "no proof that it beats it: deploy that alone"
    end = "highest" if task.main_metric.higher_is_better else "lowest"
    return (
        f"{task.name}: {winner.method} ({winner.rule}, {len(winner.members)} of"
        f" {winner.pool_size} members) has the {end} cross-validated {content.metric} of"
        f" {ensembles}, {score.value:.4f} [{score.low:.4f}, {score.high:.4f}];"
        f" against the best single member that is {gain.value:+.4f} [{gain.low:+.4f},"
        f" {gain.high:+.4f}], {proof}."
    )
