"""Commands that are killed: what they wrote stays, and the same command, run again, ends in the
same bits as one that was not killed.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trials import Outcome, Section, World

COMMANDS = ("sweep", "fit", "ensemble", "predict", "report")
REPORTED = ("report", "embeddings")
VOLATILE = ("seconds", "sha256")  # fields of a manifest that two trainings do not share


@dataclass(frozen=True)
class Case:
    """A command, and how it goes on where it was killed.

    Args:
        name: The command.
        args: Its arguments.
        base: The directory that a copy of is what it begins with; None for an empty one.
        again: Gives the arguments by which it goes on in a directory.
    """

    name: str
    args: list[str]
    base: Path | None
    again: Callable[[Path], list[str]]


def case_of(world: World, name: str) -> Case:
    """A sweep, a fit, an ensemble, a predict or a report."""
    if name == "fit":
        fit = world.training("fit")
        return Case(name, fit, None, lambda directory: _resumed(fit, directory))
    if name == "sweep":
        sweep = world.training("sweep")
        return Case(name, sweep, None, lambda directory: sweep)
    removed = {"ensemble": ("ensembles", "report", "embeddings"), "report": REPORTED}
    base = world.new(world.run_directory)
    for folder in removed.get(name, ()):
        shutil.rmtree(base / "run" / folder)
    for file in ("table.csv", "out.csv", "out.json"):
        (base / file).unlink()
    return Case(name, world.later(name), base, lambda directory: world.later(name))


def _resumed(fit: list[str], directory: Path) -> list[str]:
    """A fit goes on from its checkpoint; before it has one, it begins again elsewhere, as it says:
    here in the same place, which is emptied.
    """
    checkpoint = directory / "run" / "last.ckpt"
    if checkpoint.exists():
        return [*fit, "--ckpt_path", "run/last.ckpt"]
    shutil.rmtree(directory / "run", ignore_errors=True)
    return fit


def state(directory: Path) -> dict[str, object]:
    """What two runs of a command have in common: all files, but for times, which a
    fit's checkpoint has, too.
    """
    found: dict[str, object] = {}
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if path.is_dir() or path.name in (".lock", "last.ckpt"):
            continue
        if path.name == "config.yaml":  # of a fit it says which checkpoint it goes on from
            lines = path.read_bytes().splitlines()
            found[name] = [line for line in lines if not line.startswith(b"ckpt_path:")]
        elif path.name == "manifest.json":
            fields = json.loads(path.read_bytes())
            found[name] = {key: fields[key] for key in fields if key not in VOLATILE}
        else:
            found[name] = path.read_bytes()
    return found


def difference(expected: dict[str, object], found: dict[str, object]) -> list[str]:
    """Names of the files that are not the same."""
    names = expected.keys() | found.keys()
    return sorted(name for name in names if expected.get(name) != found.get(name))


def kill_everywhere(world: World, section: Section, name: str, chosen: slice = slice(None)) -> None:
    """Kill a command before all or some of its operations, and run it again."""
    case = case_of(world, name)
    expected, whole = reference(world, case)
    for number in range(whole.operations)[chosen]:
        _trial(world, case, section, expected, f"operation {number}", kill_at=number)


def kill_at_random(world: World, section: Section, name: str, times: int) -> None:
    """Kill a command at random times before its end, until that many were met, and run it again."""
    rng = random.Random(name)
    case = case_of(world, name)
    expected, whole = reference(world, case)
    while section.counts.get(f"{name}: kills", 0) < times:
        after = rng.uniform(0, whole.seconds)
        _trial(world, case, section, expected, f"{after:.2f} s", kill_after=after)


def reference(world: World, case: Case) -> tuple[dict[str, object], Outcome]:
    """What a command leaves that is not killed, and how it ends.

    Raises:
        RuntimeError: It fails, or two runs of it are not the same.
    """
    states = []
    for _ in range(2):
        directory = world.new(case.base)
        whole = world.run(case.args, directory)
        if whole.code != 0:
            raise RuntimeError(f"{case.name}: {whole.err}")
        states.append(state(directory))
        shutil.rmtree(directory)
    if names := difference(*states):
        raise RuntimeError(f"two runs of {case.name} differ in {', '.join(names)}")
    return states[0], whole


def _trial(
    world: World,
    case: Case,
    section: Section,
    expected: dict[str, object],
    when: str,
    **kill: float,
) -> None:
    directory = world.new(case.base)
    before = state(directory)
    killed = world.run(case.args, directory, **kill)  # type: ignore[arg-type]
    if killed.code not in (0, -9):
        section.fail(f"{case.name}, {when}: not killed", killed)
    left = state(directory)
    if lost := [name for name in before if left.get(name) != before[name]]:
        section.fail(f"{case.name}, {when}: lost {', '.join(lost)}")
    section.add(f"{case.name}: kills", killed.code == -9)
    again = world.run(case.again(directory), directory)
    names = difference(expected, state(directory))
    if again.code != 0 or names:
        section.fail(f"{case.name}, killed at {when}, then differs in {names}", again)
    else:
        section.add(f"{case.name}: the same bits")
    shutil.rmtree(directory)
