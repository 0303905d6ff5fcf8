"""Adapters that PEFT trained, as members of a run: weights in the store, with the logits of dev and
test.

Shape letters: M members, N examples, C outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from torch import Tensor

from loraens.arrays import npz
from loraens.data.examples import write_data_examples
from loraens.data.imports import check_imports
from loraens.errors import InputError
from loraens.files import checksum, write_atomically
from loraens.inference.predictor import Predictor
from loraens.model.backbone import fingerprint, hub_name, load_encoder, local_directory
from loraens.model.classifier import pooling_of_classifier
from loraens.model.device import usable_device
from loraens.model.imported import Imported, kind_of, targets_of
from loraens.model.peft_adapter import PeftAdapter
from loraens.model.tokenizer import load_tokenizer
from loraens.model.weights import ADAPTER, member_files
from loraens.records import Manifest
from loraens.store import MANIFEST, MemberStore, path_from_run
from loraens.tasks import Task
from loraens.train.callbacks import versions
from loraens.train.config import CONFIG, SweepConfig
from loraens.train.module import Population
from loraens.train.runs import quiet_trainers
from loraens.train.state import locked
from loraens.train.worker import Worker

EPOCH = "epoch-001"  # the only one that is known
EVALUATED = ("dev", "test")


def import_members(
    directories: Sequence[Path | str],
    run: Path | str,
    config: SweepConfig | None = None,
    task: str | None = None,
    backbone: str | None = None,
    same_backbone: bool = False,
) -> dict[str, Manifest]:
    """Take adapters that PEFT trained into a run, as members that are scored on its dev and test.

    Args:
        directories: Directories of `save_pretrained` of PEFT, each with one adapter.
        run: The run's directory, of a sweep or of members that were imported.
        config: The settings of a new run; an old one has its own.
        task: The task, where the run has several.
        backbone: Where the run's backbone is now, if it was moved.
        same_backbone: Whether the model that the adapters name, and that is not on this machine, is
            known to have the weights of the run's backbone.

    Returns:
        The members' manifests, by name.

    Raises:
        InputError: The run has no settings, has folds or has such members already, or an adapter
            cannot be taken; nothing was written.
    """
    run = Path(run)
    known = (run / CONFIG).is_file()
    if known and config is not None:
        raise InputError(
            f"run {run} has settings of its own: give no others, or another run", option="run"
        )
    if not known and config is None:
        raise InputError(
            f"run {run} has no {CONFIG}: give the run of a sweep, or the settings of a new one as"
            " of `sweep` (--config FILE)",
            option="run",
        )
    worker = _worker(run, config, backbone)
    paths = [Path(directory) for directory in directories]
    names = _names(paths)
    _check_new(run, names)
    of_task = _task(worker, task)
    groups: dict[tuple[str, tuple[str, ...]], list[Imported]] = {}
    for one in _fitted(worker, paths, names, of_task, same_backbone):
        groups.setdefault((one.kind, one.targets), []).append(one)
    with quiet_trainers():
        found = [
            member for group in groups.values() for member in _evaluated(worker, group, of_task)
        ]
    with locked(run, known=known):
        _check_new(run, names)
        if config is not None:
            write_atomically(run / CONFIG, config.text.encode())
        examples = write_data_examples(worker.data, run)
        wanted = {f"{of_task.name}-{split}.npz" for split in EVALUATED}
        examples = {name: value for name, value in examples.items() if name in wanted}
        return {
            manifest.name: MemberStore(run / manifest.name).write(
                {EPOCH: files}, replace(manifest, examples=examples)
            )
            for manifest, files in found
        }


def _worker(run: Path, config: SweepConfig | None, backbone: str | None) -> Worker:
    """What trains and evaluates in the run.

    Raises:
        InputError: Its settings cannot be used, or it has folds.
    """
    train = (config or SweepConfig.read(run)).train
    if config is None:
        named = None if train.data is None else asdict(train.data)
        check_imports({"data": named, "trainer": train.trainer, "model": train.model}, run / CONFIG)
    if backbone is not None:
        train = replace(train, model={**train.model, "backbone": backbone})
    if train.folds is not None:
        raise InputError(
            f"run {run} has folds, and an adapter of PEFT has no logits out of fold: give a run"
            " without",
            option="run",
        )
    return Worker(run, train)


def _task(worker: Worker, name: str | None) -> Task:
    """The task of a name, or the only one.

    Raises:
        InputError: There is none of that name, or there are several and none was named.
    """
    tasks = {task.name: task for task in worker.data.tasks}
    if name is None and len(tasks) == 1:
        return next(iter(tasks.values()))
    if name not in tasks:
        raise InputError(
            f"task {name or 'is missing'}: give one of the run's tasks {', '.join(tasks)}",
            option="task",
        )
    return tasks[name]


def _check_new(run: Path, names: Sequence[str]) -> None:
    """Refuse names that members of the run have."""
    for name in names:
        if (run / name / MANIFEST).is_file():
            raise InputError(
                f"run {run} has a member {name} already: remove it, or give its adapter's directory"
                " another name"
            )


def _fitted(
    worker: Worker,
    directories: Sequence[Path],
    names: Sequence[str],
    task: Task,
    same_backbone: bool,
) -> list[Imported]:
    """The adapters, fitted to the run's backbone, task and settings.

    Raises:
        InputError: One cannot be taken.
    """
    model = worker.config.model
    encoder = load_encoder(model["backbone"], pooler=model["pooling"] == "pooler")
    expected = fingerprint(encoder)
    bases: dict[str, str] = {}  # fingerprints
    poolings: dict[str, str] = {}
    imported = []
    for directory, name in zip(directories, names, strict=True):
        adapter = PeftAdapter.read(directory)
        _check_base(adapter, model["backbone"], expected, bases, same_backbone)
        layers = adapter.on(encoder)
        weight, bias, head = adapter.head(task.name)
        if head is not None:
            _check_pooling(adapter, head, worker, poolings)
        weight, bias = _outputs(adapter, weight, bias, task, encoder.config.hidden_size)
        targets = targets_of(encoder, layers, model["targets"])
        kind = kind_of(adapter, model["adapter"])
        imported.append(Imported(name, adapter, layers, weight, bias, kind, targets))
    return imported


def _check_pooling(
    adapter: PeftAdapter, head: str, worker: Worker, poolings: dict[str, str]
) -> None:
    """Refuse a classifier whose head reads another pooling than the run's.

    Args:
        adapter: The adapter.
        head: Name of its head in the classifier.
        worker: The run's.
        poolings: Those of heads that were tried, to which this one's is added.

    Raises:
        InputError: It does, or is more than one linear layer over a pooling.
    """
    model = worker.config.model
    if head not in poolings:
        try:
            poolings[head] = pooling_of_classifier(model["backbone"], head)
        except InputError as error:
            raise InputError(f"{adapter.directory} cannot be a member: {error}") from None
    if poolings[head] != model["pooling"]:
        raise InputError(
            f"the head of {adapter.directory} reads pooling {poolings[head]}, and the members of"
            f" run {worker.directory} {model['pooling']}: give a run with --model.pooling"
            f" {poolings[head]}",
            option="run",
        )


def _outputs(
    adapter: PeftAdapter, weight: Tensor, bias: Tensor, task: Task, width: int
) -> tuple[Tensor, Tensor]:
    """Weight `(C, D)` and bias `(C,)` of the task's outputs; one logit in place of those of two
    classes is their difference, which has the same probabilities.

    Raises:
        InputError: The head has other numbers of outputs or inputs.
    """
    if task.num_outputs == 1 and len(task.class_names) == len(weight) == len(bias) == 2:
        weight, bias = weight[1:] - weight[:1], bias[1:] - bias[:1]
    if weight.shape != (task.num_outputs, width) or bias.shape != weight.shape[:1]:
        raise InputError(
            f"the head of {adapter.directory} has weights of shape {tuple(weight.shape)} and biases"
            f" of shape {tuple(bias.shape)}, and task {task.name} has {task.num_outputs} outputs"
            f" over {width} features"
        )
    return weight, bias


def _names(directories: Sequence[Path]) -> list[str]:
    """Names of the members: their directories', with those above where two have the same.

    Raises:
        InputError: A directory is given twice.
    """
    paths = [path.resolve() for path in directories]
    if len(set(paths)) < len(paths):
        raise InputError("an adapter is given twice: give each directory once")
    depth = 1
    while len({path.parts[-depth:] for path in paths}) < len(paths):
        depth += 1
    return ["-".join(("peft", *path.parts[-depth:])) for path in paths]


def _check_base(
    adapter: PeftAdapter, backbone: str, expected: str, bases: dict[str, str], same: bool
) -> None:
    """Refuse an adapter of another model than the run's backbone.

    Args:
        adapter: The adapter.
        backbone: The run's.
        expected: Its fingerprint.
        bases: Fingerprints of models that were compared, to which the adapter's is added.
        same: Whether a model that is not here is known to be the same.

    Raises:
        InputError: It is another, or it is not here to be compared.
    """
    base = adapter.base
    if base == hub_name(backbone):
        return
    if not base or local_directory(base) is None:
        if same:
            return
        raise InputError(
            f"{adapter.directory} was trained on {base or 'a model that it does not name'}, which"
            f" is not on this machine to be compared with backbone {backbone!r} of the run: if the"
            " weights are the same, give --same_backbone",
            option="same_backbone",
        )
    if base not in bases:
        bases[base] = fingerprint(load_encoder(base, pooler=False))
    if bases[base] != expected:
        raise InputError(
            f"{adapter.directory} was trained on {base}, which has other weights than backbone"
            f" {backbone!r} of the run: give a run on the same backbone"
        )


def _evaluated(
    worker: Worker, group: Sequence[Imported], task: Task
) -> Iterator[tuple[Manifest, dict[str, bytes]]]:
    """Manifest and files of members of one adapter kind and targets, run together.

    Raises:
        InputError: A logit is not finite.
    """
    data = worker.data
    kind = {"adapter": group[0].kind, "targets": list(group[0].targets)}
    module = Population([one.member for one in group], [task], **{**worker.config.model, **kind})
    module.build(data.max_length)
    settings = module.fixed_settings(data, worker.trainer())
    model = module.model.eval().to(usable_device(None))
    for index, one in enumerate(group):
        one.copy_to(model, index, task.name)
    predictor = Predictor(
        model=model,
        tasks={task.name: task},
        tokenizer=load_tokenizer(settings.backbone),
        max_length=settings.max_length,
        batch_size=None,
        precision=settings.precision,
        backbone=settings.backbone,
        long=settings.long,  # type: ignore[arg-type]
    )
    splits = {split: part for (name, split), part in data.splits.items() if name == task.name}
    logits = {
        split: predictor.logits(part.split.texts, task)
        for split, part in splits.items()
        if split in EVALUATED
    }
    for index, one in enumerate(group):
        files = member_files(model, index, settings.backbone, settings.targets)
        for split, of_members in logits.items():
            if not np.isfinite(of_members[index]).all():
                raise InputError(f"{one.adapter.directory} gives logits that are not finite")
            files[f"{task.name}-{split}.npz"] = npz(logits=of_members[index])
        labels = splits["dev"].split.labels
        assert labels is not None
        scores = {task.name: task.scores(logits["dev"][index], labels)}
        manifest = Manifest(
            name=one.name,
            status="finished",
            member=one.member,
            settings=settings,
            epochs={"best": EPOCH, "last": EPOCH},
            dev={"best": scores, "last": scores},
            dropped={
                f"{task.name}-{split}": part.split.dropped
                for split, part in splits.items()
                if part.split.dropped
            },
            truncated={
                f"{task.name}-{split}": part.tokens.truncated for split, part in splits.items()
            },
            trainable_parameters=one.trained,
            versions={**versions(), "peft": str(one.adapter.config.get("peft_version", ""))},
            backbone_path=path_from_run(settings.backbone, worker.directory),
            imported={
                "directory": str(one.adapter.directory.resolve()),
                "base": one.adapter.base,
                "sha256": checksum(one.adapter.directory / ADAPTER),
            },
        )
        yield manifest, files
