"""The texts that members were trained on and scored on, found again."""

from __future__ import annotations

import numpy as np
import yaml
from jsonargparse import ArgumentParser

from loraens.data.modules import TextData
from loraens.ensemble.read import Candidates
from loraens.errors import InputError


def read_texts(found: Candidates) -> dict[str, tuple[np.ndarray, list[tuple[str, ...]]]]:
    """Ids and texts of dev and test, from the data that the members' run names.

    Raises:
        InputError: The run's settings are missing, or its data is not what the members were trained
            on.
    """
    path = found.directories[0].parent / "config.yaml"
    settings = found.manifests[0]["settings"]
    if not path.is_file():
        raise InputError(f"{path} is missing: it says where the members' texts are, so restore it")
    given = yaml.safe_load(path.read_text())["data"]
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(TextData, "data")
    options = {**given["init_args"], "backbone": settings["backbone"]}
    data: TextData = parser.instantiate_classes(
        parser.parse_object({"data": {**given, "init_args": options}})
    ).data
    data.setup("fit")
    texts = {}
    for name in ("dev", "test"):
        key = f"{found.dev.task.name}-{name}"
        part = data.splits.get((found.dev.task.name, name))
        if (part.fingerprint if part else None) != settings["data"].get(key):
            raise InputError(
                f"{path} names other data than the members were trained on ({key} differs):"
                " restore it"
            )
        if part:
            texts[name] = np.array(part.split.ids), part.split.texts
    return texts
