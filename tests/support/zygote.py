"""Commands in processes of their own that start at once, for tests that kill them.

Importing torch and the rest takes seconds. A server imports them once and forks a
process for each command, so that a kill hits the work and not the imports.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from pathlib import Path

_PRELOADED = ("matplotlib.pyplot", "sklearn.ensemble", "scipy.stats", "timm", "torch")


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int
    """Negative for a signal."""
    output: str
    seconds: float

    @property
    def is_clean_error(self) -> bool:
        """Whether it is what a user is promised: one line of error, one of hint."""
        return (
            self.status == 2
            and self.output.count("error:") == 1
            and "hint:" in self.output
            and "Traceback" not in self.output
        )


class Zygote:
    """A server that forks commands."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._num = 0
        self._server = subprocess.Popen(
            [sys.executable, "-c", "from support.zygote import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait(60)
        self._server.stdout.close()

    def start(
        self,
        *words: object,
        max_file_bytes: int | None = None,
        terminal: Path | None = None,
    ) -> Running:
        """Start a command, whose output goes to a terminal if one is given."""
        self._num += 1
        log = terminal or self._folder / f"{self._num}.log"
        pid = self._exchange(
            {"words": [*map(str, words)], "log": str(log), "limit": max_file_bytes}
        )
        return Running(self, pid, log, time.monotonic())

    def run(self, *words: object, max_file_bytes: int | None = None) -> Ended:
        """Run a command to its end."""
        return self.start(*words, max_file_bytes=max_file_bytes).wait()

    def _exchange(self, request: dict[str, Any]) -> Any:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())


@dataclass(frozen=True)
class Running:
    """A command that runs."""

    zygote: Zygote
    pid: int
    log: Path
    start: float

    def kill(self) -> Ended:
        """Kill it, unless it has ended, with its children that share its session."""
        os.killpg(self.pid, signal.SIGKILL)
        return self.wait()

    def wait(self, timeout_s: float = 120) -> Ended:
        """Return how it ended; it is killed when it takes too long."""
        status = self.zygote._exchange({"wait": self.pid, "timeout_s": timeout_s})
        seconds = time.monotonic() - self.start
        is_file = self.log.is_file()
        output = self.log.read_text(errors="replace") if is_file else ""
        return Ended(status, output, seconds)


def serve() -> None:
    """Be the server, until the other side closes the pipe."""
    import importlib

    for name in (*_PRELOADED, "tumorlens.cli.app", "tumorlens.training.fit"):
        importlib.import_module(name)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = _wait(request["wait"], request["timeout_s"])
        elif (answer := os.fork()) == 0:
            _be_command(request)
        else:
            os.setpgid(answer, answer)  # now, so that it can be killed at once
        sys.stdout.write(f"{json.dumps(answer)}\n")
        sys.stdout.flush()


def _wait(pid: int, timeout_s: float) -> int:
    deadline = time.monotonic() + timeout_s
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.killpg(pid, signal.SIGKILL)
        time.sleep(0.005)


def _be_command(request: dict[str, Any]) -> None:
    import resource

    from tumorlens.cli.app import main

    status = 1
    try:
        os.setpgid(0, 0)
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        # Those of the server are of a pipe.
        sys.stdout, sys.stderr = (
            os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2)
        )
        if request["limit"] is not None:
            limits = (request["limit"], resource.RLIM_INFINITY)
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        status = main(request["words"])
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
