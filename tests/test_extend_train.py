"""Sweeps made in Python, and executors added from outside: the bits are those of one process."""

import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor
from itertools import islice

import pytest
import torch
import yaml
from helpers.sweeps import contents

from loraens.data.config import DataConfig
from loraens.data.modules import STS, TextData
from loraens.data.sources import course_source
from loraens.errors import InputError
from loraens.members import Grid, Member
from loraens.store import MemberStore
from loraens.train.config import SweepConfig, TrainConfig
from loraens.train.coordinator import Coordinator
from loraens.train.executors import EXECUTORS, InProcess
from loraens.train.module import Population
from loraens.train.options import SweepOptions
from loraens.train.packs import Pack
from loraens.train.worker import Worker

GRID = Grid(rank=[1, 8, 29], scale=[1.0, 3.0])
BASE = Member(8, 1.0, lr=1e-2)


class ChildProcess:
    """Trains every pack in a child process, which gets nothing but the pickled worker and pack."""

    def run(self, worker, packs, report):
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            for pack in packs:
                yield pool.submit(worker.train, pack).result()


class Reversed:
    """Takes all packs at once, and trains the last one first."""

    def __init__(self):
        self.log = []

    def run(self, worker, packs, report):
        for pack in reversed(list(packs)):
            self.log.append([member.name for member in pack.members])
            yield worker.train(pack)


@pytest.fixture
def coordinator(tmp_path, corpus, tiny_bert):
    """Makes the coordinator of a sweep of six members from Python objects."""

    def make(name, executor=None, data=None, grid=GRID, epochs=2, size=2, **options):
        data = data or STS(str(corpus))
        config = SweepConfig.from_objects(
            data,
            grid,
            tmp_path / name,
            backbone=str(tiny_bert),
            epochs=epochs,
            base=BASE,
            options=SweepOptions(pack_size=size, **options),
            model={"pooling": "mean"},
            trainer={"enable_progress_bar": False},
        )
        return Coordinator(config, data, executor)

    return make


@pytest.mark.slow
def test_a_child_process_gives_the_same_bits(coordinator, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    here = coordinator("here", epochs=3, patience=1)
    manifests = here.run()
    there = coordinator("there", ChildProcess(), epochs=3, patience=1)
    assert there.run().keys() == manifests.keys()
    whole = contents(here.directory)
    assert len({name.partition("/")[0] for name in whole}) == 6
    assert contents(there.directory) == whole


@pytest.mark.slow
def test_the_order_of_packs_changes_no_bit(coordinator):
    options = {"epochs": 4, "patience": 1, "halving_factor": 2}
    forwards = coordinator("forwards", **options)
    manifests = forwards.run()
    assert {manifest.status for manifest in manifests.values()} == {"finished", "stopped"}
    executor = Reversed()
    backwards = coordinator("backwards", executor, **options)
    backwards.run()
    assert contents(backwards.directory) == contents(forwards.directory)
    assert not (backwards.directory / "packs").exists()
    ranks = [[int(name.partition("-")[0][1:]) for name in names] for names in executor.log]
    assert ranks[:3] == [[29, 29], [8, 8], [1, 1]]


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "sizes"), [(1, [6, 3, 2]), (2, [6, 2, 1, 1, 1])])
def test_after_a_halving_a_pack_is_left_for_every_worker(coordinator, monkeypatch, workers, sizes):
    monkeypatch.setattr("loraens.train.coordinator.choose_size", lambda **options: 6)
    backwards = Reversed()
    of_ray = {"engine": "ray", "workers": workers, "cpus": 1}
    coordinator("auto", backwards, size="auto", epochs=4, halving_factor=2, **of_ray).run()
    assert [len(names) for names in backwards.log] == sizes


@pytest.mark.slow
def test_packs_that_were_taken_before_memory_ran_out_are_split_too(coordinator, monkeypatch):
    step = Population.training_step

    def hungry(self, batch, batch_idx):
        if len(self.members) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Population, "training_step", hungry)
    backwards = Reversed()
    sweep = coordinator("tight", backwards, size=3, epochs=1)
    manifests = sweep.run()
    assert [len(names) for names in backwards.log] == [3, 3, 2, 2, 2]
    assert {manifest.status for manifest in manifests.values()} == {"finished"}
    assert sweep.state.fits == 2


@pytest.mark.slow
def test_an_executor_that_loses_a_pack_is_noticed(coordinator):
    class Careless:
        def run(self, worker, packs, report):
            return iter([worker.train(pack) for pack in islice(packs, 2)][:1])

    with pytest.raises(RuntimeError, match="returned no result for"):
        coordinator("lost", Careless(), epochs=1).run()


@pytest.fixture
def reversed_executor():
    """The name of an executor from outside."""
    EXECUTORS.register("reversed", Reversed)
    yield "reversed"
    EXECUTORS.unregister("reversed")


def test_an_executor_is_chosen_by_name(coordinator, reversed_executor):
    assert isinstance(coordinator("named", engine=reversed_executor).executor, Reversed)
    assert isinstance(coordinator("default").executor, InProcess)
    with pytest.raises(InputError, match=r"engine 'dask' is none of in_process, ray, reversed"):
        coordinator("other", engine="dask")


@pytest.mark.slow
def test_a_pickled_worker_touches_its_pack_its_members_and_examples_only(coordinator, tmp_path):
    sweep = coordinator("pickled")
    sweep.directory.mkdir()
    (sweep.directory / "config.yaml").write_text(sweep.config.text)
    sweep.files.folder.mkdir()
    worker = pickle.loads(pickle.dumps(sweep.worker))
    assert worker is not sweep.worker
    assert worker.config == sweep.worker.config == TrainConfig.read(sweep.directory)
    members = sweep.config.members[:2]
    pack = Pack(members, sweep.files.path(0, members[0].name), until=1)
    steps = []
    result = worker.train(pack, lambda pack, count: steps.append(count))
    assert result == pickle.loads(pickle.dumps(result))
    assert [(m.name, m.status, m.epochs) for m in result.members] == [
        (member.name, "trained", 1) for member in members
    ]
    assert sum(steps) == 2 * sweep.steps_of_epoch()
    expected = {"config.yaml", "examples", "packs", *(member.name for member in members)}
    assert {path.name for path in sweep.directory.iterdir()} == expected
    assert list(sweep.files.folder.iterdir()) == [pack.checkpoint]
    again = worker.train(pack)
    assert again.members == result.members  # it was trained until there
    last = worker.train(Pack(members, pack.checkpoint, until=2, epochs_done=1))
    assert {member.status for member in last.members} == {"finished"}
    assert not pack.checkpoint.exists()


@pytest.mark.slow
def test_a_sweep_made_in_python_goes_on_from_its_config(coordinator, run_command, capsys, tmp_path):
    sweep = coordinator("python", grid=[Member(2, 1.0, lr=1e-2), Member(3, 2.0)])
    assert sorted(sweep.run()) == ["r2-c1-s0-lr0.01", "r3-c2-s0-lr0.0001"]
    before = contents(sweep.directory)
    config = yaml.safe_load((sweep.directory / "config.yaml").read_text())
    assert config["data"]["class_path"] == "loraens.data.modules.STS"
    assert sweep.resume == f"loraens sweep --config {sweep.directory / 'config.yaml'}"
    assert run_command("sweep", "--config", sweep.directory / "config.yaml", "--dry-run") == 0
    assert "2 members, of which 2 have ended" in capsys.readouterr().out
    assert run_command("sweep", "--config", sweep.directory / "config.yaml") == 0
    assert contents(sweep.directory) == before


@pytest.mark.slow
def test_data_in_memory_is_trained_in_this_process_only(coordinator, corpus, tmp_path):
    class InMemory(TextData):
        def __init__(self, source):
            super().__init__([source])

    data = InMemory(course_source("sts", str(corpus)))
    assert DataConfig.of(data) is None
    sweep = coordinator("memory", data=data, epochs=1)
    with pytest.raises(InputError, match="only in this process's memory"):
        pickle.dumps(sweep.worker)
    for name in sweep.run():
        assert MemberStore(sweep.directory / name).manifest().status == "finished"
    assert sweep.resume == "the same program again"
    with pytest.raises(InputError, match=r"config.yaml names no data"):
        Worker.from_directory(sweep.directory)
    with pytest.raises(InputError, match="names no data"):
        Coordinator(SweepConfig.read(sweep.directory))


def test_bad_objects_are_refused(coordinator, corpus, tiny_bert, tmp_path):
    data = STS(str(corpus), backbone="other", batch_size=4)
    assert data.init_args == {"root": str(corpus), "backbone": "other", "batch_size": 4}
    assert DataConfig.of(data).init_args == {"root": str(corpus), "batch_size": 4}
    with pytest.raises(InputError, match="tokenised for backbone 'other'"):
        coordinator("other", data=data)
    make = {"backbone": str(tiny_bert), "epochs": 1}
    data = STS(str(corpus))
    for options, message in (
        ({"model": {"pool": "mean"}}, "pool"),
        ({"model": {"warmup": "much"}}, "warmup"),
        ({"model": {"mode": "frozen"}}, "a sweep trains LoRA members"),
        ({"trainer": {"callbacks": [object()]}}, "take plain values"),
        ({"trainer": {"max_steps": 5}}, "a sweep trains whole epochs"),
        ({"epochs": 0}, "a sweep needs an end"),
    ):
        with pytest.raises(InputError, match=message):
            SweepConfig.from_objects(data, GRID, tmp_path / "x", **{**make, **options})
    config = SweepConfig.from_objects(data, GRID, tmp_path / "x", trainer={"precison": 1}, **make)
    with pytest.raises(InputError, match="precison"):
        Coordinator(config, data)
    assert not (tmp_path / "x").exists()


def test_a_config_edited_by_hand_is_read(coordinator):
    text = coordinator("edited").config.text
    config = SweepConfig.from_yaml(text.replace("lr: 0.01", "lr: 1e-5"))
    assert config.base == Member(8, 1.0, lr=1e-5)
    for old, new, message in (
        ("lr: 0.01", "lr: fast", "lr"),
        ("lr: 0.01", "lr: -1", "positive scale, learning rate"),
        ("pack_size: 2", "pack_size: 0", "pack_size 0 is too small"),
        ("pack_size: 2", "packs: 2", "packs"),
        ("grid:", "grid: [", "is not YAML"),
        ("  class_path: ", "  klass_path: ", "no data.class_path"),
    ):
        with pytest.raises(InputError, match=message):
            SweepConfig.from_yaml(text.replace(old, new), "runs/sts/config.yaml")
    with pytest.raises(InputError, match="restore it"):
        SweepConfig.from_yaml("nothing")
