"""Arrays that the run store keeps as .npz files, and what is wrong with them.

Shape letters: N examples, C outputs, K labels of an example.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from loraens.errors import InputError
from loraens.tasks import Task

NAMES = ("logits", "example_id", "labels", "indices", "groups")
FIX = "restore it or train the member again"


def npz(**arrays: np.ndarray | None) -> bytes:
    """An .npz file of those arrays that are there; the same arrays give the same bytes."""
    buffer = io.BytesIO()
    given: dict[str, Any] = {name: array for name, array in arrays.items() if array is not None}
    np.savez(buffer, **given)
    return buffer.getvalue()


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a split in an .npz file.

    Raises:
        InputError: It is no such file.
    """
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return {name: file[name] for name in NAMES if name in file}
    except FileNotFoundError:
        raise InputError(f"{path} is missing: {FIX}") from None
    except (zipfile.BadZipFile, zlib.error, ValueError, LookupError, TypeError, EOFError) as error:
        raise InputError(f"{path} is no file of arrays ({error}): {FIX}") from None


def of_examples(
    arrays: dict[str, np.ndarray], examples: dict[str, np.ndarray], path: Path
) -> dict[str, np.ndarray]:
    """Logits with the ids, labels and groups of the examples that they are of.

    Args:
        arrays: Logits `(N, C)`, and indices `(N,)` of the examples where they are not of all.
        examples: Of all examples of the split.
        path: The logits' file, for the message.

    Raises:
        InputError: The indices are not those of examples, in ascending order.
    """
    indices = arrays.get("indices")
    if indices is not None:
        size = len(examples.get("example_id", ()))
        ascending = indices.ndim == 1 and indices.dtype.kind in "iu" and _rises(indices, size)
        if not ascending:
            raise InputError(
                f"{path} has indices that are not those of {size} examples in ascending order:"
                f" {FIX}"
            )
        examples = {name: array[indices] for name, array in examples.items()}
    return {**examples, **arrays}


def _rises(indices: np.ndarray, size: int) -> bool:
    return bool((np.diff(np.concatenate([[-1], indices.astype(np.int64), [size]])) > 0).all())


def check_arrays(arrays: dict[str, np.ndarray], task: Task | None, path: Path) -> None:
    """Refuse logits, ids and labels of wrong types, shapes or values.

    Args:
        arrays: By their names.
        task: The task; None where the member does not name it.
        path: The logits' file, for the message.

    Raises:
        InputError: It says what is wrong.
    """
    logits, ids = arrays.get("logits"), arrays.get("example_id")
    labels, groups = arrays.get("labels"), arrays.get("groups")
    outputs = "C" if task is None else task.num_outputs
    if logits is None or ids is None or ids.dtype.kind != "U" or ids.ndim != 1:
        raise InputError(f"{path} has no logits, or no ids of their examples: {FIX}")
    shape = logits.shape
    if len(shape) != 2 or shape[0] != len(ids) or outputs not in ("C", shape[1]):
        raise InputError(
            f"{path} has logits of shape {shape}: ({len(ids)}, {outputs}) is expected, {FIX}"
        )
    if logits.dtype.kind != "f" or not np.isfinite(logits).all():
        raise InputError(f"{path} has logits that are no finite numbers: {FIX}")
    if groups is not None and (groups.dtype.kind not in "iu" or groups.shape != ids.shape):
        raise InputError(f"{path} has groups that are no {len(ids)} whole numbers: {FIX}")
    if labels is None:
        return
    fits = labels.dtype.kind == "f" and labels.shape[:1] == ids.shape
    if not fits or not (task is None or task.label_kind.are_labels(task, labels)):
        raise InputError(f"{path} has labels that are none of its task's: {FIX}")
