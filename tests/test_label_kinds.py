"""Ordered classes and several labels: losses, probabilities, metrics, thresholds and ensembles
against scikit-learn, PyTorch and naive loops. From files to reports: test_kinds_table.py.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from torch.nn import functional as F
from torchmetrics.functional.classification import binary_calibration_error

from loraens.data.splits import Split
from loraens.ensemble.calibration import fit_temperature, scaled
from loraens.ensemble.combine import combine, combine_apart, majority_vote, thresholds_of
from loraens.ensemble.conformal import Conformal
from loraens.ensemble.cross_validation import Candidate, cross_validate, folds
from loraens.ensemble.diversity import SIMILARITIES, similarity, summary
from loraens.ensemble.methods import METHODS, names
from loraens.ensemble.options import Options
from loraens.ensemble.pool import Pool
from loraens.ensemble.prove import prove
from loraens.inference.combination import Combination
from loraens.labels.labels import _best_threshold
from loraens.metrics import CALIBRATION_BINS, NLL, QUADRATIC_KAPPA, Outcome
from loraens.store import Logits
from loraens.tasks import QUORA, SST, STS, Task
from loraens.train.wandb_run import prediction_table

NAMES = ("news", "sport", "art", "law")
TAGS = Task("tags", ("text",), "tags", "labels", "binary_cross_entropy", "average_precision", NAMES)
STARS = Task("stars", ("text",), "stars", "levels", "corn", "quadratic_kappa", ("1", "2", "3", "4"))
TASKS = {"tags": TAGS, "stars": STARS}
SHARES = [0.5, 0.3, 0.2, 0.1]


def labels_of(task, count, rng):
    if task is TAGS:
        return (rng.random((count, len(NAMES))) < SHARES).astype(float)
    return rng.integers(0, 4, count).astype(float)


def make_pool(task, members=5, examples=150, seed=0):
    """Members that see the truth through noise of their own."""
    rng = np.random.default_rng(seed)
    labels = labels_of(task, examples, rng)
    truth = 3 * labels - 2 if task is TAGS else 4 * (labels[:, None] > np.arange(3)) - 2.0
    noise = rng.normal(0, 2, (members, examples, task.num_outputs))
    logits = truth + noise * np.linspace(0.7, 1.3, members)[:, None, None]
    names = tuple(f"m{index}" for index in range(members))
    return Pool(task, names, np.arange(1, members + 1), logits, labels)


@pytest.fixture(params=TASKS.values(), ids=TASKS)
def pool(request):
    return make_pool(request.param)


# Losses


def drawn(task, members=2, examples=6, seed=3):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (members, examples, task.num_outputs))
    labels = np.stack([labels_of(task, examples, rng) for _ in range(members)])
    return torch.tensor(logits, requires_grad=True), torch.tensor(labels)


def corn_loss(logits, labels, classes):
    """Equation 4 of Shi, Cao and Raschka (2021): by steps, each on the examples that reach it."""
    total = 0.0
    count = 0
    for step in range(classes - 1):
        for logit, label in zip(logits[:, step], labels, strict=True):
            if label >= step:
                share = 1 / (1 + math.exp(-float(logit)))
                total -= math.log(share) if label > step else math.log(1 - share)
                count += 1
    return total / count, count


def test_levels_are_trained_by_the_loss_of_corn_for_each_example():
    logits, labels = drawn(STARS)
    found = STARS.member_losses(logits, labels)
    for member in range(2):
        expected, count = corn_loss(logits[member].detach(), labels[member], 4)
        assert found[member].item() == pytest.approx(expected * count / 6)
    likelihood = STARS.outcome(logits[0].detach().numpy())
    assert found[0].item() == pytest.approx(NLL(likelihood, labels[0].numpy()))


def test_several_labels_are_trained_by_binary_cross_entropy():
    logits, labels = drawn(TAGS)
    found = TAGS.member_losses(logits, labels)
    expected = F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean((1, 2))
    assert torch.allclose(found, expected)
    weights = (1.0, 2.0, 3.0, 4.0)
    expected = F.binary_cross_entropy_with_logits(
        logits, labels, reduction="none", pos_weight=torch.tensor(weights, dtype=torch.float64)
    )
    found = replace(TAGS, class_weights=weights).member_losses(logits, labels)
    assert torch.allclose(found, expected.mean((1, 2)))


@pytest.mark.parametrize(
    "task",
    [
        TAGS,
        STARS,
        SST,
        QUORA,
        STS,
        replace(TAGS, class_weights=(1, 2, 3, 4), label_smoothing=0.1, focal_gamma=2.0),
        replace(STARS, class_weights=(1.0, 2.0, 0.5, 1.0)),
        replace(SST, class_weights=(1, 2, 3, 4, 5), label_smoothing=0.2, focal_gamma=1.5),
        replace(QUORA, class_weights=(1, 3), label_smoothing=0.2, focal_gamma=2.0),
    ],
    ids=lambda task: task.name,
)
def test_gradients_are_those_of_differences_and_of_one_member_alone(task):
    rng = np.random.default_rng(0)
    classes = len(task.class_names)
    labels = rng.integers(0, max(classes, 2), (2, 6)).astype(float)
    if task.kind == "labels":
        labels = (rng.random((2, 6, 4)) < 0.5).astype(float)
    shape = (2, 6, task.num_outputs)
    logits = torch.tensor(rng.normal(0, 1, shape), requires_grad=True)
    weights = torch.tensor(rng.uniform(0.5, 2, (2, 6)))
    targets = torch.tensor(labels)
    assert torch.autograd.gradcheck(lambda x: task.member_losses(x, targets, weights), logits)
    (gradient,) = torch.autograd.grad(task.member_losses(logits, targets)[0], logits)
    assert gradient[0].abs().sum() > 0
    assert gradient[1].abs().sum() == 0


def test_weights_smoothing_and_focal_loss_of_classes_against_pytorch():
    rng = np.random.default_rng(0)
    logits = torch.tensor(rng.normal(0, 2, (3, 8, 5)))
    labels = torch.tensor(rng.integers(0, 5, (3, 8)).astype(float))
    rows, classes = logits.reshape(-1, 5), labels.reshape(-1).long()
    weights = (1.0, 0.5, 2.0, 3.0, 0.1)

    def found(**options):
        return replace(SST, **options).label_kind.losses_of(replace(SST, **options), logits, labels)

    weighted = F.cross_entropy(
        rows, classes, torch.tensor(weights, dtype=torch.float64), reduction="none"
    )
    assert torch.allclose(found(class_weights=weights).reshape(-1), weighted)
    smooth = F.cross_entropy(rows, classes, reduction="none", label_smoothing=0.3)
    assert torch.allclose(found(label_smoothing=0.3).reshape(-1), smooth)
    plain = F.cross_entropy(rows, classes, reduction="none")
    focal = (1 - torch.exp(-plain)) ** 2 * plain
    assert torch.allclose(found(focal_gamma=2.0).reshape(-1), focal)


def test_one_logit_and_two_are_the_same_loss_of_two_classes():
    rng = np.random.default_rng(0)
    logit = torch.tensor(rng.normal(0, 2, (2, 8, 1)))
    both = torch.cat([torch.zeros_like(logit), logit], dim=2)
    labels = torch.tensor(rng.integers(0, 2, (2, 8)).astype(float))
    options = {"class_weights": (0.5, 2.0), "focal_gamma": 1.0, "label_smoothing": 0.2}
    one = replace(QUORA, **options)
    two = replace(QUORA, loss="cross_entropy", **options)
    assert torch.allclose(one.member_losses(logit, labels), two.member_losses(both, labels))


def test_smoothing_and_focal_loss_of_several_labels_by_hand():
    logits, labels = drawn(TAGS)
    losses = replace(TAGS, label_smoothing=0.2, focal_gamma=2.0).member_losses(logits, labels)
    expected = 0.0
    values = zip(logits[0].flatten().tolist(), labels[0].flatten().tolist(), strict=True)
    for logit, label in values:
        share = 1 / (1 + math.exp(-logit))
        target = 0.9 if label else 0.1
        entropy = -target * math.log(share) - (1 - target) * math.log(1 - share)
        expected += (1 - (share if label else 1 - share)) ** 2 * entropy
    assert losses[0].item() == pytest.approx(expected / labels[0].numel())


def test_weights_of_examples_multiply_their_losses():
    logits, labels = drawn(STARS)
    weights = torch.rand(2, 6, dtype=torch.float64)
    of_each = STARS.label_kind.losses_of(STARS, logits, labels)
    found = STARS.member_losses(logits, labels, weights)
    assert torch.allclose(found, (of_each * weights).mean(1))
    single = STARS.member_losses(logits.float(), labels, weights)
    assert single.dtype == torch.float32


# From logits to predictions


def test_probabilities_of_levels_are_of_the_steps_and_the_prediction_is_the_median():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (50, 3))
    outcome = STARS.outcome(logits)
    for row, shares, level in zip(logits, outcome.probabilities, outcome.predictions, strict=True):
        reached = 1.0
        expected = []
        for logit in row:
            step = 1 / (1 + math.exp(-logit))
            expected.append(reached * (1 - step))
            reached *= step
        expected.append(reached)
        assert shares == pytest.approx(expected)
        errors = [sum(p * abs(k - guess) for k, p in enumerate(expected)) for guess in range(4)]
        assert errors[int(level)] == pytest.approx(min(errors))


def test_extreme_logits_give_probabilities():
    for task in TASKS.values():
        for value in (-1e4, 1e4):
            outcome = task.outcome(np.full((2, task.num_outputs), value))
            assert ((outcome.probabilities >= 0) & (outcome.probabilities <= 1)).all()
    assert STARS.outcome(np.full((1, 3), 1e4)).predictions == [3]
    assert STARS.outcome(np.full((1, 3), -1e4)).predictions == [0]


def test_metrics_of_levels_against_scikit_learn():
    pool = make_pool(STARS)
    for member in range(len(pool)):
        outcome = pool.outcome(member)
        found = STARS.scores(pool.logits[member], pool.labels)
        levels = outcome.predictions
        expected = {
            "quadratic_kappa": sk.cohen_kappa_score(pool.labels, levels, weights="quadratic"),
            "mae": sk.mean_absolute_error(pool.labels, levels),
            "accuracy": sk.accuracy_score(pool.labels, levels),
            "nll": sk.log_loss(pool.labels, outcome.probabilities),
        }
        for name, value in expected.items():
            assert found[name] == pytest.approx(value), name
        assert list(found) == [metric.name for metric in STARS.label_kind.metrics]


def test_kappa_is_not_defined_where_nothing_differs():
    ones = np.ones(5)
    assert math.isnan(QUADRATIC_KAPPA(Outcome(ones), ones))
    assert QUADRATIC_KAPPA(Outcome(ones), np.array([0.0, 1, 2, 1, 1])) == pytest.approx(0)


def test_metrics_of_several_labels_against_scikit_learn():
    pool = make_pool(TAGS)
    for member in range(len(pool)):
        # rounded, so that probabilities are equal; the last label is nowhere
        logits = np.round(pool.logits[member])
        labels = pool.labels.copy()
        labels[:, 3] = 0
        logits[:, 3] = -9
        outcome = TAGS.outcome(logits)
        shares, decided = outcome.probabilities, outcome.predictions
        average = sk.average_precision_score(labels[:, :3], shares[:, :3], average="macro")
        f1 = {
            average: sk.f1_score(labels, decided, average=average, zero_division=np.nan)
            for average in ("macro", "micro")
        }
        expected = {
            "average_precision": average,
            "macro_f1": f1["macro"],
            "micro_f1": f1["micro"],
            "exact_match": sk.accuracy_score(labels, decided),
            "nll": sum(sk.log_loss(labels[:, k], shares[:, k], labels=[0, 1]) for k in range(4)),
            "brier": sum(sk.brier_score_loss(labels[:, k], shares[:, k]) for k in range(4)),
            "calibration_error": binary_calibration_error(
                torch.tensor(shares.ravel()),
                torch.tensor(labels.ravel().astype(int)),
                n_bins=CALIBRATION_BINS,
                norm="l1",
            ).item(),
        }
        found = TAGS.scores(logits, labels)
        assert set(found) == set(expected)
        for name, value in expected.items():
            assert found[name] == pytest.approx(value, abs=1e-6), name


def test_scores_of_labels_that_are_nowhere_are_not_defined():
    scores = TAGS.scores(np.full((5, 4), -3.0), np.zeros((5, 4)))
    assert math.isnan(scores["average_precision"])
    assert math.isnan(scores["macro_f1"])
    assert math.isnan(scores["micro_f1"])
    assert scores["exact_match"] == 1


@pytest.mark.slow
def test_a_threshold_has_the_best_f1_of_all():
    rng = np.random.default_rng(0)
    for count in (1, 2, 5, 30):
        for _ in range(20):
            shares = rng.integers(1, 11, count) / 10
            there = (rng.random(count) < 0.4).astype(float)
            if not there.any():
                assert _best_threshold(shares, there) == 0.5
                continue
            cuts = np.append(np.unique(shares) - 0.05, 2.0)
            expected = max(sk.f1_score(there, shares > cut, zero_division=0.0) for cut in cuts)
            found = sk.f1_score(there, shares > _best_threshold(shares, there), zero_division=0.0)
            assert found == pytest.approx(expected)


def test_the_loss_of_weights_is_the_nll_of_the_mean_logit(pool):
    task = pool.task
    loss = task.label_kind.weight_loss(task, pool.logits, pool.labels)
    weights = np.random.default_rng(0).dirichlet(np.ones(len(pool)))
    value, gradient = loss(weights)
    outcome = task.outcome(np.tensordot(weights, pool.logits, 1))
    labels = len(NAMES) if task is TAGS else 1
    assert value == pytest.approx(NLL(outcome, pool.labels) / labels)
    for member in range(len(pool)):
        step = np.zeros(len(pool))
        step[member] = 1e-6
        difference = loss(weights + step)[0] - loss(weights - step)[0]
        assert gradient[member] == pytest.approx(difference / 2e-6, abs=1e-6)


# Ensembles


@pytest.mark.parametrize("rule", ["probs", "logits"])
@pytest.mark.parametrize("method", names(merges=False))
def test_every_method_applies(pool, method, rule):
    weights = METHODS[method].select(pool, Options(), np.random.default_rng(0))
    assert weights.shape == (len(pool),)
    assert weights.sum() == pytest.approx(1)
    assert (weights >= 0).all()
    outcome = combine(pool, weights, rule, pool.standings)
    assert outcome.predictions.shape == pool.labels.shape
    assert pool.task.score(outcome, pool.labels) > 0.5


def test_members_are_combined_by_the_mean_probability(pool):
    outcome = combine(pool, np.full(5, 0.2), "probs", pool.standings)
    mean = np.mean([pool.task.outcome(logits).probabilities for logits in pool.logits], axis=0)
    assert np.allclose(outcome.probabilities, mean)
    if pool.task is TAGS:
        assert np.array_equal(outcome.predictions, mean > 0.5)
        return
    assert np.array_equal(outcome.predictions, (np.cumsum(mean, 1) < 0.5).sum(1))
    votes = combine(pool, np.full(5, 0.2), "vote", pool.standings).predictions
    assert np.array_equal(votes, majority_vote(pool.predictions, pool.ranks, None, pool.standings))


def test_thresholds_are_chosen_on_other_examples_than_those_that_they_are_scored_on():
    pool = make_pool(TAGS, examples=60)
    candidate = Candidate("omni", "probs", Options())
    (held_out,) = cross_validate(pool, [candidate])
    for repeat, chosen_on, scored_on in folds(pool):
        inside, outside = pool.at(chosen_on), pool.at(scored_on)
        weights = np.full(5, 0.2)
        thresholds = thresholds_of(inside, weights, "probs")
        mean = outside.probabilities.mean(axis=0)
        assert np.array_equal(held_out.predictions[repeat, scored_on], mean > thresholds)
        apart = combine_apart(inside, outside, weights, "probs")
        assert np.array_equal(apart.predictions, mean > thresholds)


@pytest.mark.slow
def test_a_proof_keeps_thresholds_and_prediction_applies_them():
    pool = make_pool(TAGS, examples=60)
    candidates = [Candidate(method, "probs", Options()) for method in ("best", "omni", "greedy")]
    proofs = prove(pool, candidates)
    proof = proofs[1]
    outcome = combine(pool, proof.weights, "probs", pool.standings)
    assert np.array_equal(proof.thresholds, thresholds_of(pool, proof.weights, "probs"))
    expected = TAGS.all_scores(outcome.decided(proof.thresholds), pool.labels)
    assert proof.dev == expected
    assert proof.dev["macro_f1"] > TAGS.all_scores(outcome, pool.labels)["macro_f1"]
    assert 0 < proof.held_out["macro_f1"] < proof.dev["macro_f1"]
    combination = Combination(
        rule="probs",
        weights=proof.weights,
        ranks=pool.ranks,
        standings=pool.standings,
        temperature=proof.temperature,
        thresholds=proof.thresholds,
    )
    predicted = combination.outcome(pool)
    assert np.array_equal(predicted.predictions, outcome.decided(proof.thresholds).predictions)
    assert NLL(predicted, pool.labels) <= NLL(outcome, pool.labels)


def test_levels_and_classes_have_no_thresholds():
    pool = make_pool(STARS)
    assert thresholds_of(pool, np.full(5, 0.2), "probs") is None


def test_the_temperature_of_several_labels_is_that_of_their_logits():
    pool = make_pool(TAGS)
    outcome = TAGS.outcome(3 * pool.logits[0])
    temperature = fit_temperature(outcome, pool.labels)
    losses = [
        TAGS.scores(3 * pool.logits[0] / t, pool.labels)["nll"]
        for t in (0.98 * temperature, temperature, 1.02 * temperature)
    ]
    assert losses[1] < min(losses[0], losses[2])
    assert NLL(scaled(outcome, temperature), pool.labels) == pytest.approx(losses[1])


def test_diversity_of_decisions(pool):
    flat = pool.predictions.reshape(len(pool), -1)
    agreement = [[(one == other).mean() for other in flat] for one in flat]
    assert np.allclose(SIMILARITIES["agreement"](pool), agreement)
    shares = np.corrcoef(pool.probabilities.reshape(len(pool), -1))
    assert np.allclose(similarity(pool, "probabilities"), shares)
    measures = summary(pool)
    votes = majority_vote(flat, pool.ranks, standings=pool.standings)
    assert measures["vote_error_observed"] == (votes != pool.labels.ravel()).mean()
    wrong = flat != pool.labels.ravel()
    double = [(a & b).mean() for i, a in enumerate(wrong) for j, b in enumerate(wrong) if i != j]
    assert measures["double_fault"] == pytest.approx(np.mean(double))


def test_folds_have_like_shares_of_the_rarest_label():
    labels = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [1, 0, 1, 0], [1, 1, 1, 0]])
    strata = TAGS.label_kind.strata(labels.astype(float))
    assert strata.tolist() == [0, 1, 4, 2, 1]
    pool = make_pool(TAGS, examples=200)
    rare = pool.labels[:, 3].mean()
    shares = [pool.labels[scored_on, 3].mean() for _, _, scored_on in folds(pool)]
    assert max(abs(share - rare) for share in shares) < 0.03


# Prediction sets


@pytest.mark.parametrize("coverage", [0.5, 0.9])
def test_regions_hold_the_label_as_often_as_promised(pool, coverage):
    task, kind = pool.task, pool.task.label_kind
    new = make_pool(task, examples=2000, seed=9)
    distances = kind.distances(task.outcome(pool.logits[0]), pool.labels)
    conformal = Conformal.of(distances[None], np.zeros((1, len(distances))))
    radius = conformal.at(coverage).radius(np.zeros(2000))
    outcome = task.outcome(new.logits[0])
    columns = kind.region(task, outcome, radius)
    assert len(columns) == len(kind.regions)
    held = 0
    for label, prediction, *cells in zip(new.labels, outcome.predictions, *columns, strict=True):
        if task is STARS:
            held += task.format_label(label) in cells[0]
            assert task.format_label(prediction) in cells[0]
            continue
        certain, possible = map(set, cells)
        held += certain <= set(task.format_label(label)) <= possible
        assert certain <= set(task.format_label(prediction)) <= possible
    assert held / 2000 > coverage - 0.08  # of the draw of 150 examples


# Words and files


def test_a_label_is_a_list_of_names_as_json_or_between_delimiters():
    assert TAGS.parse_label('["art", "news"]') == (1, 0, 1, 0)
    assert TAGS.parse_label("[]") == (0, 0, 0, 0)
    assert TAGS.parse_label("[0, 3]") == (1, 0, 0, 1)
    split = replace(TAGS, delimiter="|")
    assert split.parse_label(" art | law|") == (0, 0, 1, 1)
    assert split.parse_label("|") == (0, 0, 0, 0)
    assert split.parse_label('["sport"]') == (0, 1, 0, 0)
    assert TAGS.format_label((1, 0, 1, 0)) == ["news", "art"]
    assert TAGS.label_text((0, 0, 0, 0)) == "none"
    assert TAGS.label_text((1, 0, 1, 0)) == "news, art"


@pytest.mark.parametrize(
    ("task", "text", "message"),
    [
        (TAGS, "news|art", "is no JSON list of names: write one, or give the delimiter"),
        (TAGS, '["new"]', "label 'new' is not one of the labels news, sport, art, law"),
        (TAGS, '[["news"]]', "is no JSON list of names"),
        (TAGS, "[news]", "is no JSON list of names"),
        (replace(TAGS, delimiter=","), "art;law", "label 'art;law' is not one of the labels"),
        (replace(TAGS, numbered=False), "[0]", "label '0' is not one of the labels"),
        (STARS, "5", "label '5' is not one of the classes 1, 2, 3, 4"),
    ],
)
def test_labels_that_are_refused(task, text, message):
    with pytest.raises(ValueError, match=message):
        task.parse_label(text)


@pytest.mark.parametrize(
    ("task", "change", "message"),
    [
        (TAGS, {"class_names": ("a",)}, "two label names or more are expected"),
        (TAGS, {"class_names": ("a", "a")}, "label names repeat"),
        (TAGS, {"delimiter": "r"}, "delimiter 'r' is empty or in the name of a label"),
        (TAGS, {"delimiter": ""}, "delimiter '' is empty"),
        (TAGS, {"class_weights": (1.0,)}, "one positive number for each of news"),
        (TAGS, {"class_weights": (1.0, 1.0, 1.0, -1.0)}, "one positive number for each"),
        (TAGS, {"class_weights": (1.0, 1.0, 1.0, math.nan)}, "one positive number for each"),
        (TAGS, {"label_smoothing": 1.0}, "0 to below 1 is expected"),
        (TAGS, {"focal_gamma": -1.0}, "a number from 0 on is expected"),
        (STARS, {"focal_gamma": 1.0}, "focal_gamma does not apply to kind 'levels'"),
        (STARS, {"delimiter": "|"}, "delimiter does not apply to kind 'levels'"),
        (SST, {"delimiter": "|"}, "delimiter does not apply to kind 'classes'"),
        (STS, {"class_weights": (1.0,)}, "class_weights does not apply to kind 'number'"),
        (
            STARS,
            {"class_names": ("low", "high"), "numbered": False},
            "the order of the levels low, high is not known: give class_names, the lowest first",
        ),
    ],
)
def test_tasks_that_are_refused(task, change, message):
    with pytest.raises(ValueError, match=message):
        replace(task, **change)


def test_tasks_are_written_as_older_versions_did_unless_they_have_options():
    fields = [*SST.to_json()]
    assert fields[-3:] == ["low", "high", "numbered"]
    task = replace(TAGS, delimiter="|", class_weights=(1.0, 2.0, 3.0, 4.0), focal_gamma=2.0)
    assert Task.from_json(task.to_json()) == task
    assert set(task.to_json()) - set(fields) == {"delimiter", "class_weights", "focal_gamma"}


def test_balanced_weights():
    labels = np.array([0, 0, 0, 1, 1, 2.0, 3.0, 3.0])
    found = STARS.label_kind.balanced_weights(STARS, labels)
    assert found == pytest.approx([8 / 12, 8 / 8, 8 / 4, 8 / 8])
    with pytest.raises(ValueError, match="class '4' has no example"):
        STARS.label_kind.balanced_weights(STARS, labels[:6])
    several = np.array([[1, 0, 1, 1], [0, 1, 0, 1], [0, 0, 1, 0], [0, 0, 1, 1.0]])
    kind = TAGS.label_kind
    assert kind.balanced_weights(TAGS, several) == pytest.approx([3, 3, 1 / 3, 1 / 3])
    with pytest.raises(ValueError, match="label 'news' has no example"):
        kind.balanced_weights(TAGS, 0 * several)
    with pytest.raises(ValueError, match="label 'news' is everywhere"):
        kind.balanced_weights(TAGS, 0 * several + 1)
    with pytest.raises(ValueError, match="there are no classes to weight"):
        STS.label_kind.balanced_weights(STS, labels)


def test_cells_of_several_labels_in_a_table_of_wandb_are_texts():
    split = Split("dev", ["1", "2"], [("a",), ("b",)], np.array([[1, 0, 1, 0], [0, 0, 0, 0.0]]), "")
    logits = Logits(
        np.array([[1, -1, -1, -1], [-1, -1, -1, -1.0]]), np.array(split.ids), split.labels
    )
    columns, rows = prediction_table(TAGS, split, logits)
    assert columns[:4] == ["id", "text", "label", "prediction"]
    assert [row[2:4] for row in rows] == [['["news", "art"]', '["news"]'], ["[]", "[]"]]


def test_what_pages_say_of_several_labels():
    kind = TAGS.label_kind
    predictions = np.array([[[1, 0, 0, 0], [0, 0, 0, 0]], [[1, 1, 0, 0], [0, 0, 0, 0]]])
    labels = np.array([[0, 0, 0, 0], [1, 1, 0, 0.0]])
    assert kind.describe(TAGS, predictions) == ["news 100%, sport 50%", "none"]
    name, values = kind.disagreement(TAGS, predictions)
    assert values == pytest.approx([math.log(2), 0])
    name, values = kind.common_error(predictions, None, labels)
    assert (name, values.tolist()) == ("labels", [1, 2])
    shares = np.array([[[0.5, 0.2, 0.1, 0.3]], [[0.9, 0.2, 0.1, 0.3]]])
    found = kind.uncertainty(predictions, shares, np.ones(2), Outcome(predictions[0]))
    entropy = -sum(p * np.log(p) + (1 - p) * np.log(1 - p) for p in (0.7, 0.2, 0.1, 0.3))
    assert found["entropy"] == pytest.approx([entropy])
    own = [-(p * math.log(p) + (1 - p) * math.log(1 - p)) for p in (0.5, 0.9, 0.7)]
    assert found["mutual_information"] == pytest.approx([own[2] - (own[0] + own[1]) / 2])


@pytest.mark.parametrize("metric", ["share", "other"])
def test_scores_of_a_bag_are_those_of_a_pool_of_its_copies(pool, metric):
    share = {"tags": "exact_match", "stars": "accuracy"}[pool.task.name]
    whole = pool.changed(task=replace(pool.task, metric=share)) if metric == "share" else pool
    bag = np.random.default_rng(1).integers(0, 150, 150)
    copies = whole.changed(logits=whole.logits[:, bag], labels=whole.labels[bag])
    np.testing.assert_allclose(whole.at(bag).scores, copies.scores, atol=1e-14)
    np.testing.assert_allclose(whole.at(bag).log_likelihood, copies.log_likelihood, atol=1e-13)
