"""`python tests/faults --out results/reliability.md`: kills, full disks, damaged stores, bad
options and hostile files, on tiny models; the page has the counts. `--quick` makes few trials.

Each part runs in a process of its own and leaves its counts in a file. What has counts is not run
again, so that what was interrupted goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import trials

if __name__ == "__main__":
    trials.prepare()

from disk import fill
from hostile import open_hostile
from kills import COMMANDS, kill_at_random, kill_everywhere
from mutations import mutate
from options import refuse
from page import write_page
from trials import Section, World

SHARES = 20  # of the mutations and options, each a part
KILLED = {"sweep": 9, "fit": 5, "report": 3}  # the same of the operations of a command

Part = Callable[[World, Section], None]


def parts(quick: bool) -> dict[str, Part]:
    """The parts by name."""
    found: dict[str, Part] = {}
    if quick:
        mutations, shares = range(3), [slice(0, None, 60)]
    else:
        mutations, shares = range(1000), [slice(share, None, SHARES) for share in range(SHARES)]
    for name in ("ensemble", "predict") if quick else COMMANDS:
        count = 1 if quick else KILLED.get(name, 1)
        for share in range(count):
            chosen = slice(share, None, 9 if quick else count)
            operations = partial(kill_everywhere, name=name, chosen=chosen)
            found[f"operations-{name}-{share}"] = operations
        found[f"disk-{name}"] = partial(fill, name=name, sizes=1 if quick else 30)
    for name in ("ensemble",) if quick else COMMANDS:
        found[f"random-{name}"] = partial(kill_at_random, name=name, times=2 if quick else 20)
    for share, chosen in enumerate(shares):
        found[f"mutations-{share}"] = partial(mutate, numbers=mutations[chosen])
        found[f"options-{share}"] = partial(refuse, chosen=chosen)
    found["hostile"] = partial(open_hostile, step=20 if quick else 1)
    return found


def run(world: World, name: str, part: Part, counts: Path) -> None:
    """Run a part; its counts are in a file then."""
    started = time.monotonic()
    section = Section(name)
    part(world, section)
    section.seconds = time.monotonic() - started
    print(f"{name}: {section.counts}, {len(section.failures)} failures", flush=True)
    (counts / f"{name}.json").write_text(json.dumps(asdict(section), indent=1))


def run_all(world: World, chosen: dict[str, Part], counts: Path, jobs: int) -> bool:
    """Run parts, so many at once, each in a child; returns whether all came to their end."""
    waiting = list(chosen.items())
    running: set[int] = set()
    ended = True
    while waiting or running:
        if waiting and len(running) < jobs:
            name, part = waiting.pop(0)
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    run(world, name, part, counts)
                    code = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    sys.stderr.flush()
                    os._exit(code)
            running.add(child)
        else:
            child, status = os.wait()
            running.discard(child)
            ended &= status == 0
    return ended


def main() -> int:
    """Run the parts; 1 where one has failures."""
    parser = argparse.ArgumentParser(prog="python tests/faults", description=__doc__)
    parser.add_argument("--out", type=Path, help="the page")
    parser.add_argument("--counts", type=Path, default=Path("build/faults"), help="counts of parts")
    parser.add_argument("--part", nargs="+", help="begins of the names of some parts")
    parser.add_argument("--jobs", type=int, default=2, help="parts that run at once")
    parser.add_argument("--quick", action="store_true", help="a few trials of some parts")
    given = parser.parse_args()
    given.counts.mkdir(parents=True, exist_ok=True)
    chosen = {
        name: part
        for name, part in parts(given.quick).items()
        if name.startswith(tuple(given.part or [""]))
    }
    world = World()
    try:
        left = {n: part for n, part in chosen.items() if not (given.counts / f"{n}.json").exists()}
        ended = run_all(world, left, given.counts, given.jobs)
    finally:
        world.close()
    if not ended:
        return 1
    if given.out is not None:
        write_page(given.out, given.counts)
    sections = [json.loads((given.counts / f"{name}.json").read_bytes()) for name in chosen]
    return int(any(section["failures"] for section in sections))


if __name__ == "__main__":
    sys.exit(main())
