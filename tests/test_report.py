"""The report shows what was planted, and needs nothing from elsewhere."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from helpers.records import make_manifest, make_settings
from helpers.wandb_runs import read_run, run_offline
from matplotlib.image import imread

from loraens.ensemble.significance import Interval
from loraens.errors import InputError
from loraens.inference.predictor import Predictor
from loraens.inference.texts import read_texts
from loraens.members import Member
from loraens.records import EpochRecord
from loraens.report import drawing, figures, sections
from loraens.report.content import read
from loraens.report.elements import Missing, Picture, Rows
from loraens.report.embeddings import embeddings, low_and_high
from loraens.report.tables import verdict
from loraens.store import Logits, MemberStore, logits_to_bytes
from loraens.tasks import QUORA, SST, STS

CHOICE = ("best", "omni", "dicor", "topk")


def population(
    directory,
    task,
    ranks=(1, 4, 16),
    scales=(1.0, 3.0),
    seeds=(0, 1),
    examples=120,
    mode="lora",
    test_labels=False,
):
    """A run of members whose error falls with rank; those of one rank share a part of it."""
    rng = np.random.default_rng(0)
    classes = len(task.class_names)
    labels = {
        split: (
            rng.integers(0, classes, examples).astype(float)
            if classes
            else rng.uniform(0, 5, examples)
        )
        for split in "dt"
    }
    believed = {split: values.copy() for split, values in labels.items()}
    for split, values in labels.items():  # all members are wrong about the first few
        believed[split][:4] = (values[:4] + 1) % classes if classes else 5 - values[:4]
    for rank in ranks:
        shared = {split: rng.normal(0, 1, (examples, task.num_outputs)) for split in "dt"}
        for scale, seed in ((scale, seed) for scale in scales for seed in seeds):
            files = {}
            for split, name in (("d", "dev"), ("t", "test")):
                seen = believed[split]
                truth = (
                    seen[:, None]
                    if task.num_outputs == 1
                    else 5 * np.eye(classes)[seen.astype(int)]
                )
                truth = 4 * truth - 2 if task is QUORA else truth
                own = rng.normal(0, 1, shared[split].shape)
                logits = (
                    truth
                    + (2 / (1 + np.log2(max(rank, 1)) / 4)) * (0.7 * shared[split] + 0.5 * own)
                ).astype(np.float32)
                ids = np.array([f"{name}-{row}" for row in range(examples)])
                given = labels[split] if split == "d" or test_labels else None
                files[f"{task.name}-{name}.npz"] = logits_to_bytes(Logits(logits, ids, given))
            score = 0.5 + rank / 100
            dev = {task.name: {task.metric: score}}
            name = f"r{rank}-c{scale:g}-s{seed}"
            history = tuple(
                EpochRecord(f"epoch-{e:03d}", e, 6 * e, train_loss=1 / e, dev=dev, score=score)
                for e in (1, 2)
            )
            manifest = make_manifest(
                name=name,
                member=Member(rank, scale, seed),
                settings=make_settings((task,), mode=mode),
                epochs={"best": "epoch-002", "last": "epoch-002"},
                dev={"best": dev, "last": dev},
                history=history,
            )
            MemberStore(directory / name).write(
                {"epoch-002": files, "logits/epoch-001": files}, manifest
            )
    return directory


@pytest.fixture
def report(run_command, tmp_path, capsys):
    """Makes ensembles and a report of runs; returns its directory."""

    def run(*runs, methods=CHOICE, **options):
        for one in runs:
            assert run_command("ensemble", "--runs", one, "--method", *methods, "--size", 3) == 0
        given = [part for name, value in options.items() for part in (f"--{name}", value)]
        out = tmp_path / "report"
        assert (
            run_command("report", "--runs", *runs, "--out", out, *(given or ["--texts", "false"]))
            == 0
        )
        return out

    return run


class Page(HTMLParser):
    """Tags with their attributes, the text of each table, and whether all that is opened is
    closed.
    """

    VOID = ("meta", "link", "img", "br", "hr", "input", "path", "use", "image", "rect")

    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.open = []
        self.tables = []
        self.text = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)
        if "table" in self.open and ("td" in self.open or "th" in self.open):
            self.tables[-1][-1][-1] += data


@pytest.mark.slow
@pytest.mark.parametrize("task", [SST, QUORA, STS], ids=lambda task: task.name)
def test_the_page_needs_nothing_from_elsewhere(report, tmp_path, task):
    out = report(population(tmp_path / "run", task))
    text = (out / "index.html").read_text()
    page = Page(text)
    assert not page.open
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            if name.split(":")[-1] in ("href", "src", "srcset", "action", "data") and value:
                assert value.startswith(("#", "data:")), (tag, name, value)
    assert not re.search(r"url\((?!#|&quot;#|\"#)|@import|<link|<iframe|<script src|fetch\(", text)
    pictures = [attributes for tag, attributes in page.tags if attributes.get("role") == "img"]
    assert len(pictures) == len(list(out.glob("*.png"))) >= 7
    assert all(len(picture["aria-label"]) > 40 for picture in pictures)
    assert "prefers-color-scheme: dark" in text
    assert (
        drawing.INK not in text.partition("</style>")[2]
    )  # figures are drawn in the page's colours
    assert (out / f"{task.name}-similarity.png").stat().st_size > 5000
    assert (
        len(
            {
                attributes["id"]
                for _, attributes in page.tags
                if attributes.get("id", "").startswith("part")
            }
        )
        >= 1
    )


@pytest.mark.slow
def test_tables_hold_the_scores_of_the_ensembles(report, tmp_path):
    run = population(tmp_path / "run", SST, test_labels=True)
    population(run.parent / "frozen", SST, ranks=(1,), scales=(1.0,), seeds=(0,), mode="frozen")
    assert run
    out = report(run)
    entries = json.loads((run / "ensembles" / "ensembles.json").read_text())
    table = Page((out / "index.html").read_text()).tables[0]
    found = {row[0].partition(":")[0]: dict(zip(table[0], row, strict=True)) for row in table[1:]}
    for entry in entries:
        if entry["rule"] != "vote":
            continue
        names = {"best": "best single LoRA member", "omni": "Omni-LoRA", "dicor": "DiCor-LoRA"}
        row = found[names.get(entry["method"], entry["method"])]
        assert row["dev (chosen on)"] == f"{entry['dev']['accuracy']:.4f}"
        held = entry["interval"]
        assert (
            row["cross-validated [95 %]"]
            == f"{held['value']:.4f} [{held['low']:.3f}, {held['high']:.3f}]"
        )
        assert row["test"] == f"{entry['test']:.4f}"
        assert row["members"] == str(len(entry["members"]))
        assert row["train epochs"] == str(entry["train_epochs"])
    assert found["Omni-LoRA"]["paper (BERT-base) dev"] == "0.5300"
    assert found["DiCor-LoRA"]["paper (BERT-base) test"] == "0.5500"
    assert found["topk"]["paper (BERT-base) dev"] == ""
    assert found["frozen backbone, heads alone"]["dev (chosen on)"] == ""


@pytest.mark.slow
def test_baselines_and_three_tasks_have_rows(report, run_command, tmp_path, capsys):
    runs = [population(tmp_path / task.name, task) for task in (SST, QUORA, STS)]
    frozen = [
        population(
            tmp_path / f"{task.name}-frozen",
            task,
            ranks=(0,),
            scales=(1.0,),
            seeds=(0,),
            mode="frozen",
        )
        for task in (SST, QUORA, STS)
        if task is not STS
    ]
    for one in runs:
        assert run_command("ensemble", "--runs", one, "--method", "omni") == 0
    capsys.readouterr()
    command = ["report", "--runs", *runs, *frozen, "--out", tmp_path / "out", "--texts", "false"]
    assert run_command(*command) == 0
    printed = capsys.readouterr().out
    tables = Page((tmp_path / "out" / "index.html").read_text()).tables
    assert [row[0] for row in tables[0][1:]] == [
        "best single LoRA member",
        "Omni-LoRA: all members",
    ]
    values = {}
    for one, task in zip(runs, (SST, QUORA, STS), strict=True):
        entries = json.loads((one / "ensembles" / "ensembles.json").read_text())
        entry = next(
            e
            for e in entries
            if e["method"] == "omni" and e["rule"] == ("logits" if task is STS else "vote")
        )
        values[task.name] = entry["interval"]["value"]
        recommended = json.loads((one / "ensembles" / "recommended").read_text())["tasks"]
        assert recommended[task.name]["sentence"] in printed
    overall = (values["sst"] + values["quora"] + (1 + values["sts"]) / 2) / 3
    assert float(tables[0][2][2]) == pytest.approx(overall, abs=1e-4)
    assert float(tables[0][2][3]) == 0.791  # no column for test, which has no labels
    frozen_row = next(row for row in tables[1] if row[0].startswith("frozen"))
    assert frozen_row[4] == "0.5000"


def test_the_verdict_says_whether_a_gain_is_proved(tmp_path, run_command):
    run = population(tmp_path / "run", SST)
    assert run_command("ensemble", "--runs", run, "--method", "omni") == 0
    content = read([run])["sst"]
    for low, high, word in (
        (0.01, 0.03, "a proved gain."),
        (-0.01, 0.03, "no proof that it beats it: deploy that alone."),
        (-0.03, -0.01, "no proof that it beats it: deploy that alone."),
    ):
        gain = Interval((low + high) / 2, low, high)
        content.ensembles = [replace(record, to_best=gain) for record in content.ensembles]
        content.recommended = None  # as of older versions
        assert verdict(content).endswith(word)
        assert "accuracy of 1 ensemble," in verdict(content)
        assert f"[{low:+.4f}, {high:+.4f}]" in verdict(content)


def test_alike_members_lie_together():
    rng = np.random.default_rng(0)
    group = rng.permutation(np.repeat([0, 1, 2], 5))
    alike = np.where(group[:, None] == group, 0.95, 0.5) + rng.normal(0, 0.01, (15, 15))
    alike = np.clip((alike + alike.T) / 2, 0, 1)
    np.fill_diagonal(alike, 1.0)
    order = figures.cluster_order(alike)
    assert sorted(order) == list(range(15))
    assert (np.diff(group[order]) != 0).sum() == 2  # three blocks
    drawn = figures.heatmap(alike, order, [f"m{m}" for m in range(15)], {"rank": group}, "r")
    main = drawn.axes[0]
    bar = drawn.axes[2]
    np.testing.assert_array_equal(main.images[0].get_array(), alike[np.ix_(order, order)])
    assert [tick.get_text() for tick in main.get_xticklabels()] == [f"m{m}" for m in order]
    shown = np.asarray(bar.images[0].get_array())[:, 0]
    assert len(np.unique(shown, axis=0)) == 3
    assert (np.abs(np.diff(shown, axis=0)).sum(axis=1) > 0).sum() == 2


def test_lines_bands_and_marks(tmp_path, run_command):
    run = population(tmp_path / "run", STS)
    assert run_command("ensemble", "--runs", run, "--method", "dicor", "--size", 2) == 0
    content = read([run])["sts"]
    picture = sections.scores(content)
    axes = picture.drawn.axes[0]
    assert len(axes.lines) == 2  # one for each scale
    for line, scale in zip(axes.lines, (1.0, 3.0), strict=True):
        ranks, means = line.get_data()
        assert list(ranks) == [1, 4, 16]
        for rank, mean in zip(ranks, means, strict=True):
            here = [
                v
                for v, m in zip(content.dev, content.settings, strict=True)
                if m.rank == rank and m.scale == scale
            ]
            assert mean == pytest.approx(np.mean(here))
    marks = {
        marked.get_gid(): marked.get_offsets() for marked in axes.collections if marked.get_gid()
    }
    dicor = next(record for record in content.ensembles if record.method == "dicor")
    names = [member.name for member in dicor.members]
    expected = {
        (content.settings[m].rank, content.dev[m])
        for m in range(12)
        if content.members.dev.names[m] in names
    }
    assert {tuple(point) for point in marks["chosen-dicor"].tolist()} == expected
    assert len(marks["chosen-best"]) == 1
    one_seed = read([population(tmp_path / "one", STS, seeds=(0,))])["sts"]
    assert "there is no band" in sections.scores(one_seed).caption


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("heatmap", "one member only"),
        ("diversity", "same rank and scale"),
        ("scores", "same rank"),
        ("frontier", "1 members only"),
        ("reliability", "no ensemble `omni`"),
        ("outcomes", "no ensembles"),
        ("gains", "no ensembles of several members"),
        ("maps", "same rank"),
    ],
)
def test_a_section_without_data_gives_the_reason(tmp_path, name, reason):
    content = read(
        [population(tmp_path / "run", SST, ranks=(4,), scales=(1.0,), seeds=(0,), examples=30)]
    )["sst"]
    section = getattr(sections, name)(content, *([[]] if name == "maps" else []))
    assert isinstance(section, Missing)
    assert reason in section.why
    assert "no ensemble was made yet" in verdict(content)


@pytest.mark.slow
def test_what_is_missing_is_said(tmp_path, report):
    population(tmp_path / "run", SST, ranks=(4,), scales=(1.0,), seeds=(0,), examples=30)
    assert isinstance(sections.reliability(read([population(tmp_path / "n", STS)])["sts"]), Missing)
    text = (report(tmp_path / "run", methods=["best"], texts="true") / "index.html").read_text()
    assert "Test has no labels here" in text
    assert "Not trained here: frozen backbone" in text
    assert "the texts or the backbone cannot be had" in text


@pytest.mark.slow
def test_figures_hold_the_planted_numbers(tmp_path, run_command):
    run = population(tmp_path / "run", SST)
    assert run_command("ensemble", "--runs", run, "--method", "omni", "--size", 3) == 0
    content = read([run])["sst"]
    matrix = sections.outcomes(content).drawn.axes[0]
    omni = next(record for record in content.paper() if record.method == "omni")
    counts = np.array([int(text.get_text()) for text in matrix.texts]).reshape(5, 5)
    assert counts.sum() == 120
    assert np.trace(counts) / 120 == pytest.approx(
        omni.interval.value
    )  # omni chooses nothing: the same in all folds
    np.testing.assert_array_equal(
        counts.sum(axis=1), np.bincount(content.members.dev.labels.astype(int))
    )
    frontier = sections.frontier(content).drawn.axes[0]
    assert [
        line.get_label() for line in frontier.lines if not line.get_label().startswith("_")
    ] == ["random", "topk", "dicor"]
    assert list(frontier.lines[0].get_xdata()) == list(range(1, 12))
    best = next(record for record in content.paper() if record.method == "best")
    assert frontier.lines[1].get_ydata()[0] == pytest.approx(
        best.interval.value
    )  # the best one alone
    gains = sections.gains(content).drawn.axes[0]
    assert gains.collections[2].get_offsets()[0][0] == pytest.approx(
        omni.diversity["vote_error_observed"]
    )
    assert gains.collections[1].get_offsets()[0][0] == pytest.approx(
        omni.diversity["vote_error_predicted"]
    )
    training = sections.curves(content).drawn
    assert len(training.axes[0].lines) == len(training.axes[1].lines) == 12


def test_the_hardest_examples(tmp_path):
    content = read([population(tmp_path / "run", SST)])["sst"]
    pool = content.members.dev
    texts = [(f"text {row}",) for row in range(120)]
    apart, wrong = sections.hardest(content, texts)
    assert isinstance(wrong, Rows)
    all_wrong = (pool.predictions != pool.labels).all(axis=0)
    assert len(wrong.rows) == min(8, all_wrong.sum())
    for row in wrong.rows:
        assert all_wrong[int(row[0].split()[1])]
    most = max(len(set(pool.predictions[:, row])) for row in range(120))
    first = int(apart.rows[0][0].split()[1])
    assert len(set(pool.predictions[:, first])) >= min(3, most)
    assert [row[-1] for row in apart.rows] == sorted((row[-1] for row in apart.rows), reverse=True)
    assert apart.rows[0][1] == SST.class_names[int(pool.labels[first])]


@pytest.mark.slow
def test_186_members_stay_legible(tmp_path):
    content = read(
        [
            population(
                tmp_path / "run",
                STS,
                ranks=range(1, 32),
                scales=(1, 2, 3, 4, 5, 10),
                seeds=(0,),
                examples=40,
            )
        ]
    )["sts"]
    for picture in (
        sections.heatmap(content),
        sections.scores(content),
        sections.diversity(content),
    ):
        assert isinstance(picture, Picture)
        path = tmp_path / f"{picture.name}.png"
        path.write_bytes(drawing.png(picture.drawn))
        assert imread(path).shape[1] > 900
        assert len(drawing.svg(picture.drawn, picture.name)) < 3_000_000
    assert (
        sections.heatmap(content).drawn.axes[0].get_xticklabels() == []
    )  # no names that nobody can read


def test_changed_members_are_refused(tmp_path, run_command, capsys):
    run = population(tmp_path / "run", STS)
    assert run_command("ensemble", "--runs", run, "--method", "omni") == 0
    path = next(run.glob("r*/manifest.json"))
    path.write_text(path.read_text() + "\n")
    with pytest.raises(InputError, match="has changed since ensemble"):
        read([run])


@pytest.mark.slow
def test_ensembles_and_pictures_are_one_run_of_wandb(tmp_path):
    """Read back from the offline files: the group, the job type, the settings, the table and the
    images.
    """
    sweep = population(tmp_path / "runs" / "my-sweep", STS, seeds=(0,), examples=60)
    run_offline(tmp_path, "ensemble", "--runs", sweep, "--method", "omni")
    run_offline(tmp_path, "report", "--runs", sweep, "--out", tmp_path / "out", "--texts", "false")
    (ensembles,) = (
        read_run(path) for path in (sweep / "ensembles" / "wandb").glob("offline-run-*")
    )
    (pictures,) = (read_run(path) for path in (sweep / "wandb").glob("offline-run-*"))
    assert ensembles.run.run_id == pictures.run.run_id
    for logged in (ensembles, pictures):
        assert (logged.run.run_group, logged.run.job_type, logged.run.project) == (
            "my-sweep",
            "ensemble",
            "loraens",
        )
    assert ensembles.config["task"] == "sts"
    entry = next(
        e
        for e in json.loads((sweep / "ensembles" / "ensembles.json").read_text())
        if e["method"] == "omni"
    )
    assert ensembles.summary["sts/omni/logits/held_out"] == pytest.approx(
        entry["interval"]["value"]
    )
    assert ensembles.summary["ensembles/nrows"] == 2
    for path in (tmp_path / "out").glob("*.png"):
        assert pictures.summary[f"report/{path.stem}/_type"] == "image-file"
        (file,) = (sweep / "wandb").glob(
            f"offline-run-*/files/{pictures.summary[f'report/{path.stem}/path']}"
        )
        assert file.read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_the_report_is_of_the_epochs_that_the_ensembles_combine(tmp_path, run_command, capsys):
    run = population(tmp_path / "run", STS, seeds=(0,))
    assert run_command("ensemble", "--runs", run, "--method", "omni", "--epoch", "last") == 0
    assert "chosen on all of dev" not in capsys.readouterr().out
    content = read([run])["sts"]
    assert (content.members.epoch, len(content.ensembles)) == ("last", 2)
    assert read([run], epoch="best")["sts"].ensembles == []
    assert (
        run_command("ensemble", "--runs", run, "--method", "dicor") == 0
    )  # and best anew, of the best epochs
    assert "best epoch was chosen on all of dev" not in capsys.readouterr().out  # but in the folds
    said = []
    ensembles = read([run], report=said.append)["sts"].ensembles
    assert {record.method for record in ensembles} == {"best", "omni", "dicor"}
    assert not said
    assert (
        run_command(
            "ensemble",
            "--runs",
            run,
            "--method",
            "topk",
            "--epoch",
            "last",
            "--out",
            run / "ensembles",
        )
        == 0
    )
    assert {
        record.method for record in read([run], epoch="best", report=said.append)["sts"].ensembles
    } == {"dicor"}
    assert len(said) == 3
    assert all(
        "is skipped: it combines the members' last epochs" in sentence for sentence in said
    ), said


@pytest.mark.slow
def test_embeddings_are_what_the_heads_read_and_are_kept(
    trained, run_command, tmp_path, monkeypatch
):
    name, sweep = trained
    content = read([sweep])[name]
    texts = read_texts(content.members)["dev"].texts
    members = low_and_high(content.members)
    assert [int(content.members.dev.ranks[m]) for m in members] == [2, 5]
    for member, features in zip(members, embeddings(content.members, members, texts), strict=True):
        head = Predictor.load(content.members.directories[member]).model.heads[name]
        logits = features @ head.weight[0].detach().numpy().T + head.bias[0].detach().numpy()
        np.testing.assert_allclose(logits, content.members.dev.logits[member], atol=1e-4)
    monkeypatch.setattr(Predictor, "of_members", None)  # what is kept needs no backbone
    picture = sections.maps(content, texts)
    assert [len(axes.collections[0].get_offsets()) > 0 for axes in picture.drawn.axes[:2]] == [
        True,
        True,
    ]
    assert run_command("report", "--runs", sweep, "--out", tmp_path / "out") == 0
    page = Page((tmp_path / "out" / "index.html").read_text())
    assert any(
        " ".join(texts[0]).split()[0] in cell
        for table in page.tables
        for row in table
        for cell in row
    )
    assert (tmp_path / "out" / f"{name}-embeddings.png").is_file()
