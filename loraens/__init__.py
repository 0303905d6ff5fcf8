"""Train a grid of LoRA adapters on one frozen BERT, then find, prove and ship the small ensemble
worth deploying.
"""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`loraens.Ensemble`, imported when it is asked for."""
    if name != "Ensemble":
        raise AttributeError(f"module 'loraens' has no attribute {name!r}")
    from loraens.inference.predictor import Predictor

    return Predictor
