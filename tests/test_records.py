"""Records are read back as they were written, and what is wrong with one is named in a sentence."""

import json
import math

import pytest
from helpers.records import make_manifest, make_settings

from loraens.ensemble.options import Options
from loraens.ensemble.record import EnsembleMember, EnsembleRecord
from loraens.ensemble.significance import Interval
from loraens.errors import InputError
from loraens.records import EpochRecord, Manifest
from loraens.store import MemberStore
from loraens.tasks import QUORA, SST, STS

NAN = math.nan
SUM = "0123456789abcdef" * 4


def manifest():
    """One that uses every field."""
    scores = {"sst": {"accuracy": 0.5, "nll": 1.25}, "quora": {"accuracy": NAN}}
    entries = (
        EpochRecord("epoch-001", 1, 6, 0.75, scores, 0.5),
        EpochRecord("epoch-002-2", 2, 12, NAN, scores, NAN),
    )
    return make_manifest(
        status="stopped",
        settings=make_settings((SST, QUORA), gradient_clip_val=1.0, limit_train_batches=3),
        epochs={"best": "epoch-001", "last": "epoch-002-2"},
        dev={"best": scores, "last": scores},
        ended="epoch 2: no better dev score for 1 epochs",
        history=entries,
        dropped={"sst-train": {"no text": [3, 5]}},
        truncated={"sst-train": 2},
        trainable_parameters=7,
        seconds=1.5,
        versions={"torch": "2.0"},
        files={"epoch-001/sst-dev.npz": SUM},
        max_epochs=3,
    )


def ensemble():
    """One that uses every field."""
    parts = ("r1", 3, 0.25), ("r2", 4, 0.75)
    members = tuple(
        EnsembleMember(name, f"../../{name}", "epoch-001", rank, standing, weight, SUM)
        for standing, (name, rank, weight) in enumerate(parts)
    )
    return EnsembleRecord(
        task=STS,
        method="dicor",
        rule="logits",
        options=Options(size=2, pool=0.5),
        epoch="last",
        pool_size=6,
        members=members,
        dev={"pearson": 0.5, "mse": 1.0},
        held_out={"pearson": NAN, "mse": 1.0},
        interval=Interval(0.5, 0.25, 0.75),
        to_best=Interval(0.0, NAN, NAN),
        to_omni=Interval(0.0, -0.5, 0.5),
        p_best=NAN,
        temperature=None,
        calibrated={"nll": NAN},
        test=0.25,
        diversity={"mean_pearson": NAN},
        backbone="minilm",
        backbone_fingerprint=SUM,
        data={"sts-dev": SUM},
        train_epochs=2,
    )


RECORDS = {"manifest": manifest, "ensemble": ensemble}
READ = {
    "manifest": lambda directory: MemberStore(directory).read(),
    "ensemble": EnsembleRecord.read,
}
FORMATS = {"manifest": 1, "ensemble": 2}


def write(directory, kind, fields):
    path = directory / f"{kind}.json"
    path.write_text(json.dumps({"format": FORMATS[kind], **fields}))
    return path


def same(left, right):
    """Whether two JSON values are equal, NaN equal to NaN."""
    return json.dumps(left) == json.dumps(right)


@pytest.mark.parametrize("kind", RECORDS)
def test_what_is_written_comes_back(tmp_path, kind):
    record = RECORDS[kind]()
    write(tmp_path, kind, record.to_json())
    found = READ[kind](tmp_path)
    assert type(found) is type(record)
    assert repr(found) == repr(record)  # NaN is not equal to itself
    (tmp_path / f"{kind}.json").write_bytes(record.dumps(format=FORMATS[kind]))
    assert repr(READ[kind](tmp_path)) == repr(record)


@pytest.mark.parametrize("kind", RECORDS)
def test_json_has_null_for_scores_that_are_not_defined(kind):
    record = RECORDS[kind]()
    text = record.dumps().decode()

    def refuse(constant):
        pytest.fail(f"{constant} is not JSON")

    fields = json.loads(text, parse_constant=refuse)
    assert same(fields, record.to_json())
    scores = {
        "manifest": lambda f: [f["dev"]["best"]["quora"]["accuracy"], f["history"][1]["score"]],
        "ensemble": lambda f: [f["held_out"]["pearson"], f["to_best"]["low"], f["p_best"]],
    }
    assert set(scores[kind](fields)) == {None}


def test_null_is_nan_in_memory(tmp_path):
    write(tmp_path, "manifest", manifest().to_json())
    found = MemberStore(tmp_path).read()
    assert math.isnan(found.dev["last"]["quora"]["accuracy"])
    assert math.isnan(found.history[1].train_loss)
    assert (found.score(SST), found.score(QUORA), found.score(STS)) == (0.5, None, None)
    write(tmp_path, "ensemble", ensemble().to_json())
    record = EnsembleRecord.read(tmp_path)
    assert all(map(math.isnan, (record.p_best, record.to_best.high, record.calibrated["nll"])))
    assert record.temperature is None  # not a score: null is that there is none


@pytest.mark.parametrize("kind", RECORDS)
def test_fields_of_later_versions_are_left_out(tmp_path, kind):
    record = RECORDS[kind]()
    write(tmp_path, kind, {**record.to_json(), "mood": "good"})
    assert repr(READ[kind](tmp_path)) == repr(record)


def put(fields, path, value):
    """The fields with one of them, at a dotted path, replaced, or removed where the value is
    `...`.
    """
    changed = json.loads(json.dumps(fields))
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    place = changed
    for part in parents:
        place = place[part]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return changed


FAULTS = [
    # missing
    *(("manifest", name, ...) for name in ("name", "status", "member", "settings", "dev")),
    *(("manifest", name, ...) for name in ("epochs", "member.rank", "settings.backbone")),
    *(("manifest", name, ...) for name in ("settings.tasks.0.kind", "history.1.step")),
    *(("ensemble", name, ...) for name in ("task", "rule", "members", "interval", "epoch")),
    *(("ensemble", name, ...) for name in ("members.1.weight", "interval.low", "test")),
    # of another type
    ("manifest", "name", 3),
    ("manifest", "status", "asleep"),
    ("manifest", "epochs", ["epoch-001"]),
    ("manifest", "epochs.first", "epoch-001"),
    ("manifest", "member", None),
    ("manifest", "member.rank", "4"),
    ("manifest", "member.rank", 4.5),
    ("manifest", "settings.targets", "query"),
    ("manifest", "settings.encoder_dropout", "yes"),
    ("manifest", "settings.tasks.0.text_columns", [1]),
    ("manifest", "dev.best.sst.accuracy", "high"),
    ("manifest", "history.0.train_loss", [0.5]),
    ("manifest", "seconds", "1.5"),
    ("manifest", "files", None),
    ("ensemble", "rule", "dice"),
    ("ensemble", "epoch", "first"),
    ("ensemble", "members", {}),
    ("ensemble", "members.0", "r1"),
    ("ensemble", "members.0.weight", "0.5"),
    ("ensemble", "interval", 0.5),
    ("ensemble", "options.bags", None),
    ("ensemble", "pool_size", True),
    # out of range
    ("manifest", "member.rank", -1),
    ("manifest", "member.scale", 0.0),
    ("manifest", "member.head_dropout", 1.0),
    ("manifest", "history.0.step", -6),
    ("manifest", "history.0.epoch", -1),
    ("manifest", "settings.batch_size", -8),
    ("manifest", "settings.scheduled_steps", -1),
    ("manifest", "trainable_parameters", -1),
    ("manifest", "settings.tasks.0.metric", "pearson"),
    ("ensemble", "members.0.rank", -1),
    ("ensemble", "members.0.standing", -1),
    ("ensemble", "members.0.weight", -0.25),
    ("ensemble", "members.0.weight", 0.0),
    ("ensemble", "members", []),
    ("ensemble", "temperature", 0.0),
    ("ensemble", "pool_size", -1),
    ("ensemble", "task.loss", "cross_entropy"),
    # no checksum
    ("manifest", "files.epoch-001/sst-dev!npz", "0"),
    ("ensemble", "members.0.manifest_sha256", SUM.upper()),
    # leaves its directory
    ("manifest", "epochs.best", "../x"),
    ("manifest", "epochs.best", "/etc"),
    ("manifest", "epochs.last", "epoch-001/../../x"),
    ("manifest", "epochs.last", ""),
    ("manifest", "history.0.name", "../x"),
    ("manifest", "files./etc/x", SUM),
    ("manifest", "files.epoch-001/!!/!!/x", SUM),
    ("ensemble", "members.0.epoch", "../epoch-001"),
    ("ensemble", "members.0.epoch", "/epoch-001"),
]


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    FAULTS,
    ids=[f"{k}-{n}-{'missing' if v is ... else json.dumps(v)}" for k, n, v in FAULTS],
)
def test_a_field_that_cannot_be_used_is_named_in_one_sentence(tmp_path, kind, name, value):
    fields = RECORDS[kind]().to_json()
    if name.startswith("files."):  # whose names have dots, written as !
        fields["files"] = {name.removeprefix("files.").replace("!", "."): value}
        name = f"files.{next(iter(fields['files']))}"
    else:
        fields = put(fields, name, value)
    path = write(tmp_path, kind, fields)
    with pytest.raises(InputError) as error:
        READ[kind](tmp_path)
    message = str(error.value)
    problem = "lacks the field" if value is ... else "has a field"
    assert message.startswith(f"{path} {problem} '")
    named = message.removeprefix(f"{path} {problem} '").partition("'")[0]
    parents = [name.rsplit(".", count)[0] for count in range(name.count(".") + 1)]
    assert named == name or named in parents or named.startswith(f"{name}.")
    assert named.partition(".")[0] == name.partition(".")[0]
    assert "\n" not in message
    assert message.endswith(": restore it or train the member again") or message.endswith(
        ": make it again with `loraens ensemble`"
    )


@pytest.mark.parametrize("kind", RECORDS)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param("{", "is not JSON", id="json"),
        pytest.param("[]", "is no JSON object", id="list"),
        pytest.param('{"format": 99}', "is not", id="format"),
        pytest.param("\xff", "is not JSON", id="latin-1"),
    ],
)
def test_files_of_another_kind_are_named(tmp_path, kind, content, message):
    path = tmp_path / f"{kind}.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match=message) as error:
        READ[kind](tmp_path)
    assert str(error.value).startswith(f"{path} ")
    assert "\n" not in str(error.value)


def of_format_1(fields):
    """An ensemble's fields as the first format had them."""
    members = [
        {**{k: v for k, v in m.items() if k != "standing"}, "place": m["standing"]}
        for m in fields["members"]
    ]
    rest = {name: value for name, value in fields.items() if name != "epoch"}
    return {**rest, "format": 1, "which": fields["epoch"], "members": members}


def test_ensembles_of_format_1_are_read(tmp_path):
    record = ensemble()
    path = write(tmp_path, "ensemble", of_format_1(record.to_json()))
    assert json.loads(path.read_text())["format"] == 1
    found = EnsembleRecord.read(tmp_path)
    assert repr(found) == repr(record)
    found.write(tmp_path)  # as it is written now
    assert json.loads(path.read_text())["format"] == 2
    assert repr(EnsembleRecord.read(tmp_path)) == repr(record)


@pytest.mark.parametrize(
    ("name", "value"),
    [("which", ...), ("which", "first"), ("members.0.place", ...), ("members.0.place", -1)],
)
def test_what_format_1_lacks_is_named(tmp_path, name, value):
    fields = put(of_format_1(ensemble().to_json()), name, value)
    path = write(tmp_path, "ensemble", fields)
    now = {"which": "epoch", "members.0.place": "members.0.standing"}[name]
    with pytest.raises(InputError, match=f"has a field '{now}'") as error:
        EnsembleRecord.read(tmp_path)
    assert str(error.value).startswith(f"{path} ")


def test_manifests_are_compared_by_their_fields():
    assert make_manifest() == make_manifest()
    assert make_manifest() != make_manifest(status="failed")
    assert Manifest.from_json(make_manifest().to_json(), "x", "y") == make_manifest()
