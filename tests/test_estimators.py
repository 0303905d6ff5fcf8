"""The scikit-learn estimators."""

import pickle

import numpy as np
import pandas
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import estimator_checks

from loraens import LoraEnsembleClassifier, LoraEnsembleRegressor

# the checks of scikit-learn that need no table of numbers
CHECKS = (
    "check_estimator_cloneable",
    "check_estimator_repr",
    "check_estimator_tags_renamed",
    "check_get_params_invariance",
    "check_set_params",
    "check_no_attributes_set_in_init",
    "check_do_not_raise_errors_in_init_or_set_params",
    "check_parameters_default_constructible",
    "check_mixin_order",
    "check_valid_tag_types",
)
WORDS = {"good": ["fine", "great", "nice"], "bad": ["poor", "awful", "dull"]}


@pytest.fixture(scope="module")
def small(tiny_bert):
    """Arguments of a small estimator."""
    return {
        "backbone": str(tiny_bert),
        "ranks": [2, 4],
        "scales": [1.0],
        "lr": 1e-2,
        "epochs": 6,
    }


@pytest.fixture(scope="module")
def reviews():
    """Texts and their labels."""
    rng = np.random.default_rng(0)
    labels = rng.choice(list(WORDS), 120)
    texts = [f"a {rng.choice(WORDS[label])} film {number}" for number, label in enumerate(labels)]
    return texts, labels


@pytest.fixture(scope="module")
def pairs():
    """Pairs of texts and a number: how many words they share."""
    rng = np.random.default_rng(0)
    words = list("abcdefgh")
    frame = pandas.DataFrame(
        {
            "left": [" ".join(rng.choice(words, 4)) for _ in range(60)],
            "right": [" ".join(rng.choice(words, 4)) for _ in range(60)],
        }
    )
    both = zip(frame["left"], frame["right"], strict=True)
    return frame, np.array([len(set(a.split()) & set(b.split())) for a, b in both])


@pytest.fixture(scope="module")
def classifier(small, reviews):
    return LoraEnsembleClassifier(**small).fit(*reviews)


@pytest.fixture(scope="module")
def regressor(small, pairs):
    return LoraEnsembleRegressor(**small).fit(*pairs)


@pytest.mark.slow
def test_a_classifier_learns(classifier, reviews):
    texts, labels = reviews
    assert classifier.classes_.tolist() == ["bad", "good"]
    assert classifier.score(texts, labels) > 0.9
    probabilities = classifier.predict_proba(texts)
    assert probabilities.shape == (120, 2)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    predicted = classifier.classes_[probabilities.argmax(axis=1)]
    assert predicted.tolist() == classifier.predict(texts).tolist()
    assert "dicor-probs" in classifier.proofs_


@pytest.mark.slow
def test_sets_hold_the_label(classifier, reviews):
    texts, labels = reviews
    sets = classifier.predict_set(texts, coverage=0.8)
    assert sets.shape == (120, 2)
    rows = np.arange(120)
    assert sets[rows, np.searchsorted(classifier.classes_, classifier.predict(texts))].all()
    assert sets[rows, np.searchsorted(classifier.classes_, labels)].mean() > 0.75
    copy = pickle.loads(pickle.dumps(classifier))
    np.testing.assert_array_equal(copy.predict_set(texts, coverage=0.8), sets)
    assert classifier.predict_set([]).shape == (0, 2)
    with pytest.raises(ValueError, match="at least 99 held-out examples are expected"):
        classifier.predict_set(texts, coverage=0.99)


def test_texts_come_in_many_forms(classifier, reviews):
    texts, _ = reviews
    expected = classifier.predict(texts).tolist()
    for form in (np.array(texts), pandas.Series(texts), tuple(texts), pandas.DataFrame(texts)):
        assert classifier.predict(form).tolist() == expected


@pytest.mark.slow
def test_a_regressor_takes_pairs(regressor, pairs):
    frame, numbers = pairs
    predicted = regressor.predict(frame)
    assert predicted.shape == (60,)
    assert np.isfinite(predicted).all()
    assert numbers.min() - 3 < predicted.min() < predicted.max() < numbers.max() + 3
    as_list = list(frame.itertuples(index=False, name=None))
    np.testing.assert_allclose(regressor.predict(as_list), predicted)
    bounds = regressor.predict_interval(frame, coverage=0.8)
    assert bounds.shape == (60, 2)
    assert ((bounds[:, 0] < predicted) & (predicted < bounds[:, 1])).all()
    assert ((bounds[:, 0] <= numbers) & (numbers <= bounds[:, 1])).mean() > 0.7


@pytest.mark.parametrize("labels", [[0, 1], [False, True], [1.0, 2.0], ["1", "2"], ["a ", " b"]])
@pytest.mark.slow
def test_labels_come_back_as_they_were(small, reviews, labels):
    texts, names = reviews
    y = np.array(labels)[(names == "good").astype(int)]
    small = {**small, "ranks": [2], "epochs": 1, "method": "best"}
    predicted = LoraEnsembleClassifier(**small).fit(texts, y).predict(texts[:5])
    assert predicted.dtype == y.dtype
    assert set(predicted.tolist()) <= set(labels)


def test_a_pickled_estimator_predicts(classifier, reviews):
    texts, _ = reviews
    copy = pickle.loads(pickle.dumps(classifier))
    assert copy.predict(texts).tolist() == classifier.predict(texts).tolist()


@pytest.mark.slow
def test_files_stay_in_a_given_directory(small, reviews, tmp_path):
    model = LoraEnsembleClassifier(**small, directory=tmp_path / "run").fit(*reviews)
    assert (tmp_path / "run" / "ensemble" / "ensemble.json").is_file()
    assert model.sweep_.directory == tmp_path / "run" / "sweep"
    again = clone(model).fit(*reviews)  # resumed: nothing is trained again
    assert again.sweep_.manifests == model.sweep_.manifests


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"method": "soup"}, {"rule": "vote"}, {"method": "best"}])
def test_methods_and_rules(small, reviews, options):
    texts, labels = reviews
    model = LoraEnsembleClassifier(**small, **options).fit(texts, labels)
    assert model.score(texts, labels) > 0.8
    np.testing.assert_allclose(model.predict_proba(texts[:3]).sum(axis=1), 1, atol=1e-5)


@pytest.mark.slow
def test_it_works_in_pipelines_and_searches(small, reviews):
    texts, labels = reviews
    lower = FunctionTransformer(lambda X: [text.lower() for text in X])
    pipeline = make_pipeline(lower, LoraEnsembleClassifier(**small))
    assert cross_val_score(pipeline, texts, labels, cv=2).mean() > 0.8
    search = GridSearchCV(LoraEnsembleClassifier(**small), {"epochs": [1, 2]}, cv=2)
    assert search.fit(texts, labels).best_score_ > 0.6


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("kind", [LoraEnsembleClassifier, LoraEnsembleRegressor])
def test_checks_of_scikit_learn(kind, check):
    getattr(estimator_checks, check)(kind.__name__, kind())


@pytest.mark.parametrize(
    ("texts", "labels", "sentence"),
    [
        ("one text", ["a"], "X is one string"),
        ([], [], "X has no examples"),
        (["a", "b"], ["x"], "X has 2 examples and y has 1"),
        (["a", "b"], ["x", "x"], "y has one class"),
        (["a", None], ["x", "y"], "X has no text, or pair of texts, at 1"),
        (["a", " "], ["x", "y"], "X has a blank text at 1"),
        (["a", ("b", "c")], ["x", "y"], "pairs at others"),
        ([("a", "b", "c")] * 2, ["x", "y"], "X has no text, or pair of texts, at 0"),
        (["a", "a"], ["x", "y"], "one distinct text"),
    ],
)
def test_bad_input_is_one_sentence(small, texts, labels, sentence):
    with pytest.raises(ValueError, match=sentence):
        LoraEnsembleClassifier(**small).fit(texts, labels)


def test_pairs_are_refused_where_texts_were_fitted(classifier):
    with pytest.raises(ValueError, match="one text was fitted"):
        classifier.predict([("a", "b")])
    with pytest.raises(ValueError, match="not fitted"):
        LoraEnsembleClassifier().predict(["a"])


def test_numbers_must_be_finite(small):
    with pytest.raises(ValueError, match="not finite"):
        LoraEnsembleRegressor(**small).fit(["a", "b"], [1.0, np.nan])
