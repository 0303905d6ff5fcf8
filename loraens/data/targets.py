"""What a teacher predicts, as a file: held out for labelled texts, and for unlabelled ones.

Shape letters: N labelled examples, U unlabelled texts, K classes or labels, T teachers.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from loraens.data.files import open_table
from loraens.data.folds import text_key
from loraens.data.splits import Split, row_texts
from loraens.data.tables import Position
from loraens.data.tokens import TokenSplit
from loraens.errors import InputError
from loraens.files import write_atomically
from loraens.tasks import Task

UNLABELLED = "unlabelled"
FIX = "choose another directory (--out), or restore it"


@dataclass(frozen=True)
class Targets:
    """Probabilities of a teacher, or values where there are no classes.

    Of a teacher of K folds there is one of each fold, of the members of that fold alone, for those
    students that are scored on its part, and one of all members: T is K + 1. Else it is 1.

    Args:
        labelled: `(N, ...)` held out, of each labelled example; NaN where the teacher has no
            prediction that is.
        unlabelled: `(T, U, ...)`.
        teacher: SHA-256 of the teacher's record.
        texts: `digest_of` the texts.
    """

    labelled: np.ndarray
    unlabelled: np.ndarray
    teacher: str
    texts: str

    @property
    def digest(self) -> str:
        """SHA-256 of the targets and of what they are of."""
        digest = hashlib.sha256(f"{self.teacher} {self.texts}".encode())
        digest.update(self.labelled.tobytes())
        digest.update(self.unlabelled.tobytes())
        return digest.hexdigest()

    def write(self, path: Path) -> None:
        """Write the file."""
        buffer = io.BytesIO()
        np.savez(buffer, **vars(self))
        write_atomically(path, buffer.getvalue())

    @classmethod
    def read(cls, path: Path) -> Targets:
        """Read the file.

        Raises:
            InputError: It is missing or no such file.
        """
        try:
            with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                arrays = file["labelled"], file["unlabelled"]
                return cls(*arrays, str(file["teacher"]), str(file["texts"]))
        except FileNotFoundError:
            raise InputError(f"{path} is missing: {FIX}") from None
        except (zipfile.BadZipFile, zlib.error, ValueError, KeyError, TypeError, EOFError) as error:
            raise InputError(f"{path} is no file of targets ({error}): {FIX}") from None


def unlabelled_texts(task: Task, files: Sequence[str], known: Iterable[Split]) -> Split | None:
    """The texts of some files, without those that are among labelled ones, which students are
    trained or scored on, and each once; labels are not read. None without files.

    Args:
        task: The task, whose text columns the files have.
        files: As `open_table` takes them.
        known: The splits of the task.

    Raises:
        InputError: A file cannot be used, or none of its texts is new.
    """
    if not files:
        return None
    labelled = [split for split in known if split.labels is not None]
    seen = {text_key(texts) for split in labelled for texts in split.texts}
    ids: list[str] = []
    found: list[tuple[str, ...]] = []
    dropped: dict[str, list[Position]] = {}
    for number, file in enumerate(files):
        with open_table(file) as table:
            table.require(task.text_columns, f"the text columns of task {task.name}")
            for position, row in table.rows:
                try:
                    texts = None if row is None else row_texts(row, task.text_columns)
                except ValueError as error:
                    raise InputError(f"{table.at(position)}: {error}") from None
                if texts is None or (key := text_key(texts)) in seen:
                    reason = "no text" if texts is None else "repeated or labelled"
                    dropped.setdefault(reason, []).append(position)
                    continue
                seen.add(key)
                ids.append(f"{number}/{position}")
                found.append(texts)
    names = ", ".join(files)
    if not found:
        raise InputError(f"texts {names}: no text is there that is not labelled, give others")
    return Split(UNLABELLED, ids, found, labels=None, origin=names, dropped=dropped)


def digest_of(train: TokenSplit, unlabelled: Split | None) -> str:
    """SHA-256 of the texts that a teacher is asked for.

    Args:
        train: The labelled ones.
        unlabelled: The others.
    """
    digest = hashlib.sha256(train.fingerprint.encode())
    for texts in unlabelled.texts if unlabelled else ():
        digest.update("\x1f".join(texts).encode() + b"\x1e")
    return digest.hexdigest()
