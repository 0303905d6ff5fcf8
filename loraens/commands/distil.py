"""`loraens distil`: train members on what an ensemble predicts for texts that it was not trained
on, as a sweep, so that one of them comes near to all of it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from loraens.commands import training
from loraens.commands.parser import ALLOW, Parser, unknown_option
from loraens.data.imports import allow
from loraens.errors import InputError, say

if TYPE_CHECKING:
    from loraens.inference.teacher import Teacher

TARGETS = "targets.npz"
TAKEN = ("data", "store")  # sections of a sweep's settings that are the teacher's
EPILOG = (
    "Every option of `loraens sweep` follows, such as --grid.rank '[8, 16]', --trainer.max_epochs 6"
    " or --config FILE, but for those of data and store. What is not given is as the teacher's run"
    " has it, and a student as the member of its largest weight."
)


def distil(
    model: str,
    texts: Sequence[str],
    out: str | None,
    temperature: float,
    label_share: float,
    rest: list[str],
) -> None:
    """Write the teacher's predictions, and train students on them by `sweep`; the same command
    resumes.

    Args:
        model: The ensemble.
        texts: Files of unlabelled texts.
        out: Directory of the students' run; by default beside that of the teacher.
        temperature: Of the loss of the targets.
        label_share: Share of the label in the loss.
        rest: Options of `sweep`.

    Raises:
        InputError: An option or a file cannot be used.
    """
    from loraens.data.distilled import check_options
    from loraens.inference.teacher import Teacher
    from loraens.train.runs import is_run, quiet, quiet_trainers
    from loraens.train.state import locked

    quiet()
    check_options(label_share, temperature)
    teacher = Teacher.load(model)
    if temperature != 1 and not teacher.record.task.label_kind.categorical:
        raise InputError(
            f"temperature {temperature:g} is of probabilities, and task"
            f" {teacher.record.task.name} has none: leave it out",
            option="temperature",
        )
    run = teacher.run
    directory = Path(out) if out is not None else run.with_name(f"{run.name}-distilled")
    if is_run(directory) and not (directory / TARGETS).is_file():
        raise InputError(f"out {directory} holds another run: give another name", option="out")
    with locked(directory), quiet_trainers():
        teacher.write_targets(directory / TARGETS, texts)
    settings = _settings(teacher, directory, texts, temperature, label_share)
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "distil.yaml"
        file.write_text(yaml.safe_dump(settings, sort_keys=False))
        training.main(["sweep", "--config", str(file), *rest])
    if "--dry-run" not in rest:
        say(f"to prove them beside their teacher: loraens ensemble --runs {run} {directory}")


def _settings(
    teacher: Teacher, directory: Path, texts: Sequence[str], temperature: float, label_share: float
) -> dict[str, Any]:
    """Settings of the sweep: those of the teacher's run, with its heaviest member's for students.

    Args:
        teacher: The teacher.
        directory: Of the students.
        texts: As of `distil`.
        temperature: As of `distil`.
        label_share: As of `distil`.
    """
    from loraens.inference.teacher import DISTILLED
    from loraens.train.config import MEMBER_FIELDS

    given = teacher.settings
    manifest = teacher.manifest
    return {
        "trainer": given.get("trainer") or {},
        "model": {
            **(given.get("model") or {}),
            **{name: getattr(manifest.member, name) for name in MEMBER_FIELDS},
            "adapter": manifest.settings.adapter,
            "targets": list(manifest.settings.targets),
            "backbone": manifest.settings.backbone,
        },
        "data": {
            "class_path": DISTILLED,
            "init_args": {
                "run": given["data"],
                "targets": str(directory / TARGETS),
                "texts": list(texts),
                "label_share": label_share,
                "target_temperature": temperature,
            },
        },
        "store": {"root": str(directory.parent), "run": directory.name},
        "grid": {"folds": manifest.settings.folds},
    }


def _divided(args: Sequence[str], own: Sequence[str]) -> tuple[list[str], list[str]]:
    """Our own options with their values, and those of `sweep`.

    Raises:
        InputError: One of them is unknown, or the teacher's to give.
    """
    parts: tuple[list[str], list[str]] = ([], [])
    of_sweep = 0
    for argument in args:
        if argument.startswith("-"):
            of_sweep = int(argument.partition("=")[0] not in own)
        parts[of_sweep].append(argument)
    rest = parts[1]
    options = training.Options("sweep")
    given = [argument.partition("=")[0] for argument in rest if argument.startswith("--")]
    for name in given:
        if not options.has(name.removeprefix("--")):
            known = [*own, *(f"--{known}" for known in options.names)]
            raise unknown_option("distil", name, known)
    for file in training.configs_of(rest):
        given += [f"{file}: {section}" for section in training.settings_in(file)]
    for name in given:
        if name.rpartition(" ")[2].lstrip("-").partition(".")[0] in TAKEN:
            raise InputError(
                f"{name} is not an option of distil: texts are those of the teacher's run, and"
                " --out is where students go"
            )
    return parts


def main(args: list[str]) -> None:
    """Run `distil` with the options of the command line."""
    parser = Parser("distil", __doc__ or "", epilog=EPILOG)
    several: dict[str, Any] = {"nargs": "+", "type": str, "default": []}
    parser.add_argument(
        "--model",
        type=str,
        required=True,
        help="The teacher: an ensemble's directory, or the file RUN/ensembles/recommended.",
    )
    parser.add_argument(
        "--texts",
        **several,
        help="Files of unlabelled texts with the task's text columns, as `predict` takes them;"
        " those that are labelled in the run are left out. An ensemble without folds needs some.",
    )
    parser.add_argument(
        "--out",
        type=str | None,
        default=None,
        help="Directory of the students' run; that of the teacher's and -distilled by default.",
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=1.0,
        help="Divides log probabilities, of teacher and student, in the loss of what the teacher"
        " predicts.",
    )
    parser.add_argument(
        "--label_share",
        type=float,
        default=0.5,
        help="Share of the label in the loss of an example that has a label and a prediction.",
    )
    parser.add_argument("--allow", **several, help=ALLOW)
    own, rest = _divided(args, [*parser._option_string_actions])
    training.check("sweep", rest)
    given = parser.parse_args(own)
    allow(given.allow)
    rest += [f"--allow={module}" for module in given.allow]
    distil(given.model, given.texts, given.out, given.temperature, given.label_share, rest)
