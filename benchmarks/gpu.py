"""Everything that is to be known of a GPU, in one command of at most nine minutes.

    python benchmarks/gpu.py --data DIR [--out DIR] [--backbone DIR] [--wheels DIR]
    python benchmarks/gpu.py --device cpu --quick

Checks first: masks are equal on both devices; the fast path, with kernels and without, equals the
stock one in float32 and bfloat16; five members in a pack equal each alone; two packs take the
memory of one. Then training steps are timed against PEFT with `transformers.Trainer`, on MiniLM and
in BERT-base's shape, and then the paper's grid for STS is trained on MiniLM, for as many epochs as
fit. Each part is a process of its own, and gpu.json and gpu.md are written after each.

It needs PyTorch, Lightning, `transformers` and `peft`, and no network. What else is missing comes
from a folder of wheels, filled on another machine with the same Python by

    pip download -d DIR --no-deps -c constraints.txt PACKAGES

These are annotated_types, docstring_parser, jsonargparse, pydantic, pydantic_core, scipy,
typeshed_client and typing_inspection. What is installed already is left as it is.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PARTS = {  # name: words, and the share of the time that is left which it may take
    "masks": ("masks are the same bits on both devices", 0.2),
    "equality": ("fast path against the stock one", 0.3),
    "packs": ("a pack of 5 against each member alone", 0.3),
    "memory": ("memory of two packs, one after the other", 0.3),
    "arms": ("training steps, MiniLM", 0.35),
    "arms-bert": ("training steps, BERT-base's shape", 0.4),
    "grid": ("the grid for STS on MiniLM", 1.0),
}
RESERVE = 10.0  # seconds for writing and for ending processes


def install(wheels: Path, target: Path) -> None:
    """Install the wheels of a folder whose packages are not here into a directory."""
    missing = [wheel for wheel in sorted(wheels.glob("*.whl")) if not installed(wheel.name)]
    if missing:
        options = ["--no-index", "--no-deps", "--quiet", "--target", str(target)]
        command = [sys.executable, "-m", "pip", "install", *options, *map(str, missing)]
        subprocess.run(command, check=True)


def installed(wheel: str) -> bool:
    """Whether the package of a wheel is installed, in whatever version."""
    try:
        version(wheel.partition("-")[0].replace("_", "-"))
    except PackageNotFoundError:
        return False
    return True


def run_part(
    name: str, arguments: argparse.Namespace, environment: dict[str, str], seconds: float, seen: Any
) -> dict[str, Any]:
    """The result of a part, or in words why there is none."""
    scratch = Path(environment["LORAENS_SCRATCH"])
    result = scratch / f"{name}.json"
    (scratch / "seen.json").write_text(json.dumps(seen))
    part = Path(__file__).with_name("gpu_parts.py")
    command = [sys.executable, str(part), name, "--result", str(result)]
    command += ["--device", arguments.device, "--backbone", arguments.backbone]
    command += ["--seconds", f"{seconds:.0f}", *(["--quick"] if arguments.quick else [])]
    command += ["--data", arguments.data] if arguments.data else []
    started = time.monotonic()
    try:
        done = subprocess.run(
            command, env=environment, timeout=seconds, capture_output=True, text=True
        )
    except subprocess.TimeoutExpired:
        return {"error": f"it took more than {seconds:.0f} s", "ok": False}
    if done.returncode or not result.exists():
        print(done.stdout[-2000:] + done.stderr[-4000:], file=sys.stderr)
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return {"error": f"it ended with {done.returncode}: {last}", "ok": False}
    return {**json.loads(result.read_text()), "seconds": round(time.monotonic() - started, 1)}


def as_markdown(results: dict[str, Any]) -> str:
    """All results as Markdown."""
    lines = [f"# {results['machine']}", "", results["versions"], ""]
    for name, result in results["parts"].items():
        verdict = {True: "yes", False: "NO", None: ""}[result.get("ok")]
        lines += [f"## {PARTS[name][0]}{': ' if verdict else ''}{verdict}", ""]
        if "error" in result:
            lines += [result["error"], ""]
            continue
        rows = result["rows"]
        if rows:
            lines += [f"| {' | '.join(rows[0])} |", f"| {' | '.join(['---'] * len(rows[0]))} |"]
            lines += [f"| {' | '.join(map(str, row.values()))} |" for row in rows]
        lines += ["", f"{result['seconds']} s", ""]
    return "\n".join(lines)


def write(results: dict[str, Any], out: Path) -> None:
    """Write gpu.json and gpu.md."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "gpu.json").write_text(json.dumps(results, indent=1) + "\n")
    (out / "gpu.md").write_text(as_markdown(results))


def main() -> None:
    """Run all parts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="the course's files; without them, made-up texts")
    parser.add_argument("--backbone", default="minilm", help="directory of MiniLM, any precision")
    parser.add_argument("--wheels", type=Path, help="folder of wheels of what is not installed")
    parser.add_argument("--out", type=Path, default=Path("gpu-results"))
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--quick", action="store_true", help="few members, steps and epochs")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--part", action="append", choices=PARTS, help="these alone")
    arguments = parser.parse_args()
    end = time.monotonic() + 60 * arguments.minutes - RESERVE
    with tempfile.TemporaryDirectory() as scratch:
        paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        if arguments.wheels is not None:
            install(arguments.wheels, Path(scratch) / "site")
            paths.insert(0, str(Path(scratch) / "site"))
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "LORAENS_SCRATCH": scratch,
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            **({"CUDA_VISIBLE_DEVICES": ""} if arguments.device == "cpu" else {}),
        }
        results: dict[str, Any] = {"machine": "", "versions": "", "parts": {}}
        for name, (words, share) in PARTS.items():
            if arguments.part and name not in arguments.part:
                continue
            seconds = share * (end - time.monotonic())
            result = run_part(name, arguments, environment, seconds, results["parts"])
            results["machine"] = result.pop("machine", results["machine"])
            results["versions"] = result.pop("versions", results["versions"])
            results["parts"][name] = result
            write(results, arguments.out)
            print(f"{words}: {result.get('error', result.get('ok'))}", flush=True)
    print(f"written to {arguments.out / 'gpu.md'}")
    if any(result.get("ok") is False for result in results["parts"].values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
