"""The sections of a report on one task: tables, pictures, or a sentence that says why one is
missing.

Shape letters: M members, N examples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from loraens.ensemble.cross_validation import Advance, Candidate
from loraens.ensemble.diversity import similarity
from loraens.ensemble.options import Options
from loraens.ensemble.prove import prove
from loraens.ensemble.record import EnsembleRecord
from loraens.metrics import confidences
from loraens.report import diagnostics, figures, tables
from loraens.report.content import Content
from loraens.report.elements import Missing, Picture, Rows, Section
from loraens.report.embeddings import embeddings, low_and_high, tsne

LINES = ("random", "topk", "dicor")
Texts = list[tuple[str, ...]]


def _upper(words: str) -> str:
    return words[:1].upper() + words[1:]


def similarities(content: Content) -> tuple[str, np.ndarray]:
    """Name of the paper's measure for the task, and similarities of members `(M, M)`."""
    name = content.task.label_kind.similarity
    titles = {"pearson": "Pearson's r", "cosine": "cosine similarity"}
    label = f"{titles.get(name, name)} of predictions"
    return label, similarity(content.members.dev, name)


def heatmap(content: Content) -> Section:
    """Figure 1."""
    title = "Similarity of members"
    pool = content.members.dev
    if len(pool) < 2:
        return Missing(title, "there is one member only")
    label, matrix = similarities(content)
    order = figures.cluster_order(matrix)
    scales = np.array([member.scale for member in content.settings])
    mean = matrix[~np.eye(len(pool), dtype=bool)].mean()
    caption = (
        f"{_upper(label)} on dev of each pair of {len(pool)} members, mean {mean:.3f}; similar"
        " members are next to each other."
    )
    sides = {"rank": pool.ranks, "scale": scales}
    drawn = figures.heatmap(
        matrix=matrix,
        order=order,
        names=pool.names,
        sides=sides,
        label=label,
    )
    return Picture(
        name="similarity",
        title=title,
        caption=caption,
        alt=f"Clustered heatmap. {caption}",
        drawn=drawn,
    )


def diversity(content: Content) -> Section:
    """Diversity against rank and scale."""
    title = "Diversity against rank and scale"
    settings = {
        name: np.array([getattr(member, name) for member in content.settings])
        for name in ("rank", "scale")
    }
    varied = {name: values for name, values in settings.items() if len(np.unique(values)) > 1}
    if not varied:
        return Missing(title, "all members have the same rank and scale")
    label, matrix = similarities(content)
    means = (matrix.sum(axis=1) - 1) / (len(matrix) - 1)
    least = content.members.dev.names[int(means.argmin())]
    caption = (
        f"Mean similarity of each member to all others ({label}); lines are means. The least"
        f" similar member is {least}."
    )
    drawn = figures.mean_similarities(means, varied, "mean similarity to the others")
    return Picture(
        name="diversity",
        title=title,
        caption=caption,
        alt=f"Points for each member. {caption}",
        drawn=drawn,
    )


def scores(content: Content) -> Section:
    """Figure 3."""
    title = "Score against rank and scale"
    ranks = np.array([member.rank for member in content.settings])
    scales = np.array([member.scale for member in content.settings])
    if len(np.unique(ranks)) < 2:
        return Missing(title, "all members have the same rank")
    marked = {"best": [int(content.members.dev.order[0])]}
    dicor = _first(content.paper(), "dicor") or content.winner()
    if dicor is not None:
        marked[dicor.method] = content.indices(dicor)
    points = set(zip(ranks.tolist(), scales.tolist(), strict=True))
    band = "the band is all members of one rank and scale (seeds, learning rates)"
    if len(points) == len(ranks):
        band = "one member for each rank and scale, so there is no band"
    names = ", ".join(f"{name} ({len(members)})" for name, members in marked.items())
    caption = f"{_upper(content.metric)} on dev, a line for each scale; {band}. Marked: {names}."
    drawn = figures.scores(
        ranks=ranks,
        scales=scales,
        values=content.dev,
        chosen=marked,
        label=f"{content.metric} on dev",
    )
    return Picture(
        name="scores",
        title=title,
        caption=caption,
        alt=f"Line chart. {caption}",
        drawn=drawn,
    )


def _first(
    records: Sequence[EnsembleRecord], method: str, rule: str | None = None
) -> EnsembleRecord | None:
    """The first ensemble of a method, and of a rule where one is given."""
    matches = (r for r in records if r.method == method and rule in (None, r.rule))
    return next(matches, None)


def maps(content: Content, texts: Texts) -> Section:
    """Figure 4."""
    title = "Embeddings of low and high rank"
    chosen = low_and_high(content.members)
    pool = content.members.dev
    if len(chosen) < 2:
        return Missing(title, "all members have the same rank")
    mapped = [tsne(features) for features in embeddings(content.members, chosen, texts)]
    indices = mapped[0][0]
    panels = {
        f"rank {pool.ranks[member]} ({pool.names[member]})": coordinates
        for member, (_, coordinates) in zip(chosen, mapped, strict=True)
    }
    strata = pool.kind.strata(pool.labels)
    names = content.task.class_names
    if strata is not None and strata.max() == len(names):
        names = (*names, "none")
    colours = pool.labels if strata is None else strata
    by = "label" if pool.labels.ndim == 1 else "rarest label"
    caption = (
        f"t-SNE of the pooled features, {len(indices):,} examples of dev, by {by}; best member of"
        " the lowest and highest rank."
    )
    drawn = figures.embedding_maps(panels, colours[indices], names)
    return Picture(
        name="embeddings",
        title=title,
        caption=caption,
        alt=f"Two scatter plots. {caption}",
        drawn=drawn,
    )


def frontier(content: Content, advance: Advance = lambda: None) -> Section:
    """Score against number of members."""
    title = "Score against number of members"
    pool = content.members.dev
    rule = content.task.label_kind.rules[0]
    if len(pool) < 3:
        return Missing(title, f"there are {len(pool)} members only")
    sizes = range(1, min(11, len(pool)) + 1)
    sized = [Candidate(method, rule, Options(size=size)) for method in LINES for size in sizes]
    references = [Candidate(method, rule, Options()) for method in ("best", "omni")]
    proofs = prove(pool, [*references, *sized], advance)[len(references) :]
    values = [(proof.interval.value, proof.interval.low, proof.interval.high) for proof in proofs]
    lines = np.column_stack([list(sizes) * len(LINES), values]).reshape(len(LINES), len(sizes), 4)
    points = {}
    for record in content.paper():
        if record.method not in LINES:
            interval = record.interval
            point = [record.size, interval.value, interval.low, interval.high]
            points[record.method] = np.array(point)
    caption = (
        f"Cross-validated {content.metric} with 95 % intervals: lines are methods with a given"
        " number of members, points are the others. Merged soups cost one member, whatever the"
        " number."
    )
    by_method = dict(zip(LINES, lines, strict=True))
    drawn = figures.frontier(by_method, points, f"{content.metric}, cross-validated")
    return Picture(
        name="frontier",
        title=title,
        caption=caption,
        alt=f"Line chart. {caption}",
        drawn=drawn,
    )


def reliability(content: Content) -> Section:
    """Calibration before and after temperature scaling, held out."""
    title = "Calibration"
    if not content.task.label_kind.categorical:
        return Missing(title, "the task predicts a number, not classes")
    record = _first(content.ensembles, "omni", "probs")
    if record is None:
        return Missing(
            title,
            "there is no ensemble `omni` with the rule `probs`: make it with `loraens ensemble`",
        )
    held_out = content.held_out(record)
    labels = content.members.dev.labels
    panels = {}
    for when in ("before", "after"):
        probabilities = held_out.outcome(0, calibrated=when == "after").probabilities
        assert probabilities is not None
        confidence, correct = confidences(probabilities, labels)
        panels[f"{when} temperature scaling"] = confidence, correct.astype(float)
    before = record.held_out["calibration_error"]
    after = record.calibrated["calibration_error"]
    caption = (
        "Mean probability of all members (omni, probs), each example scored by folds that did not"
        " see it; the dotted line is perfect. Expected calibration error"
        f" {before:.3f} before and {after:.3f} after."
    )
    drawn = diagnostics.reliability(panels)
    return Picture(
        name="calibration",
        title=title,
        caption=caption,
        alt=f"Reliability diagrams. {caption}",
        drawn=drawn,
    )


def outcomes(content: Content) -> Section:
    """Predictions of the winner against the labels, held out."""
    title = "Predictions against labels"
    winner = content.winner()
    labels = content.members.dev.labels
    if winner is None or winner.rule == "merged":
        winner = _first(content.paper(), "omni")
    if winner is None:
        return Missing(title, "there are no ensembles: make them with `loraens ensemble`")
    predicted = content.held_out(winner).predictions[0]
    caption = (
        f"Predictions of {winner.method} ({winner.rule}) for examples of dev that it was not chosen"
        " on."
    )
    if labels.ndim == 2:
        return tables.by_label(title, caption, content.task, labels, predicted)
    if not content.task.label_kind.categorical:
        drawn = diagnostics.against_labels(labels, predicted)
        return Picture(
            name="outcomes",
            title=title,
            caption=caption,
            alt=f"Scatter plot. {caption}",
            drawn=drawn,
        )
    size = len(content.task.class_names)
    counts = np.zeros((size, size), int)
    np.add.at(counts, (labels.astype(int), predicted.astype(int)), 1)
    drawn = diagnostics.confusion(counts, content.task.class_names)
    return Picture(
        name="outcomes",
        title=title,
        caption=caption,
        alt=f"Confusion matrix. {caption}",
        drawn=drawn,
    )


def curves(content: Content) -> Section:
    """Training curves."""
    metric = content.task.metric
    name = content.task.name
    histories = []
    for manifest in content.members.manifests:
        rows = [(e.epoch, e.train_loss, e.dev[name][metric]) for e in manifest.history]
        table = np.array(rows, dtype=float).reshape(-1, 3)
        histories.append((table[:, 0], table[:, 1], table[:, 2]))
    if max(len(epochs) for epochs, _, _ in histories) < 2:
        return Missing("Training curves", "members were trained for one epoch only")
    caption = (
        f"Mean training loss and {content.metric} on dev after each epoch, a line for each member."
    )
    drawn = diagnostics.curves(histories, content.members.dev.ranks, f"{content.metric} on dev")
    return Picture(
        name="curves",
        title="Training curves",
        caption=caption,
        alt=f"Line charts. {caption}",
        drawn=drawn,
    )


def gains(content: Content) -> Section:
    """The paper's formula beside what was observed."""
    title = "Gain of combining, by the paper's formula and observed"
    several = [record for record in content.paper() if record.size > 1]
    if not several:
        return Missing(
            title, "there are no ensembles of several members: make them with `loraens ensemble`"
        )
    measure = "error_variance"
    label = "variance of the mean's error"
    if content.task.label_kind.categorical:
        measure = "vote_error"
        label = "error of the vote"
    names = [f"{record.method} ({record.size})" for record in several]
    predicted = [record.diversity[f"{measure}_predicted"] for record in several]
    observed = [record.diversity[f"{measure}_observed"] for record in several]
    caption = (
        f"{_upper(label)} on dev, each ensemble's members with equal weights; the formula takes"
        " their mean error and the mean correlation of their errors."
    )
    drawn = diagnostics.gains(names, predicted, observed, label)
    return Picture(
        name="gains",
        title=title,
        caption=caption,
        alt=f"Dot plot. {caption}",
        drawn=drawn,
    )


def hardest(content: Content, texts: Texts, count: int = 8) -> Iterator[Section]:
    """Where members disagree most, and where all are wrong."""
    task = content.task
    pool = content.members.dev
    kind = task.label_kind
    predictions = kind.describe(task, pool.predictions)
    labels = [task.label_text(value) for value in pool.labels]
    common_error = kind.common_error(pool.predictions, pool.probabilities, pool.labels)
    parts = (
        ("Where members disagree most", kind.disagreement(task, pool.predictions)),
        ("Where all are wrong", common_error),
    )
    for title, (name, values) in parts:
        indices = [i for i in np.argsort(-values, kind="stable")[:count] if values[i] > 0]
        if not indices:
            yield Missing(title, "there is no such example on dev")
            continue
        rows = [[*texts[i], labels[i], predictions[i], float(values[i])] for i in indices]
        columns = [*task.text_columns, "label", "members predict", name]
        yield Rows(
            title=title,
            caption=f"Examples of dev, by {name}.",
            columns=columns,
            rows=rows,
            digits=3,
        )
