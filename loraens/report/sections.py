"""The sections of a report on one task: tables, pictures, or a sentence that says why one is
missing.

Shape letters: M members, N examples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from loraens.ensemble.combine import rules
from loraens.ensemble.diversity import similarity
from loraens.ensemble.prove import Candidate, prove
from loraens.ensemble.select import SOUPS, Options
from loraens.report import figures
from loraens.report.content import Content
from loraens.report.embeddings import embeddings, low_and_high, tsne

LINES = ("random", "topk", "dicor")
Advance = Callable[[], Any]
Texts = list[tuple[str, ...]]


@dataclass
class Picture:
    """A figure with a name for its file, what it shows, and what it says to who cannot see it."""

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


def _upper(words: str) -> str:
    return words[:1].upper() + words[1:]


def likeness(content: Content) -> tuple[str, np.ndarray]:
    """Name of the paper's measure for the task, and how alike members are `(M, M)`."""
    name = "pearson" if content.task.kind == "number" else "cosine"
    label = (
        "Pearson's r of predictions" if name == "pearson" else "cosine similarity of predictions"
    )
    return label, similarity(content.found.dev, name)


def heatmap(content: Content) -> Section:
    """Figure 1."""
    title = "How alike members are"
    pool = content.found.dev
    if len(pool) < 2:
        return Missing(title, "there is one member only")
    label, alike = likeness(content)
    order = figures.cluster_order(alike)
    sides = {"rank": pool.ranks, "scale": np.array([member["scale"] for member in content.members])}
    mean = alike[~np.eye(len(pool), dtype=bool)].mean()
    caption = (
        f"{_upper(label)} on dev of each pair of {len(pool)} members, mean {mean:.3f}; like ones"
        " lie together."
    )
    drawn = figures.heatmap(alike, order, pool.names, sides, label)
    return Picture("likeness", title, caption, f"Clustered heatmap. {caption}", drawn)


def diversity(content: Content) -> Section:
    """Diversity against rank and scale."""
    title = "Diversity against rank and scale"
    settings = {
        name: np.array([member[name] for member in content.members]) for name in ("rank", "scale")
    }
    varied = {name: values for name, values in settings.items() if len(np.unique(values)) > 1}
    if not varied:
        return Missing(title, "all members have the same rank and scale")
    label, alike = likeness(content)
    others = (alike.sum(axis=1) - 1) / (len(alike) - 1)
    least = content.found.dev.names[int(others.argmin())]
    caption = (
        f"Mean likeness of each member to all others ({label}); lines are means. The least alike"
        f" member is {least}."
    )
    drawn = figures.alikeness(others, varied, "mean likeness to the others")
    return Picture("diversity", title, caption, f"Points for each member. {caption}", drawn)


def scores(content: Content) -> Section:
    """Figure 3."""
    title = "Score against rank and scale"
    ranks, scales = (
        np.array([member[name] for member in content.members]) for name in ("rank", "scale")
    )
    if len(np.unique(ranks)) < 2:
        return Missing(title, "all members have the same rank")
    chosen = {"best": [int(content.found.dev.order[0])]}
    winner = content.winner()
    dicor = next((entry for entry in content.paper() if entry["method"] == "dicor"), winner)
    if dicor is not None:
        chosen[dicor["method"]] = content.chosen(dicor)
    cells = {(rank, scale) for rank, scale in zip(ranks.tolist(), scales.tolist(), strict=True)}
    band = "the band is all members of one rank and scale (seeds, learning rates)"
    one = "one member for each rank and scale, so there is no band"
    caption = (
        f"{_upper(content.metric)} on dev, a line for each scale;"
        f" {one if len(cells) == len(ranks) else band}. Marked:"
        f" {', '.join(f'{name} ({len(members)})' for name, members in chosen.items())}."
    )
    drawn = figures.scores(ranks, scales, content.dev, chosen, f"{content.metric} on dev")
    return Picture("scores", title, caption, f"Line chart. {caption}", drawn)


def maps(content: Content, texts: Texts) -> Section:
    """Figure 4."""
    title = "Embeddings of low and high rank"
    members = low_and_high(content.found)
    pool = content.found.dev
    if len(members) < 2:
        return Missing(title, "all members have the same rank")
    found = [
        tsne(features) for features in embeddings(content.found, members, texts, content.which)
    ]
    rows = found[0][0]
    panels = {
        f"rank {pool.ranks[member]} ({pool.names[member]})": places
        for member, (_, places) in zip(members, found, strict=True)
    }
    caption = (
        f"t-SNE of what the head reads, {len(rows):,} examples of dev, by label; best member of the"
        " lowest and highest rank."
    )
    drawn = figures.embedding_maps(panels, pool.labels[rows], content.task.class_names)
    return Picture("embeddings", title, caption, f"Two scatter plots. {caption}", drawn)


def frontier(content: Content, advance: Advance = lambda: None) -> Section:
    """Score against number of members."""
    title = "Score against number of members"
    pool = content.found.dev
    rule = rules(content.task)[0]
    if len(pool) < 3:
        return Missing(title, f"there are {len(pool)} members only")
    sizes = range(1, min(11, len(pool)) + 1)
    asked = [Candidate(method, rule, Options(size=size)) for method in LINES for size in sizes]
    needed = [Candidate(method, rule, Options()) for method in ("best", "omni")]
    proofs = prove(pool, [*needed, *asked], advance)[2:]
    values = [(proof.interval.value, proof.interval.low, proof.interval.high) for proof in proofs]
    rows = np.column_stack([list(sizes) * len(LINES), values]).reshape(len(LINES), len(sizes), 4)
    points = {
        entry["method"]: np.array(
            [len(entry["members"]), *(entry["interval"][key] for key in ("value", "low", "high"))]
        )
        for entry in content.paper()
        if entry["method"] not in LINES
    }
    caption = (
        f"Cross-validated {content.metric} with 95 % intervals: lines are methods that were told"
        " the number of members, points are the others. Merged soups cost one member, whatever the"
        " number."
    )
    for method in points.keys() & SOUPS.keys():
        points[method][0] = 1
    drawn = figures.frontier(
        dict(zip(LINES, rows, strict=True)), points, f"{content.metric}, cross-validated"
    )
    return Picture("frontier", title, caption, f"Line chart. {caption}", drawn)


def reliability(content: Content) -> Section:
    """Calibration before and after temperature scaling, held out."""
    title = "Calibration"
    if content.task.kind == "number":
        return Missing(title, "the task predicts a number, not classes")
    entry = next(
        (
            entry
            for entry in content.entries
            if entry["method"] == "omni" and entry["rule"] == "probs"
        ),
        None,
    )
    if entry is None:
        return Missing(
            title,
            "there is no ensemble `omni` with the rule `probs`: make it with `loraens ensemble`",
        )
    held = content.held_out(entry)
    labels = content.found.dev.labels
    panels = {}
    errors = []
    for when, cooled in (("before", False), ("after", True)):
        shares = held.outcome(0, cooled).probabilities
        assert shares is not None
        panels[f"{when} temperature scaling"] = (
            shares.max(axis=1),
            (shares.argmax(axis=1) == labels).astype(float),
        )
        errors.append((entry["calibrated"] if cooled else entry["held_out"])["calibration_error"])
    caption = (
        "Mean probability of all members (omni, probs), each example scored by folds that did not"
        f" see it; the dotted line is perfect. Expected calibration error {errors[0]:.3f} before"
        f" and {errors[1]:.3f} after."
    )
    drawn = figures.reliability(panels)
    return Picture("calibration", title, caption, f"Reliability diagrams. {caption}", drawn)


def outcomes(content: Content) -> Section:
    """What the winner says against the labels, held out."""
    title = "Predictions against labels"
    winner = content.winner()
    pool = content.found.dev
    if winner is None or winner["method"] in SOUPS:
        winner = next((entry for entry in content.paper() if entry["method"] == "omni"), None)
    if winner is None:
        return Missing(title, "there are no ensembles: make them with `loraens ensemble`")
    predicted = content.held_out(winner).predictions[0]
    caption = (
        f"What {winner['method']} ({winner['rule']}) says of examples of dev that it was not"
        " chosen on."
    )
    if content.task.kind == "number":
        drawn = figures.against_labels(pool.labels, predicted)
        return Picture("outcomes", title, caption, f"Scatter plot. {caption}", drawn)
    size = len(content.task.class_names)
    counts = np.zeros((size, size), int)
    np.add.at(counts, (pool.labels.astype(int), predicted.astype(int)), 1)
    drawn = figures.confusion(counts, content.task.class_names)
    return Picture("outcomes", title, caption, f"Confusion matrix. {caption}", drawn)


def curves(content: Content) -> Section:
    """Training curves."""
    metric = content.task.metric
    name = content.task.name
    histories = []
    for manifest in content.found.manifests:
        rows = [
            (e["epoch"], e["train_loss"], e["dev"][name][metric])
            for e in manifest.get("history", [])
        ]
        table = np.array(rows, dtype=float).reshape(-1, 3)
        histories.append((table[:, 0], table[:, 1], table[:, 2]))
    if max(len(epochs) for epochs, _, _ in histories) < 2:
        return Missing("Training curves", "members were trained for one epoch only")
    caption = (
        f"Mean training loss and {content.metric} on dev after each epoch, a line for each member."
    )
    drawn = figures.curves(histories, content.found.dev.ranks, f"{content.metric} on dev")
    return Picture("curves", "Training curves", caption, f"Line charts. {caption}", drawn)


def gains(content: Content) -> Section:
    """The paper's formula beside what was observed."""
    title = "What joining gives, by the paper's formula and observed"
    kind = "error_variance" if content.task.kind == "number" else "vote_error"
    several = [e for e in content.paper() if len(e["members"]) > 1 and e["method"] not in SOUPS]
    if not several:
        return Missing(
            title, "there are no ensembles of several members: make them with `loraens ensemble`"
        )
    names = [f"{entry['method']} ({len(entry['members'])})" for entry in several]
    predicted, observed = (
        [e["diversity"][f"{kind}_{what}"] for e in several] for what in ("predicted", "observed")
    )
    label = "variance of the mean's error" if kind == "error_variance" else "error of the vote"
    caption = (
        f"{_upper(label)} on dev, each ensemble's members with equal weights; the formula takes"
        " their mean error and the mean correlation of their errors."
    )
    drawn = figures.gains(names, predicted, observed, label)
    return Picture("gains", title, caption, f"Dot plot. {caption}", drawn)


def hardest(content: Content, texts: Texts, count: int = 8) -> Iterator[Section]:
    """Where members disagree most, and where all are wrong."""
    task = content.task
    pool = content.found.dev
    columns = [*task.text_columns, "label"]
    if task.kind == "number":
        spread = pool.predictions.std(axis=0)
        errors = np.abs(pool.predictions - pool.labels).min(axis=0)
        said = [
            f"{low:.2f} to {high:.2f}"
            for low, high in zip(
                pool.predictions.min(axis=0), pool.predictions.max(axis=0), strict=True
            )
        ]
        labels = [f"{value:g}" for value in pool.labels]
    else:
        votes = np.stack(
            [(pool.predictions == number).mean(axis=0) for number in range(len(task.class_names))],
            axis=1,
        )
        spread = -(votes * np.log(np.maximum(votes, 1e-12))).sum(axis=1)
        wrong = (pool.predictions != pool.labels).all(axis=0)
        errors = np.where(wrong, pool.probabilities.mean(axis=0).max(axis=1), 0.0)
        shown = [
            [(share, name) for share, name in zip(row, task.class_names, strict=True) if share]
            for row in votes
        ]
        said = [
            ", ".join(f"{name} {share:.0%}" for share, name in sorted(row, reverse=True))
            for row in shown
        ]
        labels = [task.class_names[int(value)] for value in pool.labels]
    parts = (
        (
            "Where members disagree most",
            spread,
            "spread" if task.kind == "number" else "vote entropy (nats)",
        ),
        (
            "Where all are wrong",
            errors,
            "least error" if task.kind == "number" else "mean confidence",
        ),
    )
    for title, values, name in parts:
        rows = [
            [*texts[row], labels[row], said[row], float(values[row])]
            for row in np.argsort(-values, kind="stable")[:count]
        ]
        kept = [row for row in rows if row[-1] > 0]
        if kept:
            yield Rows(
                title, f"Examples of dev, by {name}.", [*columns, "members say", name], kept, 3
            )
        else:
            yield Missing(title, "there is no such example on dev")
