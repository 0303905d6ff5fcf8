"""Data sets and backbones by hub name, against a local stand-in of the hub."""

import json
import os
import subprocess
import sys
import threading
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pyarrow
import pyarrow.parquet
import pytest

CONFIGS = Path(__file__).parent.parent / "configs"
COMMIT = "0" * 40


def parquet(rows):
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


def hub_files(tiny_bert):
    """Repository -> file name -> content, laid out as the real ones are."""
    words = [
        "a dull film",
        "a fine film",
        "a charming plot",
        "a flat ending",
        "an ordinary score",
        "a dazzling cast",
    ]
    sst = [
        {"text": f"{word} {i}", "label": (i + j) % 5, "label_text": "x"}
        for i in range(3)
        for j, word in enumerate(words)
    ]
    pairs = [
        {"sentence1": f"a man {i}", "sentence2": f"a dog {i}", "label": float(i % 6), "idx": i}
        for i in range(12)
    ]
    hidden = [{**pair, "label": -1.0} for pair in pairs]
    splits = ("train", "validation", "test")
    return {
        "datasets/SetFit/sst5": {
            f"{s}.jsonl": "".join(json.dumps(row) + "\n" for row in sst).encode() for s in splits
        },
        "datasets/nyu-mll/glue": {
            "README.md": (
                b"---\nconfigs:\n- config_name: stsb\n  data_files:\n"
                + b"".join(f"  - split: {s}\n    path: stsb/{s}-*\n".encode() for s in splits)
                + b"---\n"
            ),
            **{
                f"stsb/{s}-00000-of-00001.parquet": parquet(hidden if s == "test" else pairs)
                for s in splits
            },
        },
        "models/some/tiny-bert": {path.name: path.read_bytes() for path in tiny_bert.iterdir()},
    }


class Hub(BaseHTTPRequestHandler):
    """The few answers of the hub that `datasets` and `transformers` need."""

    files: dict[str, dict[str, bytes]] = {}

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.answer(with_body=False)

    def do_GET(self):
        self.answer()

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            self.paths = json.loads(body)["paths"]
        except ValueError:
            self.paths = parse_qs(body.decode())["paths"]
        self.answer()

    def answer(self, with_body=True):
        path = unquote(urlsplit(self.path).path).strip("/")
        for repository, files in self.files.items():
            kind, _, name = repository.partition("/")
            if path == f"api/{repository}" or path.startswith(f"api/{repository}/"):
                return self.send_json(
                    self.api(path.removeprefix(f"api/{repository}").strip("/"), name, files),
                    with_body,
                )
            prefix = (f"{kind}/" if kind == "datasets" else "") + f"{name}/resolve/"
            if path.startswith(prefix):
                return self.send_file(
                    files.get(path.removeprefix(prefix).partition("/")[2]), with_body
                )
        return self.send_json(None, with_body)

    def api(self, call, name, files):
        entries = [
            {
                "type": "file",
                "oid": sha256(content).hexdigest()[:40],
                "size": len(content),
                "path": file,
            }
            for file, content in files.items()
        ]
        folders = sorted({file.rpartition("/")[0] for file in files} - {""})
        if call.startswith("tree/"):
            under = call.split("/", 2)[2] if call.count("/") > 1 else ""
            found = [e for e in entries if e["path"].startswith(f"{under}/" if under else "")]
            recursive = "recursive=true" in self.path.lower()
            shown = [
                e for e in found if recursive or "/" not in e["path"].removeprefix(under).strip("/")
            ]
            tops = (
                []
                if under
                else [
                    {"type": "directory", "oid": "0", "size": 0, "path": folder}
                    for folder in folders
                ]
            )
            return (shown + tops) or None
        if call.startswith("paths-info/"):
            return [e for e in entries if e["path"] in self.paths]
        return {
            "id": name,
            "sha": COMMIT,
            "private": False,
            "gated": False,
            "disabled": False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "siblings": [{"rfilename": file} for file in files],
        }

    def send_json(self, value, with_body):
        body = json.dumps(value if value is not None else {"error": "Not found"}).encode()
        self.send_response(404 if value is None else 200)
        if value is None:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.finish_answer(body, "application/json", with_body)

    def send_file(self, content, with_body):
        if content is None:
            return self.send_json(None, with_body)
        self.send_response(200)
        self.send_header("ETag", f'"{sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.finish_answer(content, "application/octet-stream", with_body)

    def finish_answer(self, body, kind, with_body):
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)


@pytest.fixture(scope="module")
def endpoint(tiny_bert):
    handler = type("LocalHub", (Hub,), {"files": hub_files(tiny_bert)})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.slow
@pytest.mark.parametrize(("config", "sizes", "labelled"), [("sst", 18, True), ("sts", 12, False)])
def test_fit_from_the_hub(endpoint, tmp_path, config, sizes, labelled):
    from loraens.store import MemberStore, find_member

    kept = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment = {
        **kept,
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_XET": "1",
    }
    command = [
        "fit",
        "--config",
        CONFIGS / f"{config}.yaml",
        "--model.backbone",
        "some/tiny-bert",
        "--data.max_length",
        40,
    ]
    command += [
        "--trainer.max_epochs",
        1,
        "--store.root",
        tmp_path,
        "--store.run",
        "run",
        "--trainer.logger",
        "false",
    ]
    done = subprocess.run(
        [sys.executable, "-c", "from loraens.cli import main; main()", *map(str, command)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    store = MemberStore(find_member(tmp_path / "run"))
    assert store.manifest().settings.backbone == "some/tiny-bert"
    assert store.logits(config, "dev").logits.shape[0] == sizes
    assert (store.logits(config, "test").labels is not None) == labelled


@pytest.mark.slow
def test_a_hub_that_is_out_of_reach(fails, tiny_bert, tmp_path):
    command = [
        "fit",
        "--config",
        CONFIGS / "sst.yaml",
        "--model.backbone",
        tiny_bert,
        "--store.root",
        tmp_path,
    ]
    message = fails(*command, "--trainer.logger", "false")
    assert "data set 'SetFit/sst5' could not be loaded from the hub" in message
    assert "give root" in message
