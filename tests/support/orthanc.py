"""A real Orthanc, for tests that send DICOM to an archive that is not ours."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.request
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CALLER = "TUMORLENS"
"""Title of the only application that may send to it, from 127.0.0.1 only."""

_START_S = 30


@dataclass(frozen=True)
class Orthanc:
    """A running server."""

    http_port: int
    dicom_port: int

    def get(self, path: str) -> bytes:
        """Return the answer of the REST interface."""
        # Without the proxy that the environment may name.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        url = f"http://127.0.0.1:{self.http_port}{path}"
        with opener.open(url, timeout=10) as answer:
            content: bytes = answer.read()
        return content

    def json(self, path: str) -> Any:
        """Return the answer of the REST interface, parsed."""
        return json.loads(self.get(path))


def find_program() -> str | None:
    """Return the path of the server; Debian installs it outside the usual path."""
    known = Path("/usr/sbin/Orthanc")
    return shutil.which("Orthanc") or (str(known) if known.is_file() else None)


def start(folder: Path, program: str) -> tuple[Orthanc, subprocess.Popen[bytes]]:
    """Start a server in an empty folder."""
    with ExitStack() as stack:
        http_port, dicom_port = (_free_port(stack) for _ in range(2))
    config = {
        "Name": "test",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "Plugins": [],
        "HttpPort": http_port,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomPort": dicom_port,
        "DicomCheckCalledAet": False,
        # It listens on every interface, so it accepts only our calls.
        "DicomAlwaysAllowEcho": False,
        "DicomAlwaysAllowStore": False,
        "DicomCheckModalityHost": True,
        "DicomModalities": {"test": [CALLER, "127.0.0.1", 1]},
        "StableAge": 1,
    }
    (folder / "orthanc.json").write_text(json.dumps(config), encoding="utf-8")
    log = folder / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [program, str(folder / "orthanc.json")],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
        )
    server = Orthanc(http_port, dicom_port)
    deadline = time.monotonic() + _START_S
    while True:
        try:
            server.get("/system")
            socket.create_connection(("127.0.0.1", dicom_port), timeout=1).close()
        except OSError:
            if process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.1)
                continue
            process.kill()
            raise AssertionError(log.read_text(errors="replace")) from None
        return server, process


def _free_port(stack: ExitStack) -> int:
    free = stack.enter_context(socket.socket())
    free.bind(("127.0.0.1", 0))
    port: int = free.getsockname()[1]
    return port
