"""A label kind, an ensemble method and a data source from outside the package.

Adapters and architectures: test_extend_model.py; executors: test_extend_train.py.
"""

import math

import numpy as np
import pytest
import torch

import loraens
from loraens.data.splits import Split
from loraens.ensemble.options import equal_weights
from loraens.labels.number import Number
from loraens.metrics import MSE, PEARSON, SPEARMAN

GRID = loraens.Grid(rank=[2, 4], scale=[1.0, 2.0])


class Counts(Number):
    """Counts 0, 1, 2, ...: Poisson regression on the log scale."""

    losses = ("poisson_nll",)
    metrics = (MSE, PEARSON, SPEARMAN)

    def parse(self, task, text):
        if not text.isdigit():
            raise ValueError(f"label {text!r} is not a count")
        return float(text)

    def losses_of(self, task, logits, labels):
        loss = torch.nn.functional.poisson_nll_loss
        return loss(logits[..., 0], labels.to(logits.dtype), reduction="none")

    def predictions(self, task, logits):
        return np.exp(np.clip(np.asarray(logits, np.float64)[:, 0], -20, 20))


class Lengths(loraens.Source):
    """Made-up texts of letters, and how many words they have."""

    @property
    def task(self):
        columns = {"text_columns": ("text",), "label_column": "words"}
        return loraens.Task("lengths", **columns, kind="counts", loss="poisson_nll", metric="mse")

    def read(self, split):
        sizes = {"train": 64, "dev": 24}
        if split not in sizes:
            return None
        rng = np.random.default_rng(sizes[split])
        counts = rng.integers(1, 9, sizes[split])
        texts = [(" ".join("abcdefgh"[:count]),) for count in counts]
        ids = [f"{split}-{number}" for number in range(len(counts))]
        return Split(split, ids, texts, counts.astype(float), "made up")


def first_two(pool, options, rng):
    """The two members that come first by name."""
    return equal_weights(pool, np.argsort(pool.names)[:2])


@pytest.fixture(scope="module", autouse=True)
def _registered():
    loraens.LABEL_KINDS.register("counts", Counts())
    loraens.METHODS.register("first_two", loraens.Method(first_two))
    yield
    loraens.LABEL_KINDS.unregister("counts")
    loraens.METHODS.unregister("first_two")


@pytest.mark.slow
def test_a_label_kind_a_source_and_a_method_from_outside(tiny_bert, tmp_path):
    data = loraens.TextData([Lengths()])
    options = {"backbone": str(tiny_bert), "epochs": 3, "lr": 1e-2, "pooling": "mean"}
    trainer = {"enable_progress_bar": False}
    sweep = loraens.Sweep(data, GRID, tmp_path / "sweep", trainer=trainer, **options).fit()
    scores = [manifest.score(data.tasks[0]) for manifest in sweep.manifests.values()]
    assert len(scores) == 4
    labels = data.splits["lengths", "dev"].split.labels
    assert min(scores) < labels.var()  # better than the mean of all
    proofs = loraens.prove(sweep, methods=["first_two", "dicor", "weighted", "stacking", "bma"])
    members = [member.name for member in proofs["first_two"].record(tmp_path).members]
    assert members == sorted(sweep.manifests)[:2]
    assert all(math.isfinite(proof.proof.held_out["mse"]) for proof in proofs.values())
    proofs["first_two"].save(tmp_path / "ensemble")
    rows = loraens.Ensemble.load(tmp_path / "ensemble").predict(["a b c", "a b c d e f g"])
    assert set(rows[0]) == {"prediction", "spread"}
    assert all(row["prediction"] > 0 for row in rows)


def test_a_kind_that_does_not_know_a_loss_or_metric_says_so():
    fields = {"name": "t", "text_columns": ("a",), "label_column": "b", "kind": "counts"}
    with pytest.raises(ValueError, match="loss 'mse' does not fit kind 'counts'"):
        loraens.Task(**fields, loss="mse", metric="mse")
    with pytest.raises(ValueError, match="metric 'accuracy' is none of mse"):
        loraens.Task(**fields, loss="poisson_nll", metric="accuracy")
    with pytest.raises(ValueError, match="kind 'tags' is none of classes, number, labels, levels"):
        loraens.Task(**{**fields, "kind": "tags"}, loss="mse", metric="mse")


def test_a_name_is_taken_once():
    with pytest.raises(ValueError, match="'counts' is taken"):
        loraens.LABEL_KINDS.register("counts", Counts())
    assert "first_two" in loraens.METHODS
    with pytest.raises(KeyError, match="is none of the methods: best, omni"):
        loraens.METHODS["nothing"]
