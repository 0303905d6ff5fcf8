"""The steps of a build: measure, try rates, sweep, choose, prove, report, say what to deploy."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraens import __version__
from loraens.api.build_state import Asked, Measured, read_state, write_state
from loraens.api.ensembles import write_ensembles
from loraens.api.sweep import Sweep
from loraens.data.modules import TextFiles
from loraens.data.understanding import Understood, describe
from loraens.ensemble.evaluation import Evaluation
from loraens.ensemble.recommend import RECOMMENDED, Recommendation
from loraens.errors import InputError, say
from loraens.inference.evaluate import evaluate
from loraens.inference.predictor import Predictor
from loraens.model.backbone import summary_pooling
from loraens.records import Manifest
from loraens.report import ensembles as tables
from loraens.report.build import write_report
from loraens.report.terminal import show
from loraens.tasks import Task
from loraens.train.config import CONFIG
from loraens.train.design import LEAST, RATES, default_members, rate_members, sizes
from loraens.train.options import SweepOptions
from loraens.train.plan import FORWARD, Plan
from loraens.train.sizing import largest, seconds

if TYPE_CHECKING:
    from loraens.model.population import Pooling

BATCH = 8
POOLINGS = 2  # mean, and the token that sums a text up
RANGE_SHARE = 0.15  # of the time
RANGE_MOST = 2000  # texts of the range tests
TRAINING = 0.7  # of the time after them; proofs, report and what is not foreseen need the rest
PATIENCE = 2
TIMED = 64  # texts whose prediction is timed
METHODS = ("best", "omni", "dicor", "topk", "greedy", "weighted", "stacking")


@dataclass(frozen=True)
class Built:
    """What a build left.

    Args:
        path: What `Ensemble.load` and `loraens predict --model` take.
        recommendation: The recommended ensemble, and what it is worth.
        report: The page.
        test: Its scores on test; None where that was not given, or has no labels.
        milliseconds: Of a text at prediction, measured.
        sentence: What to deploy, what it is worth, and what it costs.
    """

    path: Path
    recommendation: Recommendation
    report: Path
    test: Evaluation | None
    milliseconds: float
    sentence: str

    def load(self) -> Predictor:
        """The ensemble, ready to predict."""
        return Predictor.load(self.path)


class Builder:
    """One build, step by step.

    Args:
        directory: Of all that is written.
        data: The splits.
        asked: What was asked for.
        deadline: By `time.monotonic`.
        verbose: Whether to print.
    """

    def __init__(
        self, directory: Path, data: Understood, asked: Asked, deadline: float, verbose: bool
    ) -> None:
        self.directory = directory
        self.data = data
        self.task = data.task
        self.asked = asked
        self.deadline = deadline
        self.verbose = verbose
        self.measured = read_state(directory, asked) or Measured(pack_size=0, range_texts=0)
        self.files: dict[str, str] = {}

    def say(self, sentence: str) -> None:
        """Print a sentence."""
        if self.verbose:
            say(sentence)

    def run(self) -> Built:
        """All steps."""
        self.say(f"backbone: {self.asked.backbone} (--backbone)")
        for line in describe(self.data, self.asked.backbone, self.asked.max_length):
            self.say(line)
        self.files = self.data.write(self.directory / "data")
        self.say("interrupted, the same command resumes")
        if self.measured.size is None:
            self._measure()
        else:
            self.say(f"resuming {self.directory}: rate and size are known")
        sweep = self._sweep()
        self._command("sweep --config", sweep.directory / CONFIG)
        manifests = sweep.fit().manifests
        if all(manifest.status == "failed" for manifest in manifests.values()):
            raise InputError(f"all members in {sweep.directory} failed: see its manifests")
        recommendation = self._prove(sweep)
        self._command("report --logger false --runs", sweep.directory)
        report = write_report([sweep.directory], sweep.directory / "report", version=__version__)
        return self._finish(sweep.directory, recommendation, report.path)

    def _command(self, command: str, *arguments: object) -> None:
        """Print the command of a step, with which one can go on by hand."""
        self.say(f"$ loraens {command} {' '.join(map(str, arguments))}")

    def _write(self, **measured: Any) -> None:
        """Note what was measured."""
        self.measured = replace(self.measured, **measured)
        write_state(self.directory, self.asked, self.measured)

    # Steps

    def _texts(self, limit: int | None) -> TextFiles:
        """The data module of the splits."""
        task = self.task
        return TextFiles(
            name=task.name,
            train=self.files["train"],
            dev=self.files["dev"],
            test=self.files.get("test"),
            text_columns=list(task.text_columns),
            label_column=task.label_column,
            kind=task.kind,
            class_names=list(task.class_names) or None,
            metric=task.metric,
            low=task.low,
            high=task.high,
            delimiter=task.delimiter,
            batch_size=BATCH,
            max_length=self.asked.max_length,
            limit=limit,
        )

    def _measure(self) -> None:
        """Time some steps, then test rates and poolings, then choose the size that fits."""
        self._write()
        self.say("timing some training steps on this machine ...")
        texts = len(self.data.splits["train"])
        plan = Sweep(
            self._texts(None),
            default_members(RATES[0], 16),
            self.directory / "sweep",
            backbone=self.asked.backbone,
            epochs=1,
            pooling="mean",
        ).plan()
        if not self.measured.pack_size:
            self._write(pack_size=plan.pack_size, range_texts=self._range_texts(plan, texts))
        if self.measured.range_texts:
            self._test_rates()
        else:
            self.say(f"too few texts, or too little time, to try rates: {self.measured.lr:g}")
        left = TRAINING * max(0.0, self.deadline - time.monotonic())
        size, needed = largest(sizes(texts), lambda size: seconds(size, plan, BATCH), left)
        part = "" if size.texts == texts else f" on {size.texts} of {texts} texts, drawn at random,"
        self.say(
            f"{size.members} members for at most {size.epochs} epochs{part} take"
            f" {needed / 60:.1f} min if none stops early, at"
            f" {1 / plan.cost.seconds:.1f} member-steps a second"
        )
        if needed > left:
            self.say(f"that is the least there is, and more than --minutes {self.asked.minutes:g}")
        self._write(size=size)

    def _range_texts(self, plan: Plan, texts: int) -> int:
        """Texts of the range tests: as many as fit into their share of the time; 0 where these are
        too few to tell anything.
        """
        steps = RANGE_SHARE * (self.deadline - time.monotonic()) / plan.cost.seconds
        of_member = BATCH * steps / (len(RATES) * POOLINGS)
        # dev has the same number at most
        count = int(min(of_member / (1 + FORWARD), texts, RANGE_MOST))
        return count if count >= LEAST else 0

    def _test_rates(self) -> None:
        """One epoch of each rate and pooling, scored by the loss on dev."""
        names = {metric.name for metric in self.task.label_kind.metrics}
        loss = next((name for name in ("nll", "mse") if name in names), self.task.metric)
        metric = self.task.label_kind.metric(loss)
        found: list[tuple[float, float, Pooling]] = []
        poolings: list[Pooling] = ["mean", summary_pooling(self.asked.backbone)]
        for pooling in poolings:
            sweep = Sweep(
                self._texts(self.measured.range_texts),
                rate_members(),
                self.directory / f"range-{pooling}",
                backbone=self.asked.backbone,
                epochs=1,
                pooling=pooling,
                options=SweepOptions(pack_size=min(self.measured.pack_size, len(RATES))),
                trainer={"enable_progress_bar": self.verbose},
            )
            self._command("sweep --config", sweep.directory / CONFIG)
            for manifest in sweep.fit().manifests.values():
                found.append((self._loss(manifest, metric.name), manifest.member.lr, pooling))
        found = [(metric.utility(loss), rate, pooling) for loss, rate, pooling in found]
        defined = [entry for entry in found if not math.isnan(entry[0])]
        if not defined:
            raise InputError(
                f"all members in {self.directory}/range-* failed: the texts or labels cannot be"
                " learned from"
            )
        best, rate, pooling = max(defined)
        self.say(
            f"rate {rate:g} and pooling {pooling}: the best of {len(RATES)} rates and"
            f" {len(poolings)} poolings after an epoch of {self.measured.range_texts} texts"
            f" ({metric.title} on dev {abs(best):.4f})"
        )
        self._write(lr=rate, pooling=pooling)

    def _loss(self, manifest: Manifest, name: str) -> float:
        return manifest.dev.get("last", {}).get(self.task.name, {}).get(name, math.nan)

    def _sweep(self) -> Sweep:
        """The sweep, of the size that fits."""
        size = self.measured.size
        assert size is not None
        whole = size.texts >= len(self.data.splits["train"])
        return Sweep(
            self._texts(None if whole else size.texts),
            default_members(self.measured.lr, size.members),
            self.directory / "sweep",
            backbone=self.asked.backbone,
            epochs=size.epochs,
            pooling=self.measured.pooling,  # type: ignore[arg-type]
            schedule="linear",
            warmup=0.1,
            options=SweepOptions(pack_size=self.measured.pack_size, patience=PATIENCE),
            trainer={"enable_progress_bar": self.verbose},
        )

    def _prove(self, sweep: Sweep) -> Recommendation:
        """Choose, prove and write ensembles; returns what is recommended."""
        folder = sweep.directory / "ensembles"
        self._command(f"ensemble --logger false --runs {sweep.directory} --method", *METHODS)
        records, recommended = write_ensembles(
            runs=[sweep.directory],
            methods=METHODS,
            rules=None,
            epoch="best",
            folder=folder,
            report=self.say,
        )
        recommendation = recommended[self.task.name]
        if self.verbose:
            show(tables.score_table(records, recommendation.ensemble), keys=2)
        return recommendation

    def _finish(self, sweep: Path, recommendation: Recommendation, report: Path) -> Built:
        """Time the ensemble, score it on test, and say what it is worth."""
        path = sweep / "ensembles" / RECOMMENDED
        ensemble = Predictor.load(path)
        milliseconds = _milliseconds(ensemble, self.task, self.data.splits["dev"].texts)
        test = None
        split = self.data.splits.get("test")
        if split is not None and split.labels is not None:
            self._command(f"evaluate --model {path} --input", self.files["test"])
            test = evaluate(ensemble, self.files["test"])
        self.say(f"report: {report}")
        self._command(f"predict --model {path} --input", "FILE")
        sentence = _sentence(self.task, path, recommendation, test, milliseconds)
        self.say(sentence)
        return Built(path, recommendation, report, test, milliseconds, sentence)


def _milliseconds(ensemble: Predictor, task: Task, texts: list[tuple[str, ...]]) -> float:
    """Milliseconds of a text at prediction, of some texts together."""
    some = texts[:TIMED]
    ensemble.logits(some[:BATCH], task)  # what is made only once
    started = time.perf_counter()
    ensemble.logits(some, task)
    return 1000 * (time.perf_counter() - started) / len(some)


def _sentence(
    task: Task,
    path: Path,
    recommendation: Recommendation,
    test: Evaluation | None,
    milliseconds: float,
) -> str:
    """What to deploy, what it is worth, and what it costs."""

    def in_words(score: Any, sign: str = "") -> str:
        return f"{score.value:{sign}.3f} [{score.low:{sign}.3f}, {score.high:{sign}.3f}]"

    title = task.main_metric.title
    name = recommendation.ensemble.removeprefix(f"{task.name}-")
    if recommendation.alone:
        what, against = "the best member alone", "; no ensemble is proved to beat it"
    else:
        what = f"{name} of {recommendation.members} members"
        against = f", {in_words(recommendation.gain, '+')} against the best member"
    on_test = "" if test is None else f" ({in_words(test.score)} on test)"
    models = "1 model runs" if recommendation.members == 1 else f"{recommendation.members} run"
    return (
        f"Deploy {path}: {what}, {title} {in_words(recommendation.estimate)} on new"
        f" texts{on_test}{against}; {models}, {milliseconds:.1f} ms a text on this machine."
    )
