"""`loraens wandb-sync`: real offline runs, W&B's real command, and a server in place of W&B's."""

import json
import os
import shutil
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

LOG = """
import sys, wandb
for path in sys.argv[1:]:
    with wandb.init(project="p", mode="offline", dir=path) as run:
        run.log({"a": 1})
"""


class Server(ThreadingHTTPServer):
    """Answers as W&B's does; `refused` are ids of runs, `closed` turns away everyone."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.uploaded = []
        self.refused = set()
        self.closed = False

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        server = self.server
        status = 200
        answer = {}
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.path.endswith("graphql"):
            request = json.loads(body)
            given = request.get("variables") or {}
            if server.closed or (
                "UpsertBucket" in request["query"] and given["name"] in server.refused
            ):
                status = 401
                answer = {"errors": [{"message": "permission denied"}]}
            else:
                answer = {"data": self.data(given)}
        elif self.path.endswith("file_stream"):
            server.uploaded.append(self.path.split("/")[-2])
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_PUT = do_POST  # noqa: N815

    def data(self, given):
        project = {"id": "p", "name": "p", "entity": {"id": "e", "name": "e"}}
        names = {"id": "x", "name": given.get("name", ""), "displayName": "d", "sweepName": ""}
        files = [
            {"name": name, "uploadUrl": f"{self.server.url}/up"} for name in given.get("files", ())
        ]
        return {
            "viewer": {
                "id": "v",
                "entity": "e",
                "username": "u",
                "flags": "{}",
                "teams": {"edges": []},
            },
            "serverInfo": {"features": [], "cliVersionInfo": {}, "latestLocalVersionInfo": None},
            "upsertBucket": {
                "bucket": {**names, "config": "{}", "summaryMetrics": "{}", "project": project},
                "inserted": True,
            },
            "createRunFiles": {"runID": "x", "uploadHeaders": [], "files": files},
        }

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A server, and the environment of someone who has an account there and trained offline."""
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    with Server() as server:
        Thread(target=server.serve_forever, daemon=True).start()
        settings = {
            "HOME": tmp_path,
            "NETRC": tmp_path / "netrc",
            "WANDB_MODE": "offline",
            "WANDB_SILENT": "true",
        }
        for name, value in {
            **settings,
            "WANDB_BASE_URL": server.url,
            "WANDB_API_KEY": "a" * 40,
        }.items():
            monkeypatch.setenv(name, str(value))
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
    """A directory with two offline runs below it at different depths."""
    root = tmp_path_factory.mktemp("offline")
    directories = [root / "one", root / "sweep" / "ensembles"]
    for directory in directories:
        directory.mkdir(parents=True)
    environment = {name: value for name, value in os.environ.items() if name != "WANDB_MODE"}
    command = [sys.executable, "-c", LOG, *map(str, directories)]
    subprocess.run(command, check=True, capture_output=True, env={**environment, "HOME": str(root)})
    return root


@pytest.fixture
def logged(tmp_path, server, offline):
    """A directory, and two offline runs below it, which no test has uploaded."""
    directory = Path(shutil.copytree(offline, tmp_path / "runs"))
    return directory, [
        next(path.glob("wandb/offline-run-*"))
        for path in (directory / "one", directory / "sweep" / "ensembles")
    ]


def identity(run):
    return run.name.rpartition("-")[2]


@pytest.mark.slow
def test_every_offline_run_is_uploaded_once(server, logged, run_command, fails, capsys):
    directory, runs = logged
    assert run_command("wandb-sync", directory, "--dry-run") == 0
    assert capsys.readouterr().out.splitlines() == list(map(str, runs))
    assert server.uploaded == []
    server.refused = {identity(runs[1])}
    message = fails("wandb-sync", directory)
    assert message.endswith(f"1 of 2 runs were not uploaded, see above and try again: {runs[1]}")
    assert set(server.uploaded) == {identity(runs[0])}
    server.refused = set()
    server.uploaded = []
    assert run_command("wandb-sync", directory) == 0
    assert set(server.uploaded) == {identity(runs[1])}
    assert capsys.readouterr().out.endswith("runs uploaded: 1\n")
    server.closed = True
    assert run_command("wandb-sync", directory) == 0  # nothing is left, so no account is needed
    assert capsys.readouterr().out == f"all 2 offline runs below {directory} were uploaded before\n"


@pytest.mark.parametrize("below", ["none", "one"], ids=["missing", "empty"])
def test_a_directory_without_runs_is_refused(tmp_path, fails, below):
    (tmp_path / "runs" / "one").mkdir(parents=True)
    path = tmp_path / "runs" / below
    assert f"{path} has no offline run" in fails("wandb-sync", path)


@pytest.mark.slow
def test_files_of_a_run_are_no_run(logged, fails):
    assert "has no offline run" in fails("wandb-sync", logged[1][0] / "files")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "message"),
    [
        pytest.param(
            "a" * 40, "(Failed to authenticate with {url}: permission denied)", id="refused-key"
        ),
        pytest.param(None, "W&B cannot be logged in to (No API key configured", id="no-key"),
    ],
)
def test_an_account_that_cannot_be_used(server, logged, monkeypatch, fails, key, message):
    server.closed = True
    if key is None:
        monkeypatch.delenv("WANDB_API_KEY")
    assert message.format(url=server.url) in fails("wandb-sync", logged[0])
    assert server.uploaded == []
