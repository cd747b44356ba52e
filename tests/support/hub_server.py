"""A model hub on the loopback, with the answers and the faults of the real one.

What the hub does: a HEAD of a file answers with its commit, size and ETag. Large files,
which weights are, have their SHA-256 as ETag and redirect to another host, which serves
them by their digest and in ranges; small files have git's SHA-1 and are served where
they are. A repository that has moved redirects to its new name. Errors are named in
X-Error-Code.

The same server has plain files, such as those of timm's addresses, and serves as a
proxy: of any host for HTTP, and as a tunnel to another server for HTTPS.
"""

from __future__ import annotations

import hashlib
import re
import select
import socket
import ssl
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Literal, Self
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from pathlib import Path

COMMIT = "c0ffee" + "0" * 34
_LARGE_BYTES = 4096
"""Files from this size on are stored as large ones."""
_PIECE_BYTES = 10 << 20

Fault = Literal["cut", "stall", "wrong digest"]


@dataclass(frozen=True)
class Request:
    """What a client has asked for."""

    method: str
    path: str
    """Without the host, which a proxy is told too."""
    host: str
    headers: dict[str, str]
    """By their names in lower case."""


@dataclass
class HubServer:
    """A running server. Its content and its faults may be changed between requests.

    Use it as a context; it ends with all its connections.
    """

    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Name of a repository -> name of a file -> its content."""
    moved: dict[str, str] = field(default_factory=dict)
    """Former name of a repository -> its name."""
    files: dict[str, bytes] = field(default_factory=dict)
    """Name -> content of plain files, at `url/files/<name>`."""
    status: int | None = None
    """Status of every answer about a file, instead of its content."""
    status_of_content: int | None = None
    """The same, of content only: a HEAD is answered as usual."""
    fault: Fault | None = None
    """What goes wrong while content is sent, each time."""
    pause_s: float = 0.0
    """Pause after each ten megabytes of content."""
    tunnel_to: int | None = None
    """Port of 127.0.0.1 that every tunnel leads to."""
    certificate: Path | None = None
    """File with key and certificate; the server then speaks TLS."""
    requests: list[Request] = field(default_factory=list)
    """All requests, in their order."""

    def __enter__(self) -> Self:
        self.is_ending = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.hub = self
        if self.certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self.certificate)
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True
            )
        self.port: int = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,)).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.is_ending.set()
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        """Address of the hub."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def content_url(self) -> str:
        """Address of large files: another host, for a client."""
        return f"http://localhost:{self.port}/content"

    @property
    def paths(self) -> list[str]:
        """Method and path of each request."""
        return [f"{one.method} {one.path}" for one in self.requests]


class _Server(ThreadingHTTPServer):
    hub: HubServer
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that have gone."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_CONNECT(self) -> None:
        self._note(self.path, self.path)
        port = self.server.hub.tunnel_to
        if port is None:
            self._send(502)
            return
        with socket.create_connection(("127.0.0.1", port)) as far:
            self.send_response(200)
            self.end_headers()
            _carry(self.connection, far, self.server.hub.is_ending)
        self.close_connection = True

    def _note(self, path: str, host: str) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.hub.requests.append(Request(self.command, path, host, headers))

    def _answer(self) -> None:
        hub, address = self.server.hub, urlsplit(self.path)
        self._note(address.path, address.netloc or self.headers["Host"])
        found = re.fullmatch(r"/(\w+/[\w.-]+)/resolve/(\w+)/([\w.]+)", address.path)
        if hub.status:
            self._send(hub.status)
        elif found:
            self._answer_about_file(*found.groups())
        elif address.path.startswith("/content/"):
            every = (one for of in hub.repositories.values() for one in of.values())
            known = {hashlib.sha256(one).hexdigest(): one for one in every}
            self._send_content(known[address.path.rpartition("/")[2]])
        elif address.path.startswith("/files/"):
            content = hub.files.get(address.path.removeprefix("/files/"))
            if content is None:
                self._send(404)
            else:
                self._send_content(content)
        else:
            self._send(404)

    def _answer_about_file(self, repository: str, revision: str, name: str) -> None:
        hub = self.server.hub
        if repository in hub.moved:
            path = f"/{hub.moved[repository]}/resolve/{revision}/{name}"
            self._send(307, Location=path)
        elif repository not in hub.repositories:
            # Without a token, what does not exist and what is private look alike.
            self._send(401, **{"X-Error-Code": "RepoNotFound"})
        elif revision not in ("main", COMMIT):
            self._send(404, **{"X-Error-Code": "RevisionNotFound"})
        elif name not in hub.repositories[repository]:
            self._send(
                404, **{"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}
            )
        else:
            self._answer_with(hub.repositories[repository][name])

    def _answer_with(self, content: bytes) -> None:
        about = {"X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if len(content) < _LARGE_BYTES:
            blob = b"blob %d\0" % len(content) + content
            etag = hashlib.sha1(blob).hexdigest()
            self._send_content(content, **about, ETag=f'"{etag}"')
            return
        digest = hashlib.sha256(content).hexdigest()
        self._send(
            302,
            **about,
            **{"X-Linked-Size": str(len(content)), "X-Linked-ETag": f'"{digest}"'},
            ETag='"of the redirect"',
            Location=f"{self.server.hub.content_url}/{digest}",
        )

    def _send(self, status: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send_content(self, content: bytes, **headers: str) -> None:
        hub = self.server.hub
        if hub.status_of_content and self.command == "GET":
            self._send(hub.status_of_content)
            return
        if hub.fault == "wrong digest":
            content = content[:-1] + bytes([content[-1] ^ 1])
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        first = int(wanted[1]) if wanted else 0
        self.send_response(206 if wanted else 200)
        for name, value in headers.items():
            self.send_header(name, value)
        if wanted:
            last = f"{len(content) - 1}/{len(content)}"
            self.send_header("Content-Range", f"bytes {first}-{last}")
        self.send_header("Content-Length", str(len(content) - first))
        self.end_headers()
        if self.command == "HEAD":
            return
        half = len(content) // 2
        if hub.fault in ("cut", "stall"):
            self.wfile.write(content[first:half])
            self.wfile.flush()
            if hub.fault == "stall":
                hub.is_ending.wait()
            self.close_connection = True
            return
        for start in range(first, len(content), _PIECE_BYTES):
            self.wfile.write(content[start : start + _PIECE_BYTES])
            hub.is_ending.wait(hub.pause_s)


def _carry(near: socket.socket, far: socket.socket, is_ending: threading.Event) -> None:
    """Carry bytes both ways until one side ends."""
    other = {near: far, far: near}
    while not is_ending.is_set():
        for one in select.select(list(other), [], [], 0.1)[0]:
            with suppress(OSError):
                if received := one.recv(1 << 16):
                    other[one].sendall(received)
                    continue
            return
