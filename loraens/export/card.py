"""A model card, of what a member's manifest or an ensemble's record say."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loraens.ensemble.record import EnsembleRecord
from loraens.model.backbone import hub_name
from loraens.records import Manifest, Settings
from loraens.store import ENSEMBLE, MANIFEST, MemberStore
from loraens.tasks import Task

CARD = "README.md"
SEEN = {  # what an encoder had been trained on that tasks may be like
    "sentence-transformers/all-MiniLM-L6-v2": "a billion sentence pairs, among them Quora"
    " duplicates, NLI and question pairs",
    "sentence-transformers/all-mpnet-base-v2": "a billion sentence pairs, among them Quora"
    " duplicates, NLI and question pairs",
}


def model_card(directory: Path, name: str = "MODEL") -> str:
    """The card, Markdown with a head of YAML, of a directory that `export_bundle` wrote.

    Args:
        directory: The directory.
        name: What the model is called where it is used.

    Raises:
        InputError: The directory has neither an ensemble nor a member.
    """
    import yaml

    record = EnsembleRecord.read(directory) if (directory / ENSEMBLE).is_file() else None
    at = directory if (directory / MANIFEST).is_file() else directory / "members" / "000"
    manifest = MemberStore(at).read()
    settings = manifest.settings
    tasks = settings.tasks if record is None else (record.task,)
    backbone = hub_name(settings.backbone)
    head = yaml.safe_dump(
        {
            "library_name": "loraens",
            "base_model": backbone,
            "pipeline_tag": "text-classification",
            "tags": ["lora", "peft", *(["ensemble"] if record else [])],
        },
        sort_keys=False,
    )
    facts = _of_ensemble(record) if record else _of_member(manifest)
    parts = [
        f"---\n{head}---\n",
        f"# {name}\n",
        _what(record, settings, backbone) + "\n",
        *(_task(task) for task in tasks),
        "## Worth\n",
        *(f"- {fact}" for fact in facts),
        *([f"- The backbone had seen {SEEN[backbone]}."] if backbone in SEEN else []),
        "\n## Use\n",
        "```sh\npip install loraens",
        f"loraens predict --model {name} --text {_example(tasks[0])}\n```\n",
        "## Data\n",
        "SHA-256 of the texts and labels of each split:\n",
        *(f"- {split}: `{value}`" for split, value in sorted(settings.data.items())),
    ]
    return "\n".join(parts) + "\n"


def _what(record: EnsembleRecord | None, settings: Settings, backbone: str) -> str:
    """The first sentence."""
    if record is None:
        return f"A LoRA member on {backbone} (pooling: {settings.pooling}), made by loraens."
    if record.size == 1:
        return f"A soup of LoRA members on {backbone}, merged into one, made by loraens."
    return (
        f"An ensemble of {record.size} LoRA members on one frozen {backbone} (method"
        f" {record.method}, rule {record.rule}), chosen from {record.pool_size} by loraens."
    )


def _task(task: Task) -> str:
    """What a task takes and gives."""
    labels = f": {', '.join(task.class_names)}" if task.class_names else ""
    return f"- task `{task.name}`, of {' and '.join(task.text_columns)}; {task.kind}{labels}\n"


def _of_ensemble(record: EnsembleRecord) -> list[str]:
    metric = record.task.metric
    interval = record.interval
    facts = [
        f"{metric} on new texts, by cross-validation of the whole choice: {interval.value:.4f}"
        f" (95 %: {interval.low:.4f} to {interval.high:.4f})",
        f"minus the best member: {record.to_best.value:+.4f} (95 %: {record.to_best.low:+.4f} to"
        f" {record.to_best.high:+.4f})",
    ]
    if record.test is not None:
        facts.append(f"{metric} on test: {record.test:.4f}")
    return facts


def _of_member(manifest: Manifest) -> list[str]:
    scores: Mapping[str, Mapping[str, Any]] = manifest.dev["best"]
    return [
        f"{name} of task `{task}` on dev, which chose its epoch: {value:.4f}"
        for task, of_task in scores.items()
        for name, value in of_task.items()
    ]


def _example(task: Task) -> str:
    """Options of `predict` that give one text, or two."""
    return '"A text."' if len(task.text_columns) == 1 else '"A text." --text2 "Another one."'
