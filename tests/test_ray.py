"""The engine ray: the bits of one process, with workers and coordinators that are killed, and
without a directory or texts that workers see.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from helpers.sweeps import contents

from loraens import cluster
from loraens.cluster import Cluster, cores_of_worker
from loraens.data.modules import TextData
from loraens.data.sources import course_source
from loraens.errors import InputError
from loraens.inference import predict_file
from loraens.members import Grid, Member
from loraens.train import cost, on_ray, plan
from loraens.train.checkpoints import PackCheckpoint
from loraens.train.config import SweepConfig
from loraens.train.coordinator import Coordinator
from loraens.train.cost import Cost
from loraens.train.options import SweepOptions
from loraens.train.state import pack_locked, wait_for_workers

ray = pytest.importorskip("ray", reason="the extra ray is not installed")
ROOT = Path(__file__).parent.parent
TASK = "ray::train"  # how Ray names a process that trains
TWO = ("--sweep.engine", "ray", "--sweep.workers", 2, "--sweep.cpus", 1)


@pytest.fixture
def arguments(tmp_path, corpus, tiny_bert):
    """The arguments of a sweep of six members in a directory."""

    def make(name, *args, epochs=2):
        files = ("--config", ROOT / "configs" / "sts.yaml", "--data.root", corpus)
        model = ("--model.backbone", tiny_bert, "--model.pooling", "mean", "--model.lr", 1e-2)
        grid = ("--grid.rank", "[1,8,29]", "--grid.scale", "[1,3]", "--sweep.pack_size", 2)
        quiet = ("--trainer.logger", "false", "--trainer.enable_progress_bar", "false")
        store = ("--store.root", tmp_path, "--store.run", name, "--trainer.max_epochs", epochs)
        return [str(arg) for arg in ("sweep", *files, *model, *grid, *quiet, *store, *args)]

    return make


def start(arguments, **variables):
    """The command in a process of its own, with further variables of the environment."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **variables}
    call = [sys.executable, "-m", "loraens", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # as where SIGINT is ignored, in the background of a script, commands ignore it too
    given = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), **pipes}
    return subprocess.Popen(call, env=environment, **given)


def end(process):
    """Kill a command, and close its pipes."""
    process.kill()
    if not process.stdout.closed:
        process.communicate()


def started(process):
    """The processes that a command has started, its own not among them."""
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def wait_until(true, process, seconds=240):
    """Until a function gives something that is true, which is returned."""
    for _ in range(100 * seconds):
        if value := true():
            return value
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    pytest.fail(f"{true} has not come")


def epochs_done(packs):
    """Whole epochs of the packs that are under way, by the name of their file."""
    return {path.name: PackCheckpoint.load(path).epochs_done for path in packs.glob("*.ckpt")}


def training(process):
    """The processes that train packs."""
    found = []
    for child in started(process):
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended since it was listed
            if child.name().startswith(TASK):
                found.append(child)
    return found


@pytest.fixture(scope="module")
def ray_here():
    """Ray in this process, which a command then does not end."""
    with Cluster(2, cpus=1) as cluster:
        yield cluster


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--sweep.workers", 2), "--sweep.workers 2 is of engine ray: give --sweep.engine ray too"),
        (("--sweep.cpus", 2), "--sweep.cpus 2 is of engine ray"),
        (("--sweep.address", "auto"), "--sweep.address auto is of engine ray"),
        (("--sweep.shared", "false"), "--sweep.shared false is of engine ray"),
        (("--sweep.engine", "ray", "--sweep.workers", 0), "--sweep.workers 0 is too small"),
        (("--sweep.engine", "ray", "--sweep.cpus", -1), "--sweep.cpus -1 is too small"),
        (("--trainer.devices", 2), "--sweep.engine ray --sweep.workers N"),
        (("--trainer.num_nodes", 2), "--sweep.engine ray --sweep.workers N"),
    ],
)
def test_wrong_combinations_are_refused(fails, arguments, tmp_path, options, message):
    assert message in fails(*arguments("run", *options))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--workers", 2), "--workers 2 is of engine ray: give --engine ray too"),
        (("--engine", "ray", "--workers", 0), "--workers 0 is too small"),
        (("--engine", "ray", "--input", "-"), "engine ray is for --input"),
    ],
)
def test_wrong_combinations_of_predict_are_refused(fails, tmp_path, options, message):
    given = ("--text", "a") if "--input" in options else ("--input", tmp_path / "x.csv")
    options = tuple(option for option in options if option not in ("--input", "-"))
    assert message in fails("predict", "--model", tmp_path, *given, *options)


def test_a_run_names_no_cluster(fails, arguments, tmp_path):
    """Its config.yaml may be a stranger's, and a cluster's answers run code."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".loraens").touch()
    config = tmp_path / "run" / "config.yaml"
    config.write_text("sweep: {engine: ray, address: '192.0.2.1:6379'}\n")
    assert "if you trust it, give --sweep.address 192.0.2.1:6379" in fails(
        "sweep", "--config", config
    )


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1"])
def test_no_cluster_at_an_address_is_one_sentence(address):
    before = signal.getsignal(signal.SIGTERM)
    with (
        pytest.raises(
            InputError, match=f"^address {address}: no cluster of Ray can be joined"
        ) as e,
        Cluster(1, address, section="sweep."),
    ):
        pass
    assert e.value.in_command().startswith(f"--sweep.address {address}: no cluster")
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_missing_extra_is_one_sentence(fails, arguments, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "engine ray needs the package ray: pip install 'loraens[ray]'" in fails(
        *arguments("run", "--sweep.engine", "ray")
    )
    assert not (tmp_path / "run").exists()


def test_cores_are_divided_among_workers(monkeypatch):
    monkeypatch.setattr(cluster, "cores", lambda: 8)
    assert [cores_of_worker(n, None) for n in (1, 3, 16)] == [8, 2, 1]
    assert cores_of_worker(3, 5) == 5


def test_a_worker_that_still_trains_is_waited_for(tmp_path):
    checkpoint = tmp_path / "0-r1.ckpt"
    with (
        pack_locked(checkpoint),
        pytest.raises(InputError, match=r"still trains .*0-r1\.lock"),
    ):
        wait_for_workers(tmp_path, seconds=0.1)
    wait_for_workers(tmp_path, seconds=0)


@pytest.mark.slow
def test_predictions_of_ray_are_the_same_bytes(
    ray_here, trained_sweep, run_command, corpus, tmp_path, monkeypatch
):
    monkeypatch.setattr(predict_file, "CHUNK", 5)
    run = trained_sweep("sts")
    model = run / "ensembles" / "sts-omni-logits"
    texts = tmp_path / "texts.csv"
    lines = (corpus / "sts-dev.csv").read_text().splitlines()
    lines.insert(8, "9\tx\t\t\t")  # a row without texts
    texts.write_text("\n".join(lines))
    given = ("predict", "--model", model, "--input", texts, "--coverage", 0.8)
    here, there = tmp_path / "here.csv", tmp_path / "there.csv"
    assert run_command(*given, "--output", here) == 0
    two = ("--engine", "ray", "--workers", 2, "--cpus", 1)
    assert run_command(*given, "--output", there, *two) == 0
    assert there.read_bytes() == here.read_bytes()
    assert len(here.read_text().splitlines()) == 26
    bad = tmp_path / "bad.csv"
    bad.write_text("\n".join([*lines, "a\tb"]))
    given = ("predict", "--model", model, "--input", bad, "--output", tmp_path / "bad-out.csv")
    assert run_command(*given, *two) == 2
    assert not (tmp_path / "bad-out.csv").exists()


@pytest.fixture
def coordinator(tmp_path, corpus, tiny_bert):
    """Makes the coordinator of a sweep of six members, of texts that are in memory only."""

    class InMemory(TextData):
        def __init__(self, source):
            super().__init__([source])

    def make(name, **options):
        data = InMemory(course_source("sts", str(corpus)))
        config = SweepConfig.from_objects(
            data,
            Grid(rank=[1, 8, 29], scale=[1.0, 3.0]),
            tmp_path / name,
            backbone=str(tiny_bert),
            epochs=4,
            base=Member(8, 1.0, lr=1e-2),
            options=SweepOptions(pack_size=2, patience=1, halving_factor=2, **options),
            model={"pooling": "mean"},
            trainer={"enable_progress_bar": False},
        )
        return Coordinator(config, data)

    return make


@pytest.mark.slow
def test_texts_in_memory_and_members_as_bytes(ray_here, coordinator, monkeypatch):
    here = coordinator("here")
    manifests = here.run()
    assert {manifest.status for manifest in manifests.values()} == {"finished", "stopped"}
    two = {"engine": "ray", "workers": 2, "cpus": 1}
    there = coordinator("there", **two)
    there.run()
    assert contents(there.directory) == contents(here.directory)
    assert ray.is_initialized()  # it was before
    monkeypatch.setattr(on_ray, "train_here", None)  # workers see no directory
    apart = coordinator("apart", shared=False, **two)
    apart.run()
    assert contents(apart.directory) == contents(here.directory)
    assert not (apart.directory / "packs").exists()


@pytest.mark.slow
def test_the_plan_is_of_all_workers(run_command, arguments, capsys, tmp_path, monkeypatch):
    costs = Cost(size=2, seconds=5.0, member_bytes=3 * 2**19, backbone_bytes=2**21)
    monkeypatch.setattr(plan, "measure", lambda **options: costs)
    printed = {}
    for workers in (1, 2):
        engine = () if workers == 1 else TWO
        assert run_command(*arguments("run", "--dry-run", *engine, epochs=10)) == 0
        printed[workers] = capsys.readouterr().out
    assert "3 packs of at most 2 members" in printed[1]
    assert "core" not in printed[1]
    minutes = [int(re.search(r"about (\d+) min", printed[n])[1]) for n in (1, 2)]
    assert abs(3 * minutes[1] - 2 * minutes[0]) <= 3  # the second worker has one pack, not two
    assert "member-steps a second each, with 2 workers of 1 core, if" in printed[2]
    assert (
        "5 MiB for a pack: 2 a member at the longest texts, 2 for the backbone; 10 MiB for all"
        in (printed[2])
    )
    assert not (tmp_path / "run").exists()


def test_a_pack_is_left_for_every_worker():
    members = [Member(rank, 1.0) for rank in (1, 2, 3, 4)]
    sizes = []

    def measure(build, members, data, trainer):
        sizes.append(len(members))
        return Cost(len(members), 1 / 4 ** len(members), 1, 1)

    trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cpu")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "measure", measure)
        chosen = cost.choose_pack(None, members, None, trainer, print, workers=2)
    assert (chosen.size, sizes) == (2, [1, 2])


@pytest.mark.slow
def test_errors_of_tasks_and_tasks_that_always_die(ray_here):
    def refuse(option):
        raise InputError(f"{option} 1 is bad", option=f"sweep.{option}")

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(InputError) as refusal:
        ray_here.result(ray_here.submit(refuse, "cpus"))
    assert refusal.value.in_command() == "--sweep.cpus 1 is bad"
    with pytest.raises(InputError, match="begun 4 times, and its process died each time"):
        ray_here.result(ray_here.submit(die))


@pytest.mark.slow
def test_killed_workers_and_coordinators_change_no_bit(arguments, run_command, tmp_path):
    epochs = 60
    assert run_command(*arguments("here", epochs=epochs)) == 0
    there = arguments("there", *TWO, epochs=epochs)
    packs = tmp_path / "there" / "packs"
    process = start(there)
    try:
        wait_until(lambda: len(epochs_done(packs)) == 2, process)
        victim = training(process)[0]
        assert victim.nice() == psutil.Process().nice()
        victim.kill()
        before = epochs_done(packs)
        replaced = lambda: {p.pid for p in training(process)} - {victim.pid}  # noqa: E731
        wait_until(lambda: len(replaced()) == 2, process)
        # each goes on from its last whole epoch
        wait_until(
            lambda: (now := epochs_done(packs)) and all(now.get(n, 99) > before[n] for n in before),
            process,
        )
        assert epochs_done(packs)
    finally:
        end(process)
    done = start(there)  # at once, while workers may still train
    out, err = done.communicate(timeout=400)
    assert done.returncode == 0, err
    assert "ray" not in (out + err).lower()
    assert contents(tmp_path / "there") == contents(tmp_path / "here")
    assert not packs.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["int", "term"]
)
def test_a_signal_ends_in_its_code_and_leaves_no_process(arguments, tmp_path, number, code):
    process = start(arguments("run", *TWO, epochs=500))
    try:
        wait_until(lambda: epochs_done(tmp_path / "run" / "packs"), process)
        family = started(process)
        assert [child for child in family if "raylet" in child.name()]
        process.send_signal(number)
        out, err = process.communicate(timeout=120)
    finally:
        end(process)
    assert process.returncode == code
    assert "Traceback" not in err
    assert err.splitlines()[-1] == f"loraens: {'terminated' if code == 143 else 'interrupted'}"
    assert "to resume: loraens sweep --config" in out
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive


@pytest.mark.slow
def test_a_pack_that_ray_ends_for_memory_is_split(arguments):
    always = {"RAY_memory_usage_threshold": "0.01", "RAY_memory_monitor_refresh_ms": "100"}
    process = start(arguments("run", *TWO, epochs=500), **always)
    out, err = process.communicate(timeout=400)
    assert process.returncode == 2
    assert "out of memory with 2 members: continuing with 1" in out + err
    assert re.search(r"loraens: member \S+ alone does not fit in memory \(.*killed", err)
