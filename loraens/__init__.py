"""Train a grid of LoRA adapters on one frozen BERT, then find, prove and ship the small ensemble
worth deploying.

The public names are imported when they are asked for, so that `import loraens` takes no time.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from loraens.api.build import build
    from loraens.api.builder import Built
    from loraens.api.estimators import LoraEnsembleClassifier, LoraEnsembleRegressor
    from loraens.api.imported import import_members
    from loraens.api.proofs import Proofs, ProvedEnsemble, prove
    from loraens.api.sweep import Sweep
    from loraens.data.modules import SST, STS, HubTexts, Multitask, Quora, TextData, TextFiles
    from loraens.data.sources import Source
    from loraens.data.splits import Split
    from loraens.ensemble.evaluation import Evaluation
    from loraens.ensemble.methods import METHODS, Method
    from loraens.ensemble.options import Options
    from loraens.errors import InputError
    from loraens.inference.evaluate import evaluate
    from loraens.inference.predictor import Predictor as Ensemble
    from loraens.labels import LABEL_KINDS, LabelKind
    from loraens.members import Grid, Member
    from loraens.model.adapters import ADAPTERS, Adapter
    from loraens.model.architectures import ARCHITECTURES, Architecture
    from loraens.tasks import Task
    from loraens.train.executors import EXECUTORS, Executor
    from loraens.train.options import SweepOptions

__all__ = [
    "ADAPTERS",
    "ARCHITECTURES",
    "EXECUTORS",
    "LABEL_KINDS",
    "METHODS",
    "SST",
    "STS",
    "Adapter",
    "Architecture",
    "Built",
    "Ensemble",
    "Evaluation",
    "Executor",
    "Grid",
    "HubTexts",
    "InputError",
    "LabelKind",
    "LoraEnsembleClassifier",
    "LoraEnsembleRegressor",
    "Member",
    "Method",
    "Multitask",
    "Options",
    "Proofs",
    "ProvedEnsemble",
    "Quora",
    "Source",
    "Split",
    "Sweep",
    "SweepOptions",
    "Task",
    "TextData",
    "TextFiles",
    "build",
    "evaluate",
    "import_members",
    "prove",
]

_MODULES = {
    "loraens.api.build": ("build",),
    "loraens.api.builder": ("Built",),
    "loraens.api.estimators": ("LoraEnsembleClassifier", "LoraEnsembleRegressor"),
    "loraens.api.imported": ("import_members",),
    "loraens.api.proofs": ("Proofs", "ProvedEnsemble", "prove"),
    "loraens.api.sweep": ("Sweep",),
    "loraens.data.modules": (
        "SST",
        "STS",
        "HubTexts",
        "Multitask",
        "Quora",
        "TextData",
        "TextFiles",
    ),
    "loraens.data.sources": ("Source",),
    "loraens.data.splits": ("Split",),
    "loraens.ensemble.methods": ("METHODS", "Method"),
    "loraens.ensemble.options": ("Options",),
    "loraens.ensemble.evaluation": ("Evaluation",),
    "loraens.errors": ("InputError",),
    "loraens.inference.evaluate": ("evaluate",),
    "loraens.inference.predictor": ("Ensemble",),
    "loraens.labels": ("LABEL_KINDS", "LabelKind"),
    "loraens.members": ("Grid", "Member"),
    "loraens.model.adapters": ("ADAPTERS", "Adapter"),
    "loraens.model.architectures": ("ARCHITECTURES", "Architecture"),
    "loraens.tasks": ("Task",),
    "loraens.train.options": ("SweepOptions",),
    "loraens.train.executors": ("EXECUTORS", "Executor"),
}
_ALIASES = {"Ensemble": "Predictor"}


def __getattr__(name: str) -> Any:
    """A public name, imported when it is asked for."""
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(module), _ALIASES.get(name, name))
    raise AttributeError(f"module 'loraens' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names."""
    return [*__all__, "__version__"]
