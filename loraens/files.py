"""Files written so that a reader sees all of one or nothing, and removed only where they are ours.

A file is written beside its place, flushed to the disk, and renamed; then its directory is flushed,
so that the new name outlives a loss of power, too.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedWriter, FileIO
from pathlib import Path
from typing import Any, BinaryIO

import psutil

_HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
_PART = r"\.{name}\.(?:([0-9a-f]{{8}})-)?(\d{{1,9}})\.part"  # host and process that write it
PART = _PART.format(name=".*")  # a file that a killed writer left


class _Raw(FileIO):
    """A file whose errors name another one, which it will become.

    Args:
        path: The file.
        final: The one that errors name.
    """

    def __init__(self, path: Path, final: Path) -> None:
        super().__init__(path, "wb")
        self.final = final

    def write(self, content: Any) -> int:
        """Write some bytes; a full disk says only here that it is full."""
        with naming(self.final):
            return super().write(content)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Have errors of the file system name a file: those of a write or a flush name none, and those
    of a rename the temporary one.
    """
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees all of it or nothing.

    Raises:
        OSError: It cannot be written; the error names the file, which is as it was.
    """
    with replacing(path) as file:
        file.write(content)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file under a temporary name, which is renamed at the end, so that a reader sees all of it
    or nothing. What killed writers of it left is removed.

    Raises:
        OSError: It cannot be written; the error names the file, which is as it was.
    """
    make_directory(path.parent)
    _remove_parts(path)
    beside = path.with_name(f".{path.name}.{_HOST}-{os.getpid()}.part")
    try:
        with naming(path):
            raw = _Raw(beside, path)
        with BufferedWriter(raw) as file:
            yield file
            file.flush()
            with naming(path):
                os.fsync(file.fileno())
        with naming(path):
            beside.replace(path)
            _sync(path.parent)
    finally:
        beside.unlink(missing_ok=True)


def _remove_parts(path: Path) -> None:
    """Remove what writers of a file left that do not run any more; those of other hosts may run."""
    for name in os.listdir(path.parent):
        part = re.fullmatch(part_of(path.name), name)
        if part and part[1] in (None, _HOST) and not psutil.pid_exists(int(part[2])):
            path.with_name(name).unlink(missing_ok=True)


def part_of(name: str) -> str:
    """Regular expression of the names of files that become the file of a name."""
    return _PART.format(name=re.escape(name))


@contextmanager
def new_directory(directory: Path) -> Iterator[Path]:
    """A directory under a temporary name, which is renamed at the end, so that a reader sees all of
    it or nothing.

    Args:
        directory: The directory, which must be new or empty.

    Raises:
        OSError: It cannot be written.
    """
    work = directory.with_name(f".{directory.name}.{_HOST}-{os.getpid()}.part")
    make_directory(work)
    try:
        yield work
        work.replace(directory)
        _sync(directory.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def make_directory(directory: Path) -> None:
    """Make a directory and those above it, where they are missing."""
    if not directory.is_dir():
        make_directory(directory.parent)
        directory.mkdir(exist_ok=True)
        _sync(directory.parent)


def _sync(directory: Path) -> None:
    """Flush the names in a directory to the disk."""
    if os.name == "nt":  # where directories cannot be opened
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def checksum(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def remove_files(directory: Path, names: str) -> None:
    """Remove the files of a directory that have a name of ours, and the directory if it is then
    empty; links are neither followed nor removed.

    Args:
        directory: The directory; nothing is done where it is a link or is not there.
        names: Regular expression of whole names.
    """
    if directory.is_symlink() or not directory.is_dir():
        return
    for path in list(directory.iterdir()):
        if re.fullmatch(names, path.name) and path.is_file() and not path.is_symlink():
            path.unlink()
    if not any(directory.iterdir()):
        directory.rmdir()
