"""Stores in which one file is not what was written: refused, or without effect on the answer."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kills import difference, state
from trials import Outcome, Section, World

COMMANDS = ("compare", "ensemble", "predict", "report", "sweep")


def _flip(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(bytes(content))


def _cut(path: Path, rng: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(len(content))])


def _append(path: Path, rng: random.Random) -> None:
    path.write_bytes(path.read_bytes() + rng.randbytes(rng.randrange(1, 100)))


def _zeros(path: Path, rng: random.Random) -> None:
    content = path.read_bytes()
    start = rng.randrange(len(content))
    end = min(len(content), start + rng.randrange(1, 512))
    path.write_bytes(content[:start] + bytes(end - start) + content[end:])


def _delete(path: Path, rng: random.Random) -> None:
    path.unlink()


def _directory(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.mkdir()


def _link(path: Path, rng: random.Random) -> None:
    target = path.with_name(path.name + MOVED)
    path.rename(target)
    _flip(target, rng)
    path.symlink_to(target)


def _swap(path: Path, rng: random.Random) -> None:
    """Another file of the store of the same kind, in its place."""
    run = next(parent for parent in path.parents if parent.name == "run")
    others = [
        other
        for other in sorted(run.rglob(f"*{path.suffix}"))
        if other.is_file() and other.read_bytes() != path.read_bytes()
    ]
    if others:
        path.write_bytes(rng.choice(others).read_bytes())
    else:
        _flip(path, rng)


def leaves(fields: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of all values in JSON fields."""
    if place:
        yield place
    if isinstance(fields, dict | list):
        items = fields.items() if isinstance(fields, dict) else enumerate(fields)
        for key, value in items:
            yield from leaves(value, (*place, key))


def _altered(path: Path, rng: random.Random) -> dict[str, Any] | list[Any] | None:
    """The fields of a JSON file with one that is another; None where it is none."""
    try:
        fields: dict[str, Any] | list[Any] = json.loads(path.read_bytes())
    except ValueError:
        return None
    place = rng.choice(list(leaves(fields)))
    inner: Any = fields
    for key in place[:-1]:
        inner = inner[key]
    values = (None, -1, 0, 0.5, 1e300, 10**30, True, "", "../../x", "/etc", "\x1b[2J", [], {})
    inner[place[-1]] = rng.choice([value for value in values if value != inner[place[-1]]])
    return fields


def _value(path: Path, rng: random.Random) -> None:
    """Another value in a JSON file, whose checksum stays what it was."""
    fields = _altered(path, rng)
    if fields is None:
        _flip(path, rng)
    else:
        path.write_text(json.dumps(fields))


def _forged(path: Path, rng: random.Random) -> None:
    """Another value in a JSON file without a checksum, as those of older versions."""
    fields = _altered(path, rng)
    if fields is None:
        _cut(path, rng)
    else:
        if isinstance(fields, dict):  # and no list, which has none
            fields.pop("sha256", None)
        path.write_text(json.dumps(fields))


MOVED = ".moved"  # where the mutations put what they link to
UNREAD = ("ensembles", "embeddings", ".loraens")  # what a sweep does not read
KINDS: dict[Callable[[Path, random.Random], None], int] = {  # with how often they are drawn
    _flip: 25,
    _value: 20,
    _forged: 10,
    _cut: 10,
    _delete: 10,
    _swap: 10,
    _zeros: 5,
    _append: 4,
    _directory: 3,
    _link: 3,
}


def mutate(world: World, section: Section, numbers: range) -> None:
    """Change a file of a store at random, and have each command read it.

    Args:
        world: The world.
        section: Where it is counted.
        numbers: Seeds of the mutations.
    """
    base = world.new(world.run_directory)
    for name in ("table.csv", "out.csv", "out.json"):
        (base / name).unlink()
    shutil.rmtree(base / "run" / "report")
    expected = {}
    for name in COMMANDS:
        directory = world.new(base)
        outcome = world.run(_arguments(world, name), directory)
        expected[name] = state(directory), _lines(outcome)
        shutil.rmtree(directory)
    for number in numbers:
        _mutation(world, section, base, number, expected)


def _arguments(world: World, name: str) -> list[str]:
    if name == "sweep":
        return world.training("sweep")
    texts = ["--texts", "false"] if name == "report" else []
    out = ["--out", "out"] if name in ("ensemble", "report") else []
    return [*world.later(name), *out, *texts]


def _lines(outcome: Outcome) -> set[str]:
    return {*outcome.out.splitlines(), *outcome.err.splitlines()}


def _mutation(
    world: World,
    section: Section,
    base: Path,
    number: int,
    expected: dict[str, tuple[dict[str, object], set[str]]],
) -> None:
    rng = random.Random(number)
    names = [path.relative_to(base) for path in sorted((base / "run").rglob("*"))]
    file = rng.choice([n for n in names if (base / n).is_file() and (base / n).stat().st_size])
    (kind,) = rng.choices(list(KINDS), list(KINDS.values()))
    section.add("mutations")
    for name in COMMANDS:
        directory = world.new(base)
        kind(directory / file, random.Random(number))
        outcome = world.run(_arguments(world, name), directory)
        section.add("runs")
        what = f"mutation {number}, {kind.__name__[1:]} of {file}, {name}"
        if outcome.traceback or (outcome.code != 0 and outcome.sentence is None):
            section.fail(f"{what}: traceback", outcome)
        elif "\x1b" in outcome.out + outcome.err:
            section.fail(f"{what}: an escape sequence", outcome)
        elif outcome.code != 0:
            section.add("refused in one sentence")
        else:
            answer, printed = expected[name]
            changed = set(difference(answer, _state(directory)))
            changed -= {n for n in changed if n.endswith(MOVED)}
            if name == "sweep":  # mends its own files, but not what others make of them
                changed = {n for n in changed if n.split("/")[1] not in UNREAD}
            else:  # reads the run, and writes elsewhere
                changed = {n for n in changed if not n.startswith("run/")}
            said = [line for line in _lines(outcome) - printed if _names(line, file)]
            if not changed and _lines(outcome) <= printed | set(said):
                section.add("the same answer")
            elif said:
                section.add("another answer, with a sentence that names the file or its member")
            elif kind is _forged:
                section.add("another answer to a record without a checksum, as of older versions")
            else:
                lines = sorted(_lines(outcome) - printed)
                section.fail(f"{what}: misread, {sorted(changed)} {lines[:9]}")
        shutil.rmtree(directory)


def _state(directory: Path) -> dict[str, object]:
    """As `state`, of a directory in which a manifest may be no JSON."""
    try:
        return state(directory)
    except (ValueError, KeyError, OSError, AttributeError, TypeError):
        paths = [path for path in directory.rglob("*") if path.is_file()]
        return {path.relative_to(directory).as_posix(): path.read_bytes() for path in paths}


def _names(line: str, file: Path) -> bool:
    """Whether a sentence names a file, or the member or ensemble that it is of."""
    return any(part in line for part in file.parts[1:] if part not in ("ensembles", "logits"))
