"""The ensembles in checkpoints/pretrained predict what they did when they were made."""

from pathlib import Path

import pytest

import loraens

PRETRAINED = Path(__file__).parent.parent / "checkpoints" / "pretrained"
EXPECTED = {
    "sst": (
        "a fine film",
        {"prediction": "3", "probability_3": 0.474946, "probability_4": 0.460579},
    ),
    "quora": (
        ("How do I learn to swim?", "What is the best way to learn swimming?"),
        {"prediction": "1", "probability_1": 0.883749},
    ),
    "sts": (
        ("A man plays a guitar.", "A man is playing an instrument."),
        {"prediction": 3.466524, "spread": 0.138422},
    ),
}


def test_all_are_expected():
    assert {path.name for path in PRETRAINED.iterdir()} == set(EXPECTED)


@pytest.mark.real
@pytest.mark.parametrize("name", EXPECTED)
def test_an_ensemble_of_the_repository_predicts(name):
    texts, expected = EXPECTED[name]
    (row,) = loraens.Ensemble.load(PRETRAINED / name).predict([texts])
    for column, value in expected.items():
        near = pytest.approx(value, abs=1e-4) if isinstance(value, float) else value
        assert row[column] == near
