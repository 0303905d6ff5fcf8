"""Students learn what a teacher predicts for texts that it was not trained on."""

import csv

import numpy as np
import pytest
import torch
from helpers.corpus import split_texts, texts_of
from test_sweep import QUIET, contents

from loraens.data.targets import Targets
from loraens.ensemble.combine import combine
from loraens.ensemble.read import read_runs
from loraens.ensemble.record import EnsembleRecord
from loraens.inference.predictor import Predictor
from loraens.labels import LABEL_KINDS
from loraens.members import Member
from loraens.tasks import SST, STS, Task
from loraens.train.config import TrainConfig
from loraens.train.worker import PackWatch

NEW = ["a clever film indeed", "rather a bore", "it is fine, fine and fine"]


def task_of(kind, loss, **options):
    names = () if kind == "number" else ("low", "middle", "high")
    metric = LABEL_KINDS[kind].metrics[0].name
    return Task("t", ("text",), "label", kind, loss, metric, class_names=names, **options)


def softened(probabilities, temperature):
    powers = probabilities ** (1 / temperature)
    return powers / powers.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize(
    "task", [task_of("classes", "cross_entropy"), task_of("levels", "corn")], ids=lambda t: t.kind
)
def test_loss_against_probabilities_of_classes(task, temperature):
    """The definition, from the probabilities that predictions are made of."""
    rng = np.random.default_rng(0)
    logits = 3 * rng.normal(size=(2, 7, task.num_outputs))
    targets = rng.dirichlet(np.ones(3), size=(2, 7))
    flat = task.label_kind.probabilities(task, logits.reshape(14, -1)).reshape(2, 7, 3)
    entropies = softened(targets, temperature) * np.log(softened(flat, temperature))
    losses = task.label_kind.soft_losses_of(
        task, torch.from_numpy(logits), torch.from_numpy(targets), temperature
    )
    np.testing.assert_allclose(losses, -entropies.sum(-1) * temperature**2, rtol=1e-6)


def test_loss_against_several_labels_and_numbers():
    rng = np.random.default_rng(1)
    logits, targets = 2 * rng.normal(size=(2, 5, 3)), rng.uniform(size=(2, 5, 3))
    task = task_of("labels", "binary_cross_entropy")
    losses = task.label_kind.soft_losses_of(
        task, torch.from_numpy(logits), torch.from_numpy(targets), 2.0
    )
    own, theirs = 1 / (1 + np.exp(-logits / 2)), 1 / (1 + np.sqrt((1 - targets) / targets))
    entropies = theirs * np.log(own) + (1 - theirs) * np.log(1 - own)
    np.testing.assert_allclose(losses, -4 * entropies.mean(-1), rtol=1e-6)
    values = STS.label_kind.soft_losses_of(
        STS, torch.tensor([[[1.0], [4.0]]]), torch.tensor([[3.0, 3.5]]), 1.0
    )
    assert values.tolist() == [[4.0, 0.25]]


@pytest.fixture
def texts(corpus, tmp_path):
    """New sentences, one of them twice, and one that is labelled."""
    path = tmp_path / "texts.csv"
    sentences = [*NEW, NEW[0].upper(), split_texts(corpus, "sst", "dev")[0][0]]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["sentence"], *([sentence] for sentence in sentences)])
    return path


@pytest.mark.slow
def test_students_of_an_ensemble_without_folds(
    trained_sweep, texts, run_command, tmp_path, capsys, monkeypatch
):
    """They learn the unlabelled texts from the teacher and the training examples from their labels;
    killed after an epoch, they end as students that were not.
    """
    sweep = trained_sweep("sst")
    teacher = sweep / "ensembles" / "sst-omni-probs"
    command = ("distil", "--model", teacher, "--texts", texts, "--temperature", 2)
    command = (*command, "--sweep.pack_size", 1)
    assert run_command(*command) == 0
    students = sweep.with_name("sst-sweep-distilled")
    assert f"loraens ensemble --runs {sweep} {students}" in capsys.readouterr().out

    targets = Targets.read(students / "targets.npz")
    assert np.isnan(targets.labelled).all()
    rows = Predictor.load(teacher).predict(NEW)
    probabilities = [[row[f"probability_{name}"] for name in SST.class_names] for row in rows]
    np.testing.assert_allclose(targets.unlabelled, [probabilities], atol=2e-6)
    data = TrainConfig.read(students).data.build(str(Predictor.load(teacher).backbone))
    data.setup("fit")
    (taught,) = data.trained_by([Member(rank=1, scale=1.0)])
    size = len(data.splits["sst", "train"])
    assert taught.split.texts[size:] == [(text,) for text in NEW]
    soft = taught.batch(np.array([[0, size + 1]])).soft
    np.testing.assert_array_equal(soft.label_shares, [[1, 0]])
    np.testing.assert_array_equal(soft.targets[0, 1], targets.unlabelled[0, 1])

    class Killed(SystemExit):
        pass

    def killed(self, trainer, module, _of=PackWatch.on_train_epoch_end):
        _of(self, trainer, module)
        raise Killed(130)

    with monkeypatch.context() as patch:
        patch.setattr(PackWatch, "on_train_epoch_end", killed)
        assert run_command(*command, "--out", sweep.with_name("killed")) == 130
    before = (sweep.with_name("killed") / "targets.npz").stat().st_mtime_ns
    assert run_command(*command, "--out", sweep.with_name("killed")) == 0
    assert (sweep.with_name("killed") / "targets.npz").stat().st_mtime_ns == before
    assert contents(sweep.with_name("killed")) == contents(students)

    both = ("ensemble", "--runs", sweep, students, "--method", "omni", "--rule", "probs")
    assert run_command(*both, "--out", sweep / "both", "--logger", "false") == 0
    assert len(EnsembleRecord.read(sweep / "both" / "sst-omni-probs").members) == 5


@pytest.fixture(scope="module")
def folds(run_command, corpus, tiny_bert, tmp_path_factory):
    """A sweep of two configurations of three folds, and ensembles of it, which no test changes."""
    root = tmp_path_factory.mktemp("teacher")
    data = ("--data", "STS", "--data.root", corpus, "--model.backbone", tiny_bert)
    grid = ("--grid.rank", "[1,4]", "--grid.folds", 3, "--sweep.pack_size", 6)
    model = ("--model.pooling", "mean", "--model.lr", 1e-2, "--trainer.max_epochs", 2)
    store = ("--store.root", root, "--store.run", "run", *QUIET)
    assert run_command("sweep", *data, *grid, *model, *store) == 0
    options = ("--method", "best", "weighted", "--logger", "false")
    assert run_command("ensemble", "--runs", root / "run", *options) == 0
    return root / "run"


@pytest.mark.slow
def test_students_of_folds(folds, corpus, run_command):
    """Targets of labelled examples are out of fold, those of unlabelled texts by the members of a
    student's own fold; one student is trained once more on all of them.
    """
    teacher = folds / "ensembles" / "sts-weighted-logits"
    students = folds.with_name("students")
    texts = corpus / "sts-test-student.csv"
    options = ("--texts", texts, "--label_share", 0.25, "--out", students)
    assert run_command("distil", "--model", teacher, *options) == 0

    record = EnsembleRecord.read(teacher)
    pool = read_runs([folds])["sts"].dev
    weights = {member.name: 3 * member.weight for member in record.members}
    of_pool = np.array([weights.get(f"{name}-f0", 0.0) for name in pool.names])
    targets = Targets.read(students / "targets.npz")
    expected = combine(pool, of_pool, "logits", pool.standings).predictions
    np.testing.assert_allclose(targets.labelled, expected, rtol=1e-5)
    predictor = Predictor.load(teacher)
    pairs = texts_of(corpus, "sts")[1]
    logits = predictor.logits(pairs, STS)[:, :, 0]
    own = predictor.combination.weights
    for fold in range(3):
        alone = 3 * own[fold::3] @ logits[fold::3]
        np.testing.assert_allclose(targets.unlabelled[fold], alone, rtol=1e-4)
    np.testing.assert_allclose(targets.unlabelled[3], own @ logits, rtol=1e-4)

    data = TrainConfig.read(students).data.build(predictor.backbone, folds=3)
    data.setup("fit")
    members = [Member(rank=1, scale=1.0, fold=fold) for fold in (2, 0)]
    size = len(data.splits["sts", "train"])
    (taught,) = data.trained_by(members)
    soft = taught.batch(np.array([[3, size], [3, size]])).soft
    np.testing.assert_array_equal(soft.targets[:, 0], targets.labelled[[3, 3]])
    np.testing.assert_array_equal(soft.targets[:, 1], targets.unlabelled[[2, 0], 0])
    np.testing.assert_array_equal(soft.label_shares, [[0.25, 0]] * 2)
    drawn = np.concatenate([examples for _, examples in data.sampler(members)], axis=1)
    part = data.splits["sts", "oof"].folds
    for member, own in zip(members, drawn, strict=True):
        assert not set(own) & set(part.inside[member.fold])
        assert len(set(own) - set(range(size))) > 0

    both = ("ensemble", "--runs", students, folds, "--method", "best", "--refit", "true")
    assert run_command(*both, "--logger", "false") == 0


@pytest.mark.slow
def test_what_cannot_be_a_teacher(trained_sweep, folds, texts, fails, run_command, tmp_path):
    sweep = trained_sweep("sst")
    ensemble = sweep / "ensembles" / "sst-omni-probs"
    member = sorted(sweep.glob("r*"))[0]
    assert "is no ensemble" in fails("distil", "--model", member, "--texts", texts)
    assert "give unlabelled texts (--texts)" in fails("distil", "--model", ensemble)
    message = fails("distil", "--model", ensemble, "--texts", texts, "--store.run", "x")
    assert message.startswith("loraens: --store.run is not an option of distil")
    message = fails("distil", "--model", ensemble, "--lable_share", "0.4")
    assert "--lable_share is not an option of distil, did you mean --label_share?" in message
    config = tmp_path / "settings.yaml"
    config.write_text("data: {class_path: SST}\n")
    message = fails("distil", "--model", ensemble, "--texts", texts, "--config", config)
    assert f"{config}: data is not an option of distil" in message
    message = fails("distil", "--model", ensemble, "--texts", texts, "--out", sweep)
    assert f"--out {sweep} holds another run" in message
    message = fails("distil", "--model", ensemble, "--texts", texts, "--label_share", 2)
    assert "--label_share 2: a share from 0 to 1" in message
    of_numbers = folds / "ensembles" / "sts-best-logits"
    assert "is of probabilities" in fails("distil", "--model", of_numbers, "--temperature", 2)
    message = fails("distil", "--model", ensemble, "--texts", texts, "--grid.folds", 3)
    assert "the teacher is of None" in message
    other = tmp_path / "other.csv"
    other.write_text("sentence\nquite another one\n")
    message = fails("distil", "--model", ensemble, "--texts", other)
    assert "is of another teacher or of other texts" in message
    known = ("distil", "--model", ensemble, "--out", tmp_path / "students", "--texts")
    other.write_text("sentence\n\n")
    assert "no text is there that is not labelled" in fails(*known, other)
