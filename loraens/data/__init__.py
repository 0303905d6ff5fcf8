"""Texts in, batches out: records and splits from files or the hub, tokenised once, served as packed
batches.

The data modules are imported when they are asked for, so that reading a file does not import
Lightning.
"""

from typing import Any

__all__ = ["SST", "STS", "HubTexts", "Multitask", "Quora", "TextData", "TextFiles"]


def __getattr__(name: str) -> Any:
    """A data module, imported when it is asked for."""
    if name not in __all__:
        raise AttributeError(f"module 'loraens.data' has no attribute {name!r}")
    from loraens.data import modules

    return getattr(modules, name)
