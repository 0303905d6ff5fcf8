"""The page that has the counts."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from pathlib import Path

from loraens.files import write_atomically

PARTS = {
    "operations": (
        "A kill before every operation",
        "SIGKILL before each call that creates, writes, flushes, renames or removes a file or"
        " directory; then the same command again (of a fit, with its checkpoint where there is"
        " one). Every file must be there that was there before, and at the end all files must be"
        " those of a run that was not killed, bit by bit, but for the seconds in manifests.",
    ),
    "random": (
        "Kills at random times",
        "The same, at times drawn uniformly; some commands had ended by then, and are run again,"
        " too.",
    ),
    "disk": (
        "A full disk",
        "A file system in memory (tmpfs) of a size between what the command finds and what it"
        " needs. It must end in exit code 2 and one sentence that names the file, leave nothing"
        " half written and what was there as it was; with space, the same command must end in the"
        " same bits.",
    ),
    "mutations": (
        "Damaged stores",
        "One file of a finished sweep with ensembles is changed: a bit, a value of JSON, a part"
        " cut off, zeros or more bytes, another file in its place, a link, a directory, or none."
        " Then `compare`, `ensemble`, `predict`, `report` and `sweep` each read it.",
    ),
    "options": (
        "Bad options",
        "Values that no command can use: exit code 2, one sentence, and nothing written.",
    ),
    "hostile": (
        "Hostile files",
        "Pickles under the names of weights, logits, checkpoints and caches; YAML with tags of"
        " Python; settings that name a stranger's modules; backbones with code; links and paths"
        " out of the store; bombs; names that command a terminal. None may run code, change a file"
        " outside, end in a traceback or print an escape sequence.",
    ),
}


def write_page(out: Path, counts: Path) -> None:
    """Write the page of the parts whose counts there are.

    Args:
        out: The page.
        counts: Directory of the counts.
    """
    lines = [
        "# Reliability",
        "",
        "Trials on a BERT of two layers, 32 wide, and 34 made-up texts, each a command in a process"
        " of its own:",
        "",
        "```sh",
        "python tests/faults --out results/reliability.md",
        "```",
        "",
        f"Machine: two CPU cores, Python {'.'.join(platform.python_version_tuple()[:2])}, torch"
        f" {'.'.join(version('torch').split('.')[:2])}; other work beside it. The trials are drawn"
        " with fixed seeds; times of kills depend on the machine.",
        "",
        "| part | failures |",
        "| --- | ---: |",
    ]
    details = []
    for name, (title, text) in PARTS.items():
        parts = sorted(counts.glob(f"{name}*.json"))
        read = [json.loads(path.read_bytes()) for path in parts]
        totals: dict[str, int] = {}
        for section in read:
            for key, number in section["counts"].items():
                totals[key] = totals.get(key, 0) + number
        failures = [failure for section in read for failure in section["failures"]]
        lines.append(f"| {title} | {len(failures)} |")
        details += ["", f"## {title}", "", text, "", "| count | number |", "| --- | ---: |"]
        details += [f"| {key} | {number:,} |" for key, number in totals.items()]
        details += [f"\n- FAILED: {failure.splitlines()[0]}" for failure in failures]
    write_atomically(out, ("\n".join([*lines, *details]) + "\n").encode())
