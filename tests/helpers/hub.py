"""A local stand-in of the Hugging Face hub."""

import json
import threading
from contextlib import contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0" * 40


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
            return (shown + tops) or (None if under else [])
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


@contextmanager
def serving(handler):
    """The address of a server of a handler."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
