"""Texts that members were trained on and scored on, read again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import yaml

from loraens.data.config import DataConfig
from loraens.data.imports import check_imports
from loraens.ensemble.read import PoolMembers
from loraens.errors import InputError


@dataclass(frozen=True)
class SplitTexts:
    """Ids `(N,)` of a split and its texts, one or two an example."""

    ids: np.ndarray
    texts: list[tuple[str, ...]]


def read_texts(members: PoolMembers) -> dict[str, SplitTexts]:
    """Dev and test, from the data that the members' run names; with folds, "dev" are the examples
    that were cut into parts, in the order of the pool.

    Raises:
        InputError: The run's settings are missing, or its data is not what the members were trained
            on.
    """
    path = members.directories[0].parent / "config.yaml"
    settings = members.manifests[0].settings
    if not path.is_file():
        raise InputError(f"{path} is missing: it says where the members' texts are, so restore it")
    try:
        config = yaml.safe_load(path.read_text()).get("data")
    except (ValueError, yaml.YAMLError, AttributeError):
        raise InputError(f"{path} is no YAML file of settings: restore it") from None
    if config is None:
        raise InputError(
            f"{path} names no data, as it was only in a program's memory: texts cannot be read"
        )
    check_imports({"data": config}, path)
    given = config.get("init_args") or {} if isinstance(config, dict) else None
    if not isinstance(given, dict) or not isinstance(config.get("class_path"), str):
        raise InputError(f"{path} has no data.class_path: restore it")
    data = DataConfig(config["class_path"], given).build(settings.backbone, settings.folds)
    data.setup("fit")
    task = members.dev.task.name
    texts = {}
    for split, name in (("dev", data.scored), ("test", "test")):
        key = f"{task}-{name}"
        part = data.splits.get((task, name))
        if (part.fingerprint if part else None) != settings.data.get(key):
            raise InputError(
                f"{path} names other data than the members were trained on ({key} differs):"
                " restore it"
            )
        if part:
            texts[split] = SplitTexts(np.array(part.split.ids), part.split.texts)
    return texts
