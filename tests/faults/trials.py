"""Commands on tiny models, each in a child of this process, which has imported what they need."""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import json
import mmap
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CONFIGS = HERE.parent.parent / "configs"
SIZES = {"train": 16, "dev": 12, "test": 6}
QUIET = (
    *("--trainer.logger", "false", "--trainer.enable_progress_bar", "false"),
    *("--trainer.enable_model_summary", "false"),
)
LATER = ("ensemble", "report", "compare", "predict", "evaluate")
ENDLESS = 180.0  # seconds, after which a command counts as hanging
CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000
MS_REMOUNT, MS_REC, MS_PRIVATE = 0x20, 0x4000, 0x40000


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    Args:
        code: Its exit code; negative the signal that ended it, None where it did not end.
        out: What it printed.
        err: The same of standard error.
        seconds: Its time.
        operations: What it did to files, in number of calls.
    """

    code: int | None
    out: str
    err: str
    seconds: float
    operations: int = 0

    @property
    def traceback(self) -> bool:
        """Whether it ended otherwise than by a code and a sentence, or did not end."""
        return self.code not in (0, 1, 2, 130, 143) or "Traceback" in self.err

    @property
    def sentence(self) -> str | None:
        """The one sentence that it ended in, if it did."""
        lines = [line for line in self.err.splitlines() if line.startswith("loraens: ")]
        return lines[0] if len(lines) == 1 and not self.traceback else None


@dataclass
class Section:
    """Counts of one part of the trials, and what failed.

    Args:
        name: What was done.
        counts: Numbers by what they count.
        failures: One text each.
        seconds: How long it took.
    """

    name: str
    counts: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, name: str, number: int = 1) -> None:
        """Count."""
        self.counts[name] = self.counts.get(name, 0) + number

    def fail(self, text: str, outcome: Outcome | None = None) -> None:
        """Note a failure, with the end of what was printed."""
        tail = (
            "" if outcome is None else f" [{outcome.code}] {(outcome.err or outcome.out)[-1500:]}"
        )
        self.failures.append(text + tail)
        print(f"FAILED {self.name}: {text}{tail}", flush=True)


def prepare() -> None:
    """Start this process again with the library that counts operations, and import all that
    commands need.
    """
    if "LORAENS_FAULTS" not in os.environ:
        library = Path(tempfile.mkdtemp()) / "shim.so"
        source = str(HERE / "shim.cpp")
        build = ["g++", "-shared", "-fPIC", "-O1", source, "-o", str(library), "-ldl"]
        subprocess.run(build, check=True)
        os.environ |= {"LD_PRELOAD": str(library), "LORAENS_FAULTS": str(library)}
        os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0", "MPLBACKEND": "agg"}
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    del os.environ["LD_PRELOAD"]  # of processes that these start
    sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent)]
    for name in ("training", "fit", "sweep", "ensemble", "report", "compare", "predict"):
        importlib.import_module(f"loraens.commands.{name}")
    for name in ("evaluate", "build", "quickstart", "wandb_sync"):
        importlib.import_module(f"loraens.commands.{name}")
    for name in ("report.build", "api.build", "api.quick", "inference.evaluate"):
        importlib.import_module(f"loraens.{name}")


class World:
    """A tiny backbone, a corpus and a directory for trials, in memory where that is possible.

    Args:
        directory: Its directory; a new one by default.
    """

    def __init__(self) -> None:
        import conftest  # which writes the tiny backbone, and sets what keeps all offline

        from loraens.data import made_up

        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.directory = Path(tempfile.mkdtemp(prefix="loraens-faults-", dir=memory)).resolve()
        self.corpus = self.directory / "corpus"
        made_up.write_corpus(self.corpus, SIZES)
        self.backbone = self.directory / "bert"
        in_child(lambda: str(conftest.write_tiny_bert(self.backbone, self.corpus)))
        os.environ["LORAENS_CACHE"] = str(self.directory / "cache")
        self.library = ctypes.CDLL(os.environ["LORAENS_FAULTS"])
        self._number = 0
        self.run_directory = self._first_run()
        gc.collect()
        gc.freeze()

    def _first_run(self) -> Path:
        """A directory with a sweep, ensembles of it and a report; what the commands import on the
        way is then imported here, once for all of their children.
        """
        directory = self.new()
        modules = directory / "modules.json"

        def note() -> None:
            atexit.register(lambda: modules.write_text(json.dumps(sorted(sys.modules))))

        for args in (self.training("fit"), self.training("sweep"), *map(self.later, LATER)):
            if args[0] == "sweep":
                shutil.rmtree(directory / "run")
            outcome = self.run(args, directory, before=note)
            if outcome.code != 0:
                raise RuntimeError(f"{args[0]}: {outcome.err}")
            for name in json.loads(modules.read_text()):
                if name not in sys.modules:
                    _import(name)
        modules.unlink()
        return directory

    def later(self, command: str) -> list[str]:
        """The arguments of a command that reads the sweep in the directory `run`."""
        texts = self.corpus / "sts-test-student.csv"
        model = ("--model", "run/ensembles/recommended")
        arguments: dict[str, tuple[object, ...]] = {
            "ensemble": ("--runs", "run", "--method", "omni", "--logger", "false"),
            "report": ("--runs", "run", "--logger", "false"),
            "compare": ("run", "--out", "table.csv"),
            "predict": (*model, "--input", texts, "--output", "out.csv"),
            "evaluate": (*model, "--input", self.corpus / "sts-dev.csv", "--output", "out.json"),
        }
        return [str(arg) for arg in (command, *arguments[command])]

    def new(self, copy: Path | None = None) -> Path:
        """A new directory of a trial, with the files of another one; it is removed by `clear`."""
        self._number += 1
        path = self.directory / "trials" / str(os.getpid()) / str(self._number)
        if copy is None:
            path.mkdir(parents=True)
        else:
            shutil.copytree(copy, path, symlinks=True)
        return path

    def close(self) -> None:
        """Remove all."""
        shutil.rmtree(self.directory)

    def training(self, command: str, *args: object, epochs: int = 2) -> list[str]:
        """The arguments of a training in the directory `run`."""
        files = ("--config", CONFIGS / "sts.yaml", "--data.root", self.corpus)
        model = ("--model.backbone", self.backbone, "--model.lr", 1e-2, "--model.rank", 2)
        run = ("--store.root", ".", "--store.run", "run", "--data.max_length", 40)
        grid = ("--grid.rank", "[1,2]", "--sweep.pack_size", 1) if command == "sweep" else ()
        sizes = ("--trainer.max_epochs", epochs)
        return [str(arg) for arg in (command, *files, *model, *run, *grid, *sizes, *QUIET, *args)]

    def run(
        self,
        args: Iterable[object],
        directory: Path,
        kill_at: int = -1,
        kill_after: float = ENDLESS,
        before: Callable[[], None] | None = None,
    ) -> Outcome:
        """Run a command in a child.

        Args:
            args: Its arguments.
            directory: Where it runs; operations on files below it are counted.
            kill_at: Operation before which it is killed.
            kill_after: Seconds after which it is killed.
            before: Is called in the child, before the command.
        """
        counter = ctypes.c_long.from_buffer(mmap.mmap(-1, mmap.PAGESIZE))
        said = [tempfile.TemporaryFile(dir=self.directory) for _ in range(2)]  # noqa: SIM115
        sys.stdout.flush()
        started = time.monotonic()
        child = os.fork()
        if child == 0:
            armed = (str(directory).encode() + b"/", ctypes.byref(counter), ctypes.c_long(kill_at))
            self._command([str(arg) for arg in args], directory, armed, before, said)
        code = _wait(child, started + kill_after)
        texts = []
        for file in said:
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
            file.close()
        seconds = time.monotonic() - started
        return Outcome(code, texts[0], texts[1], seconds, counter.value)

    def _command(
        self,
        args: list[str],
        directory: Path,
        armed: tuple[Any, ...],
        before: Callable[[], None] | None,
        said: Sequence[Any],
    ) -> None:
        """The child: it does not come back."""
        code = 70
        try:
            for number, file in enumerate(said, 1):
                os.dup2(file.fileno(), number)
            os.chdir(directory)
            sys.argv = ["loraens", *args]
            if before is not None:
                before()
            from loraens import cli

            self.library.faults_arm(*armed)
            cli.main()
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            self.library.faults_arm(b"", *armed[1:])
            atexit._run_exitfuncs()
            for stream in (sys.stdout, sys.stderr):
                try:
                    stream.flush()
                except OSError:
                    traceback.print_exc()
            os._exit(code)


def _import(name: str) -> None:
    """Import a module that a command has imported; some are made at run time, and are left out."""
    with suppress(ImportError, KeyError):
        importlib.import_module(name)


def _wait(child: int, until: float) -> int | None:
    """The exit code of a child, which is killed at a time; -9 then, and None after too long."""
    pause = 0.001
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > until:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return -signal.SIGKILL
        time.sleep(pause)
        pause = min(0.02, 1.5 * pause)


def in_child(function: Callable[[], Any]) -> Any:
    """Call a function in a child; returns what it returns, as JSON has it.

    Raises:
        RuntimeError: It raised an error, or the child did not end well.
    """
    read, write = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.close(read)
        try:
            answer = {"value": function()}
        except BaseException:
            answer = {"error": traceback.format_exc()}
        with os.fdopen(write, "w") as file:
            json.dump(answer, file)
        sys.stdout.flush()
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as file:
        answer = json.loads(file.read() or '{"error": "it did not end"}')
    os.waitpid(child, 0)
    if "error" in answer:
        raise RuntimeError(answer["error"])
    return answer["value"]


def mount(directory: Path, size: int, again: bool = False) -> None:
    """Mount a file system in memory of so many bytes, for this process and its children alone.

    Raises:
        OSError: The system does not permit that.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def call(result: int) -> None:
        if result != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    if not again:
        user, group = os.getuid(), os.getgid()
        call(libc.unshare(CLONE_NEWNS | (CLONE_NEWUSER if user else 0)))
        if user:
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"0 {user} 1")
            Path("/proc/self/gid_map").write_text(f"0 {group} 1")
        call(libc.mount(b"none", b"/", None, ctypes.c_ulong(MS_REC | MS_PRIVATE), None))
    flags = ctypes.c_ulong(MS_REMOUNT if again else 0)
    call(libc.mount(b"tmpfs", bytes(directory), b"tmpfs", flags, f"size={size}".encode()))
