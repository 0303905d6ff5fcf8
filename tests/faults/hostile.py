"""Files that would run code, leave their directory, or command a terminal: none of it happens."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from trials import Outcome, Section, World

Make = Callable[[Path, "Payload"], list[Any]]  # writes hostile files; gives a command to read them


class Payload:
    """What leaves a file where it is run.

    Args:
        mark: The file.
    """

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))

    @property
    def python(self) -> str:
        """Source of a module that does it."""
        return f"import pathlib\npathlib.Path({str(self.mark)!r}).touch()\n"

    def pickled(self) -> bytes:
        """A pickle that does it."""
        return pickle.dumps(self)

    def torch(self) -> bytes:
        """A file of `torch.save` that does it."""
        buffer = io.BytesIO()
        torch.save({"state_dict": self}, buffer)
        return buffer.getvalue()

    def npz(self) -> bytes:
        """An .npz file of pickled objects."""
        buffer = io.BytesIO()
        np.savez(buffer, logits=np.array([self, self], dtype=object))
        return buffer.getvalue()

    def tags(self) -> list[str]:
        """YAML that does it by tags of Python."""
        command = f"touch {self.mark}"
        return [
            f"data: !!python/object/apply:os.system ['{command}']\n",
            f"trainer: !!python/object/new:os.system ['{command}']\n",
            f"? !!python/object/apply:subprocess.check_call [['touch', '{self.mark}']]\n: 1\n",
        ]


def _over(pattern: str, content: Callable[[Payload], bytes], command: str) -> tuple[str, Any]:
    """A file of the store whose content is another one."""

    def make(world: World, directory: Path, payload: Payload) -> list[Any]:
        path = sorted(directory.glob(pattern))[0]
        path.write_bytes(content(payload))
        return world.training("sweep") if command == "sweep" else world.later(command)

    return f"{command}: {pattern} of other content", make


def _in_store() -> Iterator[tuple[str, Any]]:
    """Pickles under the names of the store's files."""
    for command in ("ensemble", "predict", "sweep"):
        yield _over("run/r*/epoch-*/*.safetensors", Payload.pickled, command)
        yield _over("run/r*/epoch-*/*.safetensors", Payload.torch, command)
        yield _over("run/r*/manifest.json", Payload.pickled, command)
    for command in ("ensemble", "report"):
        yield _over("run/r*/epoch-*/sts-dev.npz", Payload.npz, command)
        yield _over("run/r*/epoch-*/sts-dev.npz", Payload.pickled, command)
        yield _over("run/examples/sts-dev.npz", Payload.npz, command)
    yield _over("run/embeddings/*.npz", Payload.pickled, "report")
    yield _over("run/embeddings/*.npz", Payload.npz, "report")
    yield _over("run/ensembles/recommended", Payload.pickled, "predict")
    yield _over("run/ensembles/*/ensemble.json", Payload.pickled, "predict")
    yield _over("run/sweep.json", Payload.pickled, "sweep")


def _unsigned_logits(world: World, directory: Path, payload: Payload) -> list[Any]:
    """Pickled logits that the manifest gives the checksum of."""
    import hashlib

    member = sorted(directory.glob("run/r*/manifest.json"))[0]
    fields = json.loads(member.read_bytes())
    for name in fields["files"]:
        if name.endswith(".npz"):
            (member.parent / name).write_bytes(payload.npz())
            fields["files"][name] = hashlib.sha256(payload.npz()).hexdigest()
        if name.endswith(".safetensors"):
            (member.parent / name).write_bytes(payload.torch())
            fields["files"][name] = hashlib.sha256(payload.torch()).hexdigest()
    del fields["sha256"]
    member.write_text(json.dumps(fields))
    return world.later("ensemble")


def _unsigned_weights(world: World, directory: Path, payload: Payload) -> list[Any]:
    _unsigned_logits(world, directory, payload)
    (member,) = sorted(directory.glob("run/r*/manifest.json"))[:1]
    return ["predict", "--model", member.parent, "--text", "a", "--text2", "b"]


def _checkpoint(content: Callable[[Payload], bytes], command: str) -> Any:
    """A checkpoint to go on from, or a pack of a sweep."""

    def make(world: World, directory: Path, payload: Payload) -> list[Any]:
        if command == "sweep":
            (directory / "run" / "packs").mkdir()
            name = sorted(directory.glob("run/r*"))[0].name
            (directory / "run" / "packs" / f"0-{name}.ckpt").write_bytes(content(payload))
            (directory / "run" / name / "manifest.json").unlink()
            return world.training("sweep")
        (directory / "run" / "last.ckpt").write_bytes(content(payload))
        return [*world.training(command), "--ckpt_path", "run/last.ckpt"]

    return make


def _settings(text: Callable[[Payload], str], command: str) -> Any:
    """The settings of a run."""

    def make(world: World, directory: Path, payload: Payload) -> list[Any]:
        (directory / "evil.py").write_text(payload.python + "class Evil:\n    pass\n")
        (directory / "run" / "config.yaml").write_text(text(payload))
        if command == "report":
            return world.later("report")
        return [command, "--config", "run/config.yaml"]

    return make


def _class(section: str) -> Callable[[Payload], str]:
    """Settings that name a class of a module in the working directory."""

    def text(payload: Payload) -> str:
        named = {"class_path": "evil.Evil"}
        values = {
            "data": named,
            "callbacks": {"callbacks": [named]},
            "logger": {"logger": [named]},
            "plugins": {"plugins": "list[evil.Evil]"},
        }
        section_name = "data" if section == "data" else "trainer"
        return yaml.safe_dump({section_name: values[section]})

    return text


def _function(payload: Payload) -> str:
    arguments = {"on_fit_start": "os.abort"}
    callback = "lightning.pytorch.callbacks.LambdaCallback"
    callbacks = {"class_path": callback, "init_args": arguments}
    return yaml.safe_dump({"trainer": {"callbacks": callbacks}})


def _backbone(change: Callable[[Path, Payload], None]) -> Any:
    """A backbone of a stranger's, by `--model.backbone` and by a manifest."""

    def make(world: World, directory: Path, payload: Payload) -> list[Any]:
        backbone = Path(shutil.copytree(world.backbone, directory / "backbone"))
        change(backbone, payload)
        shutil.rmtree(directory / "run")
        return [*world.training("fit"), "--model.backbone", backbone]

    return make


def _moved(change: Callable[[Path, Payload], None]) -> Any:
    def make(world: World, directory: Path, payload: Payload) -> list[Any]:
        backbone = Path(shutil.copytree(world.backbone, directory / "backbone"))
        change(backbone, payload)
        return [*world.later("predict"), "--backbone", backbone]

    return make


def _custom_code(backbone: Path, payload: Payload) -> None:
    for name, entry in (
        ("config.json", {"AutoConfig": "evil.C", "AutoModel": "evil.M", "AutoTokenizer": "evil.T"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["evil.T", "evil.T"]}),
    ):
        fields = json.loads((backbone / name).read_text())
        fields |= {"auto_map": entry, "trust_remote_code": True}
        fields.pop("architectures", None)
        if name == "config.json":
            fields["model_type"] = "evil"
        (backbone / name).write_text(json.dumps(fields))
    (backbone / "evil.py").write_text(payload.python)


def _custom_tokenizer(backbone: Path, payload: Payload) -> None:
    (backbone / "tokenizer.json").unlink()
    fields = {"tokenizer_class": "T", "auto_map": {"AutoTokenizer": ["evil.T", "evil.T"]}}
    (backbone / "tokenizer_config.json").write_text(json.dumps(fields))
    (backbone / "evil.py").write_text(payload.python)


def _pickled_weights(backbone: Path, payload: Payload) -> None:
    (backbone / "model.safetensors").unlink()
    (backbone / "pytorch_model.bin").write_bytes(payload.torch())


def _pickle_for_weights(backbone: Path, payload: Payload) -> None:
    (backbone / "model.safetensors").write_bytes(payload.torch())


def _link(pattern: str, command: str) -> Any:
    """A link out of the store in a directory's or file's place."""

    def make(world: World, directory: Path, payload: Payload) -> list[Any]:
        path = sorted(directory.glob(pattern))[0]
        outside = directory / "outside"
        path.rename(outside)
        if outside.is_dir():
            (outside / "notes.ckpt").write_text("mine")
        path.symlink_to(outside)
        return world.training("sweep") if command == "sweep" else world.later(command)

    return make


def _upward(place: str) -> Any:
    """An ensemble that names a member elsewhere."""

    def make(world: World, directory: Path, payload: Payload) -> list[Any]:
        path = sorted(directory.glob("run/ensembles/*/ensemble.json"))[0]
        fields = json.loads(path.read_bytes())
        del fields["sha256"]
        fields["members"][0]["directory"] = place.format(directory=directory)
        path.write_text(json.dumps(fields))
        return ["predict", "--model", path.parent, "--text", "a", "--text2", "b"]

    return make


def _texts(name: str, content: Callable[[Payload], bytes], *more: str) -> Any:
    """A file of texts to predict."""

    def make(world: World, directory: Path, payload: Payload) -> list[Any]:
        (directory / name).write_bytes(content(payload))
        model = ["--model", "run/ensembles/recommended"]
        return ["predict", *model, "--input", name, "--output", "told.jsonl", *more]

    return make


def _bomb(payload: Payload) -> bytes:
    """1 GiB of one character, in about 1 MB."""
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb") as file:
        for _ in range(1024):
            file.write(b"a" * 2**20)
    return packed.getvalue()


def _zip_bomb(payload: Payload) -> bytes:
    """A workbook whose sheet is 256 MiB of blanks."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("[Content_Types].xml", " " * 2**28)
    return buffer.getvalue()


def _controls(payload: Payload) -> bytes:
    """Names and texts that command a terminal."""
    return b"sentence1\x1b[2J,sentence2\n\x1b]0;title\x07,b\n"


def _no_text(payload: Payload) -> bytes:
    return b"sentence1,sentence2,\x1b[2J\na,b\n"


def _deep(payload: Payload) -> bytes:
    return b"[" * 200_000 + b"]" * 200_000


def _names(world: World, directory: Path, payload: Payload) -> list[Any]:
    """A run whose names command a terminal."""
    path = sorted(directory.glob("run/r*/manifest.json"))[0]
    fields = json.loads(path.read_bytes())
    del fields["sha256"]
    fields["name"] = "\x1b[2J"
    fields["settings"]["backbone"] = "\x1b]0;title\x07[red]"
    path.write_text(json.dumps(fields))
    path.parent.rename(path.parent.with_name("r1\x1b[31m"))
    return ["compare", "run"]


def _cached(world: World, directory: Path, payload: Payload) -> list[Any]:
    """Pickles in the cache of tokens."""
    cache = Path(shutil.copytree(world.directory / "cache", directory / "cache"))
    for path in cache.glob("tokens/*.npz"):
        buffer = io.BytesIO()
        np.savez(buffer, ids=np.array([payload], dtype=object))
        path.write_bytes(buffer.getvalue())
    shutil.rmtree(directory / "run")
    return world.training("fit")


def hostile_files() -> dict[str, Any]:
    """What writes hostile files, by name."""
    files: dict[str, Any] = dict(_in_store())
    files["forged manifest, logits"] = _unsigned_logits
    files["forged manifest, weights"] = _unsigned_weights
    for command in ("fit", "validate", "test", "sweep"):
        files[f"{command}: pickled checkpoint"] = _checkpoint(Payload.torch, command)
    files["fit: checkpoint that is a pickle"] = _checkpoint(Payload.pickled, "fit")
    files["sweep: pack that is a pickle"] = _checkpoint(Payload.pickled, "sweep")
    for command in ("fit", "sweep", "report"):
        for number in range(3):
            text = _settings(lambda payload, number=number: payload.tags()[number], command)
            files[f"{command}: YAML tag {number}"] = text
        for section in ("data", "callbacks", "logger", "plugins"):
            files[f"{command}: class of a stranger in {section}"] = _settings(
                _class(section), command
            )
        files[f"{command}: a function"] = _settings(_function, command)
    for name, change in (
        ("custom code", _custom_code),
        ("tokenizer with custom code", _custom_tokenizer),
        ("pickled weights", _pickled_weights),
        ("pickle under the name of safetensors", _pickle_for_weights),
    ):
        files[f"fit: backbone with {name}"] = _backbone(change)
        files[f"predict: backbone with {name}"] = _moved(change)
    files["predict: link for an epoch"] = _link("run/r*/epoch-*", "predict")
    files["predict: link for a member"] = _link("run/r1*", "predict")
    files["sweep: link for an epoch"] = _link("run/r*/epoch-*", "sweep")
    files["ensemble: link for logits"] = _link("run/r*/epoch-*/sts-dev.npz", "ensemble")
    files["predict: member upward"] = _upward("../../../../elsewhere")
    files["predict: absolute member"] = _upward("{directory}/run/r1-c3-s0-lr0.01")
    files["predict: gzip bomb"] = _texts("texts.csv.gz", _bomb)
    files["predict: workbook bomb"] = _texts("texts.xlsx", _zip_bomb)
    files["predict: names of columns that command a terminal"] = _texts("texts.csv", _controls)
    files["predict: another such column"] = _texts("texts.csv", _no_text)
    files["predict: deep JSON"] = _texts("texts.json", _deep)
    for suffix in ("csv", "parquet", "arrow", "xlsx", "csv.gz", "csv.zst"):
        files[f"predict: pickle as {suffix}"] = _texts(f"texts.{suffix}", Payload.pickled)
    files["compare: names that command a terminal"] = _names
    files["fit: pickled tokens in the cache"] = _cached
    return files


def open_hostile(world: World, section: Section, step: int = 1) -> None:
    """Have a command read each hostile file."""
    import os
    import sys

    for name, make in list(hostile_files().items())[::step]:
        directory = world.new(world.run_directory)
        payload = Payload(world.directory / f"ran-{section.counts.get('hostile files', 0)}")
        args = make(world, directory, payload)
        mine = {p: p.read_bytes() for p in directory.glob("outside/**/*") if p.is_file()}

        def before(directory: Path = directory) -> None:
            sys.path.insert(0, str(directory))
            if (directory / "cache").exists():
                os.environ["LORAENS_CACHE"] = str(directory / "cache")

        outcome = world.run(args, directory, before=before)
        section.add("hostile files")
        _judge(section, name, outcome, payload, mine)
        shutil.rmtree(directory)


def _judge(
    section: Section, name: str, outcome: Outcome, payload: Payload, mine: dict[Path, bytes]
) -> None:
    problem = None
    if payload.mark.exists():
        problem = "its code ran"
    elif outcome.traceback or (outcome.code != 0 and outcome.sentence is None):
        problem = "traceback"
    elif "\x1b" in outcome.out + outcome.err:
        problem = "an escape sequence"
    elif any(not path.exists() or path.read_bytes() != mine[path] for path in mine):
        problem = "changed files outside"
    if problem is not None:
        section.fail(f"{name}: {problem}", outcome)
    else:
        section.add("no code run")
        section.add("refused in one sentence" if outcome.code else "harmless: read without it")
