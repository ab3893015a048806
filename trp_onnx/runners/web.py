"""onnxruntime-web in headless Chromium: a page served from localhost asks for requests and posts its answers.

Threads need an isolated page: every answer carries the COOP and COEP headers.
"""

from __future__ import annotations

import contextlib
import json
import mimetypes
import os
import queue
import shutil
import subprocess
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from trp_onnx.errors import RunnerError
from trp_onnx.process import children
from trp_onnx.runners.packages import WEB
from trp_onnx.runners.transport import decode, encode
from trp_onnx.runners.worker import machine_name

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_FLAGS = (
    "--headless", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-extensions", "--disable-dev-shm-usage",
    "--disable-background-timer-throttling", "--disable-renderer-backgrounding",
)  # fmt: skip
_PAGE = Path(__file__).parent
_FILES = ("web.html", "web.mjs", "worker.mjs")
_ISOLATED = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_KINDS = {".mjs": "text/javascript", ".wasm": "application/wasm"}
_POLL, _GOES = 10.0, 3.0


class Browser:
    """The transport: a browser of its own, with a profile folder of its own, for each number of threads."""

    shares_files = False

    def __init__(self, package: Path, timeout: float) -> None:
        """Find the browser; it starts with the first request.

        Raises:
            RunnerError: There is none.
        """
        named = os.environ.get("TRP_ONNX_BROWSER")
        found = shutil.which(named) if named else next(filter(None, map(shutil.which, _BROWSERS)), None)
        if found is None:
            raise RunnerError(
                f"there is no browser '{named}'" if named else
                "there is no Chromium on the path: install it (Debian: apt install chromium), or name one by "
                "TRP_ONNX_BROWSER"
            )  # fmt: skip
        self._browser = found
        self._scripts = package / "node_modules" / WEB
        self._timeout = timeout
        self._page: _Page | None = None

    def ask(self, do: str, **request: Any) -> Any:
        """See `Transport`."""
        threads = request["setting"]["threads"] if do == "prepare" else None
        if self._page is None or threads not in (None, self._page.threads):
            self.close()
            self._page = _Page(self._browser, self._scripts, threads or 1)
        try:
            return decode(do, self._page.exchange(encode(do, request), self._timeout))
        except (RunnerError, KeyboardInterrupt):
            self.close()
            raise

    def close(self) -> None:
        """End the browser and the server."""
        if self._page is not None:
            self._page.close()
            self._page = None


class _Server(ThreadingHTTPServer):
    """Serves the page and what it imports; hands it requests and takes its answers.

    Attributes:
        requests: What the page shall do, as JSON.
        answers: What it posted.
        loaded: Whether the page has begun to run.
    """

    daemon_threads = True

    def __init__(self, scripts: Path, threads: int) -> None:
        version = json.loads((scripts / "package.json").read_text(encoding="utf-8"))["version"]
        self.start = json.dumps({"threads": threads, "version": version, "machine": machine_name()})
        self.requests: queue.Queue[str] = queue.Queue()
        self.answers: queue.Queue[dict[str, Any]] = queue.Queue()
        self.loaded = False
        self._scripts = scripts
        super().__init__(("127.0.0.1", 0), _Handler)

    def file(self, name: str) -> Path | None:
        """The file of ours or of onnxruntime-web that a page asks for; None for any other."""
        if name.startswith("ort/"):
            folder, name = self._scripts / "dist", name.removeprefix("ort/")
        elif name in _FILES:
            folder = _PAGE
        else:
            return None
        return folder / name if "/" not in name and (folder / name).is_file() else None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that is ended leaves connections broken."""


class _Handler(BaseHTTPRequestHandler):
    """One connection of the page."""

    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        name = self.path.lstrip("/").partition("?")[0] or "web.html"
        if name == "start":
            self.server.loaded = True
            self._send(self.server.start.encode(), "application/json")
        elif name == "request":
            try:
                text = self.server.requests.get(timeout=_POLL)
            except queue.Empty:
                text = "{}"
            self._send(text.encode(), "application/json")
        else:
            self._send_file(name)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._send(b"{}", "application/json")
        if self.path == "/answer":
            self.server.answers.put(json.loads(body))
        elif self.path == "/alive":
            self.server.answers.put({"alive": True})
        elif self.path == "/failed":
            self.server.answers.put({"refused": "runner", "why": f"the page failed: {json.loads(body)}"})

    def _send_file(self, name: str) -> None:
        file = self.server.file(name)
        if file is None:
            self.send_error(404)
            return
        kind = _KINDS.get(file.suffix) or mimetypes.guess_type(file.name)[0]
        self._send(file.read_bytes(), kind or "application/octet-stream")

    def _send(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        for key, value in _ISOLATED.items():
            self.send_header(key, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is logged."""


class _Page:
    """A served page in a running browser."""

    def __init__(self, browser: str, scripts: Path, threads: int) -> None:
        self.threads = threads
        self._server = _Server(scripts, threads)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self._folder = tempfile.mkdtemp(prefix="trp-onnx-browser.")
        address = f"http://127.0.0.1:{self._server.server_port}/"
        sandbox = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        self._said = open(os.path.join(self._folder, "said"), "w+b")  # noqa: PTH118, PTH123, SIM115
        try:
            self._process = subprocess.Popen(
                [browser, *_FLAGS, *sandbox, f"--user-data-dir={self._folder}/profile", address],
                stdin=subprocess.DEVNULL, stdout=self._said, stderr=self._said, start_new_session=True,
                env={**os.environ, "TMPDIR": self._folder},
            )  # fmt: skip
        except OSError as error:
            self._end_server()
            raise RunnerError(f"the browser '{browser}' cannot be started: {error.strerror}") from error

    def exchange(self, request: str, timeout: float) -> dict[str, Any]:
        """Send a request, wait for its answer."""
        self._server.requests.put(request)
        waited = 0.0
        while True:
            try:
                answer = self._server.answers.get(timeout=min(1.0, timeout))
            except queue.Empty:
                waited += min(1.0, timeout)
                if self._process.poll() is not None:
                    raise RunnerError(
                        f"the browser ended (exit code {self._process.returncode}){self._last()}"
                    ) from None
                if waited >= timeout:
                    what = "gave no sign of life" if self._server.loaded else "did not load its page"
                    raise RunnerError(
                        f"the browser {what} for {timeout:g} s and was ended; --timeout waits longer"
                    ) from None
                continue
            waited = 0.0
            if "alive" not in answer:
                return answer

    def close(self) -> None:
        """End the browser, which ends what it started, then the server."""
        try:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=_GOES)
        finally:  # a second Ctrl-C may come while it goes
            children.end(self._process)
            self._end_server()

    def _end_server(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._said.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _last(self) -> str:
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").strip().splitlines()
        return f": {lines[-1][:200]}" if lines else ""
