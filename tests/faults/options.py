"""Options with values that no command can use: each ends in one sentence and exit code 2."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from kills import difference, state
from trials import Section, World

NO_COUNT = ("-1", "0", "1.5", "x", "")  # where a whole number from 1 on is expected
NO_SIZE = ("-1", "nan", "x", "")  # where a number from 0 on is expected
NO_SHARE = ("-0.5", "1.5", "nan", "x")
NO_WORD = ("x", "", "Best", "1")  # where one of some words is expected
NOWHERE = ("nowhere", "/dev/null", "")  # where a file or directory is expected
NO_TABLE = ("out.exe", "run")
MODEL = {
    "rank": (*NO_COUNT, "1000000000"),
    "scale": ("nan", "inf", "x", "[1]"),
    "seed": ("x", "1.5"),
    "lr": ("-1", "nan", "inf", "x"),
    "weight_decay": ("-1", "nan", "inf"),
    "head_dropout": ("-0.1", "1", "nan", "x"),
    "loraplus_lr_ratio": ("0", "-1", "nan", "inf", "x"),
    "mode": NO_WORD,
    "pooling": NO_WORD,
    "schedule": NO_WORD,
    "warmup": ("-0.1", "1.5", "nan"),
    "init_std": ("-1", "nan", "inf"),
    "targets": ("[nothing]", "[]", "x"),
    "adapter": ("x", ""),
    "backbone": NOWHERE,
    "encoder_dropout": ("x", "2"),
}
DATA = {
    "root": ("nowhere",),
    "batch_size": NO_COUNT,
    "eval_batch_size": ("-1", "0", "x"),
    "max_length": ("-1", "0", "2", "x", "100000"),
    "limit": ("-1", "0", "x"),
    "pool_dev": ("x",),
    "group_by_length": ("x",),
    "test_logits": ("x",),
    "nothing": ("1",),
}
TRAINER = {
    "max_epochs": ("0", "-5", "1.5", "x"),
    "max_steps": ("0", "-5", "x"),
    "max_time": ("x",),
    "min_epochs": ("-1",),
    "limit_train_batches": ("0", "-1", "nan", "x"),
    "limit_val_batches": ("0", "-1", "nan"),
    "overfit_batches": ("1",),
    "val_check_interval": ("0", "-1", "x"),
    "check_val_every_n_epoch": ("0", "-1", "x"),
    "accumulate_grad_batches": ("0", "-1", "x"),
    "gradient_clip_val": ("-1", "nan", "x"),
    "gradient_clip_algorithm": ("x",),
    "accelerator": ("x", "tpu", "cuda"),
    "strategy": ("x", "ddp", "ddp_spawn", "fsdp", "deepspeed"),
    "devices": ("0", "-3", "2", "x", "[7]"),
    "num_nodes": ("0", "2", "x"),
    "precision": ("x", "16-mixed", "16-true", "bf16-true", "0"),
    "barebones": ("true",),
    "log_every_n_steps": ("-1", "x"),
    "callbacks": ("nowhere.Callback",),
    "logger": ("nowhere.Logger",),
}
GRID = {
    "rank": ("[]", "[0]", "[-1]", "[x]", "[1000000000]"),
    "scale": ("[]", "[.nan]", "[.inf]"),
    "seed": ("[]", "[x]", "[1.5]"),
    "lr": ("[]", "[-1]", "[.nan]", "x"),
    "weight_decay": ("[-1]", "[.nan]"),
    "head_dropout": ("[1]", "[-1]"),
    "loraplus_lr_ratio": ("[]", "[0]", "[.nan]", "x"),
    "epochs": ("[]", "[0]", "[-1]", "[x]"),
    "folds": ("-1", "0", "1", "1000", "x"),
    "members": ("[]", "x", "[{rank: 0}]", "[{ranks: 1}]"),
}
SWEEP = {
    "pack_size": ("0", "-1", "x"),
    "patience": ("0", "-1", "x"),
    "halving_factor": ("1", "0.5", "nan", "inf", "x"),
    "halving_epochs": ("0", "-1", "x"),
    "halving_by": ("x",),
    "engine": ("x", ""),
}
STORE = {"run": ("a/../../b", "../b", "/proc/loraens", ""), "root": ("/dev/null", "/proc/x")}
ENSEMBLE = {
    "size": ("0", "-1", "x", "10000000"),
    "pool": ("0", "-1", "nan", "x"),
    "within": NO_SIZE,
    "measure": ("x", ""),
    "bags": ("0", "-1", "x", "1000000000"),
    "steps": ("0", "-1", "x", "1000000000"),
    "start": ("0", "-1", "x"),
    "draws": ("0", "-1", "x", "1000000000"),
    "tried": ("0", "-1", "x"),
    "max_members": ("0", "-1", "x"),
    "goal": NO_WORD,
    "rule": NO_WORD,
    "method": NO_WORD,
    "task": ("nothing", ""),
    "epoch": NO_WORD,
    "refit": ("x",),
    "runs": NOWHERE,
    "nothing": ("1",),
}
READ = {  # of `predict` and `evaluate`
    "model": NOWHERE,
    "input": NOWHERE,
    "output": NO_TABLE,
    "task": ("nothing", ""),
    "epoch": NO_WORD,
    "batch_size": NO_COUNT,
    "encoding": ("x", "", "utf-99"),
    "quoting": NO_WORD,
    "device": ("x", "cuda:99", "meta", ""),
    "backbone": NOWHERE,
    "nothing": ("1",),
}
PREDICT = {
    **READ,
    "output": ("nowhere/out.csv", *NO_TABLE),
    "format": NO_WORD,
    "coverage": NO_SHARE,
    "text": ("", "a"),
    "text2": ("a",),
}
REPORT = {
    "runs": NOWHERE,
    "task": ("nothing", ""),
    "epoch": NO_WORD,
    "texts": ("x",),
    "logger": ("x",),
    "out": ("/dev/null", "/proc/x"),
    "nothing": ("1",),
}
COMPARE = {
    "runs": NOWHERE,
    "filter": ("x", "rank>=x", "nothing=1", "rank=<1"),
    "sort": ("nothing", "-"),
    "columns": ("nothing", "name,nothing"),
    "out": ("out.exe", "out", "/proc/x.csv"),
    "nothing": ("1",),
}
BUILD = {
    "minutes": ("0", "-1", "nan", "inf", "x"),
    "text": ("nothing", ""),
    "label": ("nothing", ""),
    "kind": NO_WORD,
    "dev": NOWHERE,
    "test": NOWHERE,
    "metric": ("x", ""),
    "max_length": ("0", "-1", "1", "x", "100000"),
    "backbone": NOWHERE,
    "encoding": ("x", ""),
    "quoting": NO_WORD,
    "out": ("/dev/null", "/proc/x"),
    "nothing": ("1",),
}
QUICKSTART = {
    "minutes": ("0", "-1", "nan", "inf", "x"),
    "data.root": ("nowhere",),
    "data.limit": ("0", "-1", "x"),
    "backbone": NOWHERE,
    "store.root": ("/dev/null", "/proc/x"),
}


def bad_options(world: World) -> Iterator[list[str]]:
    """The commands, each with one bad option."""
    seeds = ("-1", str(2**40), "x", "1.5")
    files = (str(world.corpus / "sts-dev.csv"), "run/config.yaml", *NOWHERE)
    for name, values in (("seed_everything", seeds), ("ckpt_path", files), ("config", NOWHERE)):
        for value in values:
            yield [*world.training("fit"), f"--{name}={value}"]
    for value in files:
        yield [*world.training("validate"), f"--ckpt_path={value}"]
    for command in ("fit", "sweep"):
        sections = {"model": MODEL, "data": DATA, "trainer": TRAINER, "store": STORE}
        if command == "sweep":  # whose grid takes the place of some
            sections = {"trainer": TRAINER, "grid": GRID, "sweep": SWEEP, "store": STORE}
        for section, options in sections.items():
            for name, values in options.items():
                for value in values:
                    yield [*world.training(command), f"--{section}.{name}={value}"]
    texts = str(world.corpus / "sts-train.csv")
    build = ["build", texts, "--out", "built", "--backbone", str(world.backbone)]
    quick = ["quickstart", "--backbone", str(world.backbone)]
    of_commands = (
        (world.later("ensemble"), ENSEMBLE),
        (world.later("predict"), PREDICT),
        (world.later("evaluate"), READ),
        (world.later("report"), REPORT),
        (world.later("compare")[:1], COMPARE),
        (build, BUILD),
        (quick, QUICKSTART),
    )
    for args, options in of_commands:
        for name, values in options.items():
            for value in values:
                given = [arg for arg in args if arg == args[0] or not _same(args, arg, name)]
                yield [*given, f"--{name}={value}"]
    yield ["wandb-sync", "nowhere"]
    yield ["compare"]
    yield ["nothing"]


def _same(args: list[str], arg: str, name: str) -> bool:
    """Whether an argument is an option of that name, or its value."""
    place = args.index(arg)
    return arg == f"--{name}" or args[place - 1] == f"--{name}"


def refuse(world: World, section: Section, chosen: slice = slice(None)) -> None:
    """Run each command with a bad option."""
    base = world.new(world.run_directory)
    for args in list(bad_options(world))[chosen]:
        trains = args[0] in ("fit", "sweep")
        directory = world.new(None if trains else base)
        before = _whole(directory)
        outcome = world.run(args, directory)
        section.add("options")
        what = f"{args[0]} {args[-1]}"
        if outcome.code != 2 or outcome.sentence is None:
            section.fail(what, outcome)
        elif written := difference(before, _whole(directory)):
            section.fail(f"{what}: written {written[:9]}", outcome)
        else:
            section.add("one sentence, exit code 2, and nothing written")
        shutil.rmtree(directory)


def _whole(directory: Path) -> dict[str, object]:
    """What is there, but for the marks of a directory that a training took."""
    found = state(directory)
    return {name: found[name] for name in found if not name.endswith(".loraens")}
