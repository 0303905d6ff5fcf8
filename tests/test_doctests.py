"""The examples in docstrings are right."""

import doctest
from importlib import import_module

import pytest

MODULES = [
    "loraens.ensemble.combine",
    "loraens.members",
    "loraens.metrics",
    "loraens.registry",
    "loraens.tasks",
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    results = doctest.testmod(import_module(name))
    assert results.attempted > 0
    assert results.failed == 0


@pytest.mark.slow
def test_examples_of_the_estimators():
    results = doctest.testmod(import_module("loraens.api.estimators"))
    assert results.attempted > 0
    assert results.failed == 0
