"""Commands on a disk that is full: a file system in memory of the size that the trial says."""

from __future__ import annotations

import re
import shutil
from functools import partial
from pathlib import Path

from kills import Case, case_of, difference, reference, state
from trials import Section, World, in_child, mount

SIZES = 30
PAGE = 4096  # bytes, by which a file system in memory gives space
ENOUGH = 2**26
FULL = re.compile(r"loraens: (?P<file>\S+): No space left on device")


def fill(world: World, section: Section, name: str, sizes: int = SIZES) -> None:
    """Run a command on disks of some sizes, from what it begins with to what it needs, and again
    where there is space.
    """
    case = case_of(world, name)
    expected, _ = reference(world, case)
    least, most = in_child(lambda: _needed(world, case))
    for number in range(sizes):
        size = least + (most - least) * number // sizes // PAGE * PAGE
        found = in_child(partial(_trial, world, case, size, expected))
        for text in found["failures"]:
            section.fail(f"{name} on {size} bytes: {text}")
        section.add(f"{name}: sizes")
        section.add(f"{name}: {found['end']}")


def _mounted(world: World, case: Case, size: int) -> Path:
    """A new directory on a disk of that size, with what a command begins with."""
    directory = world.new()
    mount(directory, ENOUGH)
    if case.base is not None:
        shutil.copytree(case.base, directory, dirs_exist_ok=True)
    mount(directory, size, again=True)
    return directory


def _used(directory: Path) -> int:
    usage = shutil.disk_usage(directory)
    return usage.used


def _needed(world: World, case: Case) -> tuple[int, int]:
    """Bytes that a command finds taken, and those that it leaves taken."""
    directory = _mounted(world, case, ENOUGH)
    before = _used(directory)
    world.run(case.args, directory)
    return max(before, PAGE), _used(directory)


def _trial(world: World, case: Case, size: int, expected: dict[str, object]) -> dict[str, object]:
    """What was wrong in one trial, and how the command ended."""
    directory = _mounted(world, case, size)
    before = state(directory)
    failures = []
    outcome = world.run(case.args, directory)
    left = state(directory)
    named = FULL.fullmatch((outcome.sentence or "").strip())
    if outcome.code == 0:
        end = "had space"
    elif outcome.code == 2 and named:
        end = "one sentence that names the file"
    else:
        end = "another end"
        failures.append(f"[{outcome.code}] {outcome.err[-1500:]}")
    if lost := [name for name in before if left.get(name) != before[name]]:
        failures.append(f"lost {lost}")
    if parts := [name for name in left if name.endswith(".part")]:
        failures.append(f"left {parts}")
    half = [name for name in left if name not in before and left[name] != expected.get(name)]
    if outcome.code == 0 and half:
        failures.append(f"ended well with other bits in {half}")
    mount(directory, ENOUGH, again=True)
    again = world.run(case.again(directory), directory)
    names = difference(expected, state(directory))
    if again.code != 0 or names:
        failures.append(f"then differs in {names}: [{again.code}] {again.err[-1500:]}")
    return {"failures": failures, "end": end}
