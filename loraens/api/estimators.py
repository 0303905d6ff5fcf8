"""scikit-learn estimators: a sweep, an ensemble chosen from it, and its predictions.

Shape letters: N texts, K classes.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.model_selection import GroupShuffleSplit, StratifiedGroupKFold
from sklearn.utils import Tags
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d

from loraens.api.proofs import Proofs, prove
from loraens.api.sweep import Sweep
from loraens.data.modules import TextFiles
from loraens.ensemble.methods import METHODS
from loraens.errors import InputError
from loraens.files import write_atomically
from loraens.inference.predictor import Predictor
from loraens.members import Grid
from loraens.model.population import Pooling
from loraens.seeding import derive_seed
from loraens.train.options import SweepOptions

Texts = list[tuple[str, ...]]


class _LoraEnsemble(BaseEstimator):  # type: ignore[misc]
    """What classifier and regressor share."""

    _default_rule: ClassVar[str]

    def __init__(
        self,
        backbone: str = "minilm",
        *,
        ranks: Sequence[int] = (4, 16),
        scales: Sequence[float] = (1.0, 3.0),
        seeds: Sequence[int] = (0,),
        lr: float = 5e-4,
        epochs: int = 3,
        pooling: Pooling = "mean",
        batch_size: int = 8,
        max_length: int = 128,
        method: str = "dicor",
        rule: str | None = None,
        dev_size: float = 0.2,
        directory: str | Path | None = None,
        random_state: int = 0,
        verbose: bool = False,
    ) -> None:
        self.backbone = backbone
        self.ranks = ranks
        self.scales = scales
        self.seeds = seeds
        self.lr = lr
        self.epochs = epochs
        self.pooling = pooling
        self.batch_size = batch_size
        self.max_length = max_length
        self.method = method
        self.rule = rule
        self.dev_size = dev_size
        self.directory = directory
        self.random_state = random_state
        self.verbose = verbose

    def __sklearn_tags__(self) -> Tags:
        """Input is texts, one or two an example."""
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.two_d_array = False
        tags.input_tags.one_d_array = True
        tags.non_deterministic = False
        return tags

    def _fit(self, texts: Texts, labels: list[str], groups: np.ndarray, **task: Any) -> None:
        """Cut dev from the examples, train the grid, and choose the ensemble.

        Args:
            texts: N texts or pairs.
            labels: N labels as they stand in a file.
            groups: `(N,)` classes to stratify by; zeros for numbers.
            task: Arguments of `TextFiles` on the label.
        """
        directory = self._new_directory()
        columns = ["text", "text2"][: len(texts[0])]
        dev = self._dev(texts, groups)
        for name, indices in (("train", np.flatnonzero(~dev)), ("dev", np.flatnonzero(dev))):
            lines = []
            for index in indices.tolist():
                record = dict(zip(columns, texts[index], strict=True))
                lines.append(json.dumps({"id": str(index), **record, "label": labels[index]}))
            write_atomically(directory / f"{name}.jsonl", ("\n".join(lines) + "\n").encode())
        data = TextFiles(
            name="texts",
            train=str(directory / "train.jsonl"),
            dev=str(directory / "dev.jsonl"),
            text_columns=columns,
            label_column="label",
            batch_size=self.batch_size,
            max_length=self.max_length,
            **task,
        )
        grid = Grid(rank=list(self.ranks), scale=list(self.scales), seed=list(self.seeds))
        self.sweep_ = Sweep(
            data,
            grid,
            directory / "sweep",
            backbone=self.backbone,
            epochs=self.epochs,
            lr=self.lr,
            pooling=self.pooling,
            options=SweepOptions(pack_size=len(self.ranks) * len(self.scales) * len(self.seeds)),
            trainer={"enable_progress_bar": self.verbose},
        ).fit()
        rule = self.rule or self._default_rule
        self.proofs_: Proofs = prove(self.sweep_, methods=[self.method], rules=[rule])
        name = self.method if METHODS[self.method].merges else f"{self.method}-{rule}"
        saved = self.proofs_[name].save(directory / "ensemble")
        self.ensemble_ = Predictor.load(saved)
        self.n_texts_ = len(columns)

    def _new_directory(self) -> Path:
        if self.directory is not None:
            return Path(self.directory)
        directory = tempfile.mkdtemp(prefix="loraens-")
        # kept as long as the estimator, and removed with it
        self._temporary = weakref.finalize(self, shutil.rmtree, directory, ignore_errors=True)
        return Path(directory)

    def _dev(self, texts: Texts, classes: np.ndarray) -> np.ndarray:
        """`(N,)` which examples are dev: stratified by class, equal texts on one side."""
        if not 0 < self.dev_size < 1:
            raise InputError(f"dev_size {self.dev_size} is not a share between 0 and 1")
        distinct: dict[tuple[str, ...], int] = {}
        groups = np.array([distinct.setdefault(text, len(distinct)) for text in texts])
        seed = derive_seed(self.random_state, "dev") % 2**32
        folds = max(2, round(1 / self.dev_size))
        counts = np.unique(classes, return_counts=True)[1]
        if len(distinct) < 2:
            raise InputError("X has one distinct text: a dev set cannot be cut from it")
        if len(counts) > 1 and counts.min() >= folds:
            splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
        else:
            splitter = GroupShuffleSplit(1, test_size=self.dev_size, random_state=seed)
        _, indices = next(splitter.split(np.zeros(len(texts)), classes, groups))
        dev = np.zeros(len(texts), bool)
        dev[indices] = True
        return dev

    def _rows(self, X: Any, coverage: float | None = None) -> list[dict[str, Any]]:
        """Rows of predictions; with sets or intervals where a coverage is given."""
        check_is_fitted(self)
        texts = _texts(X)
        if texts and len(texts[0]) != self.n_texts_:
            expected = "one text" if self.n_texts_ == 1 else "a pair of texts"
            raise InputError(f"X has {len(texts[0])} texts an example, {expected} was fitted")
        task = self.ensemble_.task()
        return self.ensemble_.rows(texts, task, self.ensemble_.region(task, coverage))

    def __getstate__(self) -> dict[str, Any]:
        """Without the temporary directory, which is this process's: the copy predicts, and has no
        sweep to be read again.
        """
        state: dict[str, Any] = {**super().__getstate__()}
        for name in ("_temporary", "sweep_", "proofs_"):
            state.pop(name, None)
        return state


class LoraEnsembleClassifier(ClassifierMixin, _LoraEnsemble):  # type: ignore[misc]
    """Classifies texts, or pairs of texts, by an ensemble of LoRA members of one frozen encoder.

    `fit` cuts a dev set, trains a grid of members at once, chooses and proves the ensemble on dev,
    and keeps all files in `directory`, or in a temporary one. Texts are a list, an array, a Series,
    or, for pairs, two columns of a DataFrame or a list of pairs.

    Args:
        backbone: Hub name or directory of the encoder, or the packaged "minilm" or "mpnet".
        ranks: Ranks of the grid.
        scales: Scales c = alpha / r of the grid.
        seeds: Seeds of the grid.
        lr: Learning rate.
        epochs: Epochs of each member.
        pooling: What the head reads: "pooler", "cls", "mean" or "last".
        batch_size: Examples of one member in a batch.
        max_length: Longest sequence, in tokens.
        method: Ensemble method: a name of `loraens.METHODS`.
        rule: Combination rule: "probs" by default, whose probabilities are calibrated on dev;
            "vote" is the paper's.
        dev_size: Share of the examples that ensembles are chosen on.
        directory: Where the sweep is kept, and resumed; a temporary one by default.
        random_state: Names the cut of dev.
        verbose: Whether to show progress.

    Attributes:
        classes_: `(K,)` the labels.
        sweep_: The `Sweep`.
        proofs_: The ensembles with their scores.
        ensemble_: The `Ensemble` that predicts.

    Examples:
        >>> from loraens import LoraEnsembleClassifier
        >>> model = LoraEnsembleClassifier(epochs=1, ranks=[4], scales=[1])
        >>> sorted(model.get_params())[:3]
        ['backbone', 'batch_size', 'dev_size']
    """

    _default_rule = "probs"

    def fit(self, X: Any, y: Any) -> LoraEnsembleClassifier:
        """Train on texts and labels.

        Args:
            X: N texts or pairs of texts.
            y: N labels.

        Raises:
            ValueError: Texts and labels do not fit each other, or there is one class only.
        """
        texts = _texts(X)
        y = column_or_1d(y, warn=True)
        _check_lengths(texts, y)
        check_classification_targets(y)
        self.classes_, numbers = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise InputError(f"y has one class ({self.classes_[0]}): two or more are expected")
        names = [str(label).strip() for label in self.classes_.tolist()]
        if len(set(names)) < len(names) or not all(names):
            names = [str(number) for number in range(len(names))]
        labels = [names[number] for number in numbers]
        self._names = names
        self._fit(texts, labels, numbers, kind="classes", class_names=names)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Labels `(N,)` of texts."""
        rows = self._rows(X)
        numbers = [self._names.index(row["prediction"]) for row in rows]
        predicted: np.ndarray = self.classes_[np.array(numbers, int)]
        return predicted

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities `(N, K)` of the labels in `classes_`; with the rule "vote", the shares of
        the votes.
        """
        rows = self._rows(X)
        columns = [f"probability_{name}" for name in self._names]
        return np.array([[row[column] for column in columns] for row in rows]).reshape(
            -1, len(columns)
        )

    def predict_set(self, X: Any, coverage: float = 0.9) -> np.ndarray:
        """Which labels of `classes_` are in the prediction set of each text, `(N, K)` booleans.

        Args:
            X: N texts or pairs of texts.
            coverage: Share of new texts whose label is in its set.

        Raises:
            ValueError: The coverage is more than the dev set can give.
        """
        sets = [row["set"] for row in self._rows(X, coverage)]
        return np.array([[name in names for name in self._names] for names in sets], bool).reshape(
            -1, len(self._names)
        )


class LoraEnsembleRegressor(RegressorMixin, _LoraEnsemble):  # type: ignore[misc]
    """Predicts a number from a text, or a pair of texts, by an ensemble of LoRA members.

    See `LoraEnsembleClassifier` for the arguments, and for the texts.
    """

    _default_rule = "logits"

    def fit(self, X: Any, y: Any) -> LoraEnsembleRegressor:
        """Train on texts and numbers.

        Args:
            X: N texts or pairs of texts.
            y: N numbers.

        Raises:
            ValueError: Texts and numbers do not fit each other, or a number is not finite.
        """
        texts = _texts(X)
        y = column_or_1d(y, warn=True).astype(np.float64)
        _check_lengths(texts, y)
        if not np.isfinite(y).all():
            raise InputError("y has a number that is not finite: give finite numbers")
        labels = [repr(value) for value in y.tolist()]
        low = float(y.min())
        high = float(y.max())
        zeros = np.zeros(len(y), int)
        self._fit(texts, labels, zeros, kind="number", low=low, high=high)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Numbers `(N,)` of texts."""
        return np.array([row["prediction"] for row in self._rows(X)], np.float64)

    def predict_interval(self, X: Any, coverage: float = 0.9) -> np.ndarray:
        """Bounds `(N, 2)` of the interval of each text.

        Args:
            X: N texts or pairs of texts.
            coverage: Share of new texts whose number is in its interval.

        Raises:
            ValueError: The coverage is more than the dev set can give.
        """
        rows = self._rows(X, coverage)
        return np.array([[row["low"], row["high"]] for row in rows], np.float64).reshape(-1, 2)


def _check_lengths(texts: Texts, y: np.ndarray) -> None:
    if len(texts) != len(y):
        raise InputError(f"X has {len(texts)} examples and y has {len(y)}: give one label each")
    if not texts:
        raise InputError("X has no examples: give texts")


def _texts(X: Any) -> Texts:
    """Texts as tuples of one or two.

    Raises:
        InputError: They are no texts, or not all examples have the same number of them.
    """
    if isinstance(X, (str, bytes)):
        raise InputError("X is one string: give a list of texts")
    if hasattr(X, "to_numpy"):
        X = X.to_numpy()
    if hasattr(X, "tolist"):
        X = X.tolist()
    texts = [(item,) if isinstance(item, str) else item for item in X]
    for index, item in enumerate(texts):
        whole = isinstance(item, (tuple, list)) and all(isinstance(part, str) for part in item)
        if not whole or len(item) not in (1, 2):
            raise InputError(f"X has no text, or pair of texts, at {index}: {item!r}")
        if not all(part.strip() for part in item):
            raise InputError(f"X has a blank text at {index}: leave it out")
        if len(item) != len(texts[0]):
            raise InputError(
                f"X has one text at some examples and pairs at others, such as {index}"
            )
    return [tuple(item) for item in texts]
