"""A served model answers as `predict` does, within its limits, and loses no request."""

import asyncio
import json
import multiprocessing
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers.corpus import texts_of
from pydantic import ValidationError

from loraens.errors import InputError
from loraens.inference.predictor import Predictor
from loraens.serve.api import Api, Limits, PredictRequest
from loraens.serve.server import Gate, ServeOptions
from loraens.store import find_members


def ask(url, body=None, raw=None):
    """Status and content of an answer."""
    data = raw if raw is not None else None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            content = reply.read().decode()
            return reply.status, content
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def start(model, *options):
    """A server's process and its address, once it is ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = "from loraens.cli import main; main()"
    words = ["serve", "--model", model, "--port", port, "--device", "cpu", *options]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    url = f"http://127.0.0.1:{port}"
    end = time.monotonic() + 180
    while time.monotonic() < end:
        assert process.poll() is None, process.communicate()
        try:
            if ask(f"{url}/health")[0] == 200:
                return process, url
        except OSError:
            time.sleep(0.2)
    raise AssertionError("the server did not start")


@pytest.fixture(scope="module")
def served(trained_sweep):
    model = trained_sweep("sst") / "ensembles" / "sst-omni-probs"
    process, url = start(model, "--max_bytes", 20000, "--max_texts", 8)
    yield model, url
    process.terminate()
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert url in out
    assert "stopped: no requests were left unanswered" in errors


@pytest.mark.slow
def test_answers_are_those_of_predict(served, corpus):
    model, url = served
    predictor = Predictor.load(model)
    task = predictor.task()
    _, texts = texts_of(corpus, "sst")
    expected = predictor.rows(texts, task, predictor.region(task, 0.7))
    sizes = [1, 3, 2, 3, 1]
    bounds = [(sum(sizes[:k]), sum(sizes[: k + 1])) for k in range(len(sizes))]

    def rows_of(bound):
        begin, end = bound
        body = {"texts": [text for (text,) in texts[begin:end]], "coverage": 0.7, "members": True}
        status, content = ask(f"{url}/predict", body)
        assert status == 200, content
        return json.loads(content)["predictions"]

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(rows_of, bounds))
    assert sum(map(len, answers)) == sum(sizes)
    for (begin, end), rows in zip(bounds, answers, strict=True):
        for row, wanted in zip(rows, expected[begin:end], strict=True):
            members = row.pop("members")
            assert len(members) == 4
            assert set(members) <= set(task.class_names)
            assert row.keys() == wanted.keys()
            for name, value in wanted.items():
                near = pytest.approx(value, abs=2e-6) if isinstance(value, float) else value
                assert row[name] == near, name
    status, content = ask(f"{url}/info")
    assert json.loads(content)["model"]["columns"] == predictor.columns(task)
    status, page = ask(f"{url}/")
    assert status == 200
    assert "http" not in page.replace("http-equiv", "")  # nothing is read from elsewhere
    assert "PredictRequest" in ask(f"{url}/openapi.json")[1]


@pytest.mark.slow
def test_the_page_works_on_a_phone(served):
    """In a headless Chromium, where there is one and `pip install playwright`."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no Chromium")
    _, url = served
    asked, errors = [], []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 360, "height": 740})
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: errors.append(error))
        page.goto(url)
        page.fill("textarea", "a film " * 9 + "x" * 200)
        page.click("button")
        page.wait_for_selector(".prediction")
        shown = page.inner_text("#answers")
        assert "What the 4 members predict:" in shown
        assert " of 4" in shown
        page.fill("textarea", "x" * 19999)
        page.click("button")
        page.wait_for_selector(".error")
        assert "Payload too large" in page.inner_text(".error")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        browser.close()
    assert not errors
    assert all(address.startswith(url) for address in asked)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        ({"texts": []}, 422, "texts: at least one text is expected"),
        ({"texts": ["a"] * 9}, 413, "texts: 9 texts: at most 8 a request are expected"),
        ({"texts": ["x" * 19000 + "y" * 2000]}, 413, "Payload too large"),
        ({"texts": [["a", "b"]]}, 422, "texts: number 0: one text, a string, is expected"),
        ({"texts": ["a", " "]}, 422, "texts: number 1 is blank"),
        ({"texts": ["a"], "coverage": 2}, 422, "coverage: a share above 0"),
        ({"text": "a"}, 422, "texts: Field required"),
        (b"{", 422, "JSON decode error"),
    ],
)
def test_requests_that_cannot_be_answered(served, body, status, sentence):
    given = {"raw": body} if isinstance(body, bytes) else {"body": body}
    found, content = ask(f"{served[1]}/predict", **given)
    detail = json.loads(content)["detail"]
    assert (found, sentence in detail) == (status, True), content


@pytest.mark.slow
def test_a_server_that_is_stopped_answers_what_is_there(trained_sweep):
    model = trained_sweep("sst") / "ensembles" / "sst-omni-probs"
    process, url = start(model, "--max_texts", 1000)
    body = {"texts": ["a fine film of some length"] * 60}
    with ThreadPoolExecutor(12) as pool:
        asked = [pool.submit(ask, f"{url}/predict", body) for _ in range(12)]
        time.sleep(0.4)
        process.send_signal(signal.SIGTERM)
        answers = [one.result() for one in asked]
    assert [status for status, _ in answers] == [200] * 12
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, "no requests were left" in errors) == (0, True), errors


def gate(active=0, queue=2):
    """Statuses that a gate sends, and what the application behind it saw."""
    seen, sent = [], []

    async def app(scope, receive, send):
        seen.append(scope["path"])

    async def send(message):
        sent.append(message.get("status"))

    counter = multiprocessing.Value("i", active)
    made = Gate(app, counter, multiprocessing.Event(), queue)
    return made, counter, send, seen, sent


def test_more_requests_than_the_queue_takes_are_refused():
    made, counter, send, seen, sent = gate(active=2)
    asyncio.run(made({"type": "http", "path": "/predict"}, None, send))
    assert (seen, sent[0], counter.value) == ([], 503, 2)
    asyncio.run(made({"type": "http", "path": "/health"}, None, send))
    assert seen == ["/health"]
    counter.value = 1
    asyncio.run(made({"type": "http", "path": "/predict"}, None, send))
    assert (seen[-1], counter.value) == ("/predict", 1)
    made.stopping.set()
    asyncio.run(made({"type": "http", "path": "/predict"}, None, send))
    assert (len(seen), sent.count(503), counter.value) == (2, 2, 1)


def test_texts_of_pairs_and_their_length(monkeypatch):
    monkeypatch.setattr(PredictRequest, "limits", Limits(texts_each=2, characters=3))
    assert PredictRequest(texts=[("a", "b")]).texts == [("a", "b")]
    for texts in (["a"], [("a", "long")], [("a", "")]):
        with pytest.raises(ValidationError):
            PredictRequest(texts=texts)
    with pytest.raises(ValidationError, match="no held-out scores"):
        PredictRequest(texts=[("a", "b")], coverage=0.9)


def test_a_batch_is_answered_as_its_requests_alone(trained, corpus):
    name, sweep = trained
    _, texts = texts_of(corpus, name)
    model = sorted((sweep / "ensembles").glob("*omni*"))[0]
    api = Api(str(model), None)
    api.predictor = Predictor.load(model)
    api.task = api.predictor.task()
    given = [text if len(text) > 1 else text[0] for text in texts]
    limits = Limits(texts_each=len(texts[0]), coverage=0.8)
    PredictRequest.limits, before = limits, PredictRequest.limits
    try:
        requests = [
            PredictRequest(texts=given[:2], coverage=0.7),
            PredictRequest(texts=given[2:7]),
            PredictRequest(texts=given[7:8], members=True),
        ]
    finally:
        PredictRequest.limits = before
    together = api.unbatch(api.predict(api.batch([api.decode_request(one) for one in requests])))
    for one, rows in zip(requests, together, strict=True):
        (alone,) = api.predict([one])
        assert [row.keys() for row in rows] == [row.keys() for row in alone]
        for row, wanted in zip(rows, alone, strict=True):
            for key, value in wanted.items():
                near = pytest.approx(value, abs=2e-6) if isinstance(value, float) else value
                assert row[key] == near or key == "members"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"port": 80}, "port 80: 1024 to 65535 is expected"),
        ({"host": "example.org"}, "host example.org: one of 127.0.0.1"),
        ({"workers": 0}, "workers 0: a number above 0"),
    ],
)
def test_options_out_of_range(options, sentence):
    with pytest.raises(InputError, match=sentence):
        ServeOptions(**options).check()


def test_a_port_that_is_taken(trained, run_command, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        model = find_members(trained[1])[0]
        assert run_command("serve", "--model", model, "--port", port) == 2
    assert f"port {port} cannot be used" in capsys.readouterr().err
