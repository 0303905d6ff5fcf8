"""The report's tables of scores, and the sentence that says what won."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loraens.ensemble.pool import metric
from loraens.ensemble.select import SOUPS
from loraens.ensemble.significance import Interval
from loraens.metrics import overall
from loraens.report.content import MODES, Content
from loraens.report.sections import Rows
from loraens.tasks import LOWER_IS_BETTER

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
    "omni": "Omni-LoRA: all members",
    "dicor": "DiCor-LoRA: accurate, then unlike",
}
COLUMNS = (
    "model",
    "rule",
    "members",
    "dev (chosen on)",
    "cross-validated [95 %]",
    "minus best [95 %]",
    "test",
)


def scores(content: Content) -> Rows:
    """Tables 1 and 2 for one task: baselines, the best member and the ensembles."""
    name = content.task.name
    task = content.task
    columns = [*COLUMNS, f"{PAPER} dev", f"{PAPER} test"]

    def paper(row: str) -> list[float | None]:
        return [table.get(row, {}).get(name) for table in (PAPER_DEV, PAPER_TEST)]

    rows: list[list[Any]] = []
    for mode in MODES:
        size = 1 if mode in content.baselines else None
        rows.append(
            [NAMES[mode], None, size, content.baselines.get(mode), None, None, None, *paper(mode)]
        )
    entries = content.paper()
    if not any(entry["method"] == "best" for entry in entries):
        pool = content.found.dev
        dev = metric(task, task.metric, pool.outcome(int(pool.order[0])), pool.labels)
        rows.append([NAMES["best"], None, 1, dev, None, None, content.test, *paper("best")])
    for entry in entries:
        method = entry["method"]
        size = 1 if entry["method"] in SOUPS else len(entry["members"])
        to_best = None if method == "best" else Interval(**entry["to_best"])
        row = [
            NAMES.get(method, method),
            entry["rule"],
            size,
            entry["dev"][task.metric],
            Interval(**entry["interval"]),
            to_best,
        ]
        rows.append([*row, entry["test"], *paper(method)])
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
    place = columns.index("test")
    if all(row[place] is None for row in rows):
        caption += " Test has no labels here, so there is no column for it."
        for cells in (columns, *rows):
            del cells[place]
    return Rows("Scores", caption, columns, rows)


def overall_scores(contents: Mapping[str, Content]) -> Rows | None:
    """The paper's overall score of each row that all three tasks have; None without the three
    tasks.
    """
    if not {"sst", "quora", "sts"} <= contents.keys():
        return None
    rows: list[list[Any]] = []
    for method in (
        "frozen",
        "full",
        *dict.fromkeys(e["method"] for c in contents.values() for e in c.paper()),
    ):
        parts: list[dict[str, float]] = [{}, {}, {}]
        for name, content in contents.items():
            if method in MODES:
                if method in content.baselines:
                    parts[0][name] = content.baselines[method]
                continue
            for entry in (entry for entry in content.paper() if entry["method"] == method):
                found = entry["dev"][content.task.metric], entry["interval"]["value"], entry["test"]
                for part, value in zip(parts, found, strict=True):
                    if value is not None:
                        part[name] = value
        values = [overall(part) for part in parts]
        if any(value is not None for value in values):
            known = [table.get(method, {}).get("overall") for table in (PAPER_DEV, PAPER_TEST)]
            rows.append([NAMES.get(method, method), *values, *known])
    columns = [
        "model",
        "dev (chosen on)",
        "cross-validated",
        "test",
        f"{PAPER} dev",
        f"{PAPER} test",
    ]
    backbones = ", ".join(dict.fromkeys(content.backbone for content in contents.values()))
    caption = (
        "(SST accuracy + Quora accuracy + (1 + STS Pearson) / 2) / 3; the paper's are BERT-base,"
        f" others {backbones}."
    )
    if all(row[3] is None for row in rows):
        caption += " Test has no labels here for all three, so there is no column for it."
        for cells in (columns, *rows):
            del cells[3]
    return Rows("Overall score", caption, columns, rows)


def verdict(content: Content) -> str:
    """One sentence: what won, and whether the interval of the difference excludes zero."""
    task = content.task
    winner = content.winner()
    if winner is None:
        best = content.found.dev.names[int(content.found.dev.order[0])]
        return (
            f"{task.name}: no ensemble was made yet; the best of {len(content.found.dev)} members"
            f" on dev is {best}."
        )
    value = winner["interval"]
    gap = winner["to_best"]
    excludes = gap["low"] > 0 or gap["high"] < 0
    size = len(winner["members"])
    lower = "lowest" if task.metric in LOWER_IS_BETTER else "highest"
    held, against = (
        f"[{found['low']:{sign}.4f}, {found['high']:{sign}.4f}]"
        for found, sign in ((value, ""), (gap, "+"))
    )
    return (
        f"{task.name}: {winner['method']} ({winner['rule']}, {size} of {winner['pool_size']}"
        f" members) has the {lower} cross-validated {content.metric} of {len(content.paper())}"
        f" models, {value['value']:.4f} {held}; against the best single member that is"
        f" {gap['value']:+.4f} {against}, an interval that"
        f" {'excludes' if excludes else 'does not exclude'} zero."
    )
