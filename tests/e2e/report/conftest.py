"""A report with every part, and a real browser to open it in."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from harness import report
from harness.records import Artifact, State

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--disable-sync",
    "--no-first-run",
    "--no-default-browser-check",
    "--hide-scrollbars",
)


@pytest.fixture(scope="session")
def make():
    path = Path(__file__).parents[2] / "unit" / "judging" / "factory.py"
    spec = importlib.util.spec_from_file_location("record_factory", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def page(make, tmp_path_factory):
    """Path of a written report that has tables, drawings, verdicts, scores, a timeline and empty cells."""
    home = tmp_path_factory.mktemp("report")
    events = [{"ph": "M", "pid": 0, "name": "process_name", "args": {"name": "rank 0"}}]
    events += [{"ph": "X", "pid": 0, "tid": 0, "name": "send", "ts": 1000 * i, "dur": 500} for i in range(20)]
    (home / "trace.json").write_text(json.dumps({"traceEvents": events}), "utf-8")
    records = [
        make.transports(artifacts=[Artifact(path="trace.json", sha256="0" * 64, bytes=1)]),
        make.transports(backend="emulated"),
        make.transports(backend="emulated", hardware="rdma-100g-pair"),
        make.record(backend="ray", hardware="lab", state=State.UNSUPPORTED, message="needs 2 GPUs a host"),
    ]
    written = report.write(make.quickstart(), records, directory=home, formats=["html"], locate=lambda _: home)
    return written["html"]


@pytest.fixture(scope="session")
def chromium():
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip("no Chromium or Chrome is installed (apt-get install chromium)")
    return found


@pytest.fixture
def dump(chromium, tmp_path):
    """Opens an address and gives the document as it is after loading."""

    def run(address, *flags, width=1280):
        command = [chromium, *QUIET, f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900", *flags]
        done = subprocess.run([*command, "--dump-dom", address], capture_output=True, text=True, timeout=90)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    return run


@dataclass
class Recorder:
    """A proxy that serves one page under any host name ending in `.test`, and notes every host asked for."""

    text: str
    asked: list[tuple[str, str]] = field(default_factory=list)
    port: int = 0

    def hosts(self):
        return {host for host, _ in self.asked}


@pytest.fixture
def recorder():
    """Starts recording proxies."""
    servers = []

    def start(text):
        record = Recorder(text)

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                parts = urlsplit(self.path)
                record.asked.append((parts.hostname or "", parts.path))
                found = parts.hostname == "report.test" and parts.path == "/index.html"
                body = record.text.encode() if found else b""
                self.send_response(200 if found else 404)
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_CONNECT(self):
                record.asked.append((self.path.rsplit(":", 1)[0], "CONNECT"))
                self.send_error(403)

            def log_message(self, *_):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        record.port = server.server_port
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return record

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
