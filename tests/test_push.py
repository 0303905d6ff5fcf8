"""Models on the hub, against a local stand-in of it."""

import base64
import json
import os
import subprocess
import sys

import pytest
import yaml
from helpers.hub import Hub, serving

from loraens.export.bundle import export_bundle
from loraens.export.card import model_card
from loraens.inference.predictor import Predictor
from loraens.store import find_members


class Uploads(Hub):
    """A hub that takes commits, too."""

    def do_POST(self):  # noqa: N802
        path = self.path.partition("?")[0].strip("/")
        if not path.startswith("api/"):
            return super().do_POST()
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Authorization") != "Bearer hf_right":
            self.send_response(401)
            return self.finish_answer(b'{"error": "Invalid credentials"}', "application/json", True)
        if path == "api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            self.files.setdefault(f"models/{name}", {})
            self.asked.append(asked)
            return self.send_json({"url": f"{self.url}/{name}", "id": name}, True)
        if path == "api/validate-yaml":
            return self.send_json({"errors": [], "warnings": []}, True)
        name = path.removeprefix("api/models/").rpartition("/main")[0].rpartition("/")[0]
        if "/preupload/" in path:
            files = json.loads(body)["files"]
            modes = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in files
            ]
            return self.send_json({"files": modes}, True)
        assert "/commit/" in path
        for line in map(json.loads, body.decode().splitlines()):
            if line["key"] == "file":
                content = base64.b64decode(line["value"]["content"])
                self.files[f"models/{name}"][line["value"]["path"]] = content
        url = f"{self.url}/{name}/commit/{'0' * 40}"
        return self.send_json(
            {"success": True, "commitOid": "0" * 40, "commitUrl": url, "hookOutput": ""}, True
        )


@pytest.fixture
def hub():
    handler = type("Local", (Uploads,), {"files": {}, "asked": [], "url": ""})
    with serving(handler) as url:
        handler.url = url
        yield handler


def run(hub, home, token, *words):
    """A command of someone whose hub is the stand-in."""
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_TOKEN": token}
    environment["HF_HUB_OFFLINE"] = "0"
    code = "from loraens.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.slow
def test_an_ensemble_is_pushed_and_predicts_from_the_hub(trained, hub, tmp_path):
    name, sweep = trained
    model = sorted((sweep / "ensembles").glob("*omni*"))[0]
    refused = run(hub, tmp_path, "hf_wrong", "push", model, "me/mine")
    assert (refused.returncode, hub.files) == (2, {})
    assert refused.stderr.startswith("loraens: hub:me/mine: ")
    assert refused.stderr.count("\n") == 1
    done = run(hub, tmp_path, "hf_right", "push", model, "me/mine", "--half")
    assert done.returncode == 0, done.stderr
    assert "loraens predict --model hub:me/mine" in done.stdout
    assert hub.asked[0]["visibility"] == "private"
    files = hub.files["models/me/mine"]
    card = files["README.md"].decode()
    assert "hub:me/mine" in card
    texts = ["--text", "a fine film", *(["--text2", "a film"] if name == "sts" else [])]
    found = run(hub, tmp_path, "", "predict", "--model", "hub:me/mine", *texts)
    assert found.returncode == 0, found.stderr
    here = run(hub, tmp_path, "", "predict", "--model", model, *texts)
    for key, value in json.loads(here.stdout).items():
        if isinstance(value, float):
            assert json.loads(found.stdout)[key] == pytest.approx(value, abs=1e-2)
    lost = run(hub, tmp_path, "", "predict", "--model", "hub:me/other", *texts)
    assert lost.returncode == 2
    assert lost.stderr.startswith("loraens: hub:me/other: ")


def test_a_card_says_what_a_model_is_worth(trained, tmp_path):
    name, sweep = trained
    for number, model in enumerate([*(sweep / "ensembles").glob("*/"), find_members(sweep)[0]]):
        out = tmp_path / str(number)
        export_bundle(model, out)
        card = model_card(out, "mine")
        _, head, body = card.split("---\n", 2)
        assert yaml.safe_load(head)["library_name"] == "loraens"
        predictor = Predictor.load(out)
        for split, fingerprint in predictor.data.items():
            assert f"- {split}: `{fingerprint}`" in body
        assert f"task `{name}`" in body
        if (out / "ensemble.json").is_file():
            value = json.loads((out / "ensemble.json").read_text())["interval"]["value"]
            assert f"{value:.4f} (95 %:" in body
