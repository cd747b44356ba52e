"""A real PostgreSQL on loopback, for studies that several machines share."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

PASSWORD = "hunter2"
"""Password in the URL of the server. No file and no output may hold it."""

_USER = "postgres"
_START_S = 30


@dataclass(frozen=True)
class Postgres:
    """A running server."""

    url: str
    stop: list[str]


def find_programs() -> Path | None:
    """Return the folder of initdb and pg_ctl; Debian installs them outside the path."""
    on_path = shutil.which("initdb")
    if on_path:
        return Path(on_path).resolve().parent
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else None


def start(folder: Path, programs: Path) -> Postgres:
    """Start a server in an empty folder."""
    data = folder / "data"
    data.mkdir(parents=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # PostgreSQL refuses to run as root: the user of its package runs it then.
    prefix: list[str] = []
    if os.geteuid() == 0:
        shutil.chown(folder, _USER)
        shutil.chown(data, _USER)
        for parent in folder.parents:
            if parent.stat().st_uid == 0 and not parent.stat().st_mode & 0o001:
                parent.chmod(parent.stat().st_mode | 0o011)
        prefix = ["runuser", "-u", _USER, "--"]
    password = folder / "password"
    password.write_text(PASSWORD, encoding="utf-8")
    owner = ["-U", "tester", "-A", "scram-sha-256", f"--pwfile={password}"]
    run([*prefix, programs / "initdb", "-D", data, *owner], folder)
    password.unlink()
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories=''"
    control = [*prefix, str(programs / "pg_ctl"), "-D", str(data)]
    log = folder / "log"
    run(
        [*control, "-l", log, "-o", options, "-w", "-t", str(_START_S), "start"],
        folder,
    )
    deadline = time.monotonic() + _START_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            break
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
    return Postgres(
        f"postgresql://tester:{PASSWORD}@127.0.0.1:{port}/postgres",
        [*control, "-m", "immediate", "stop"],
    )


def run(command: list[object], folder: Path) -> None:
    """Run a program of the server; fail with its output."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
