"""The machine and this process: record, signals, memory, rank, child processes.

`Helper` is a Python child that answers requests over pipes, for work that may crash or
that must not share this process. `multiprocessing` does not serve for it: it refuses
children of data loader workers, and it runs the user's script again.
"""

from __future__ import annotations

import getpass
import json
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import weakref
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

import tumorlens
from tumorlens import errors
from tumorlens.errors import TumorlensError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

# Names and values from glibc's malloc.h; the values are the largest it accepts.
_M_TRIM_THRESHOLD, _NEVER_TRIM = -1, 2**31 - 1
_M_MMAP_THRESHOLD, _LARGE_BYTES = -3, 2**30

_MAX_ERROR_BYTES = 1 << 20
"""Largest standard error of a helper that is kept."""

_PACKAGES = (
    *("torch", "torchvision", "timm", "accelerate", "numpy", "pillow", "pydicom"),
    *("onnxruntime", "openvino"),
)


def describe_environment(*, command: str, seed: int) -> dict[str, Any]:
    """Return what is needed to repeat a run: versions, machine, seed and command.

    Nothing here names a user or a host: the record travels with the run.

    Args:
        command: What the user typed; see `without_user`.
        seed: The seed of the run.

    Returns:
        JSON-ready values: `tumorlens`, `commit` (of a source checkout, else `None`),
        `python`, `platform`, `cpu_count`, `packages`, `seed` and `command`.
    """
    return {
        "tumorlens": tumorlens.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu_count": os.cpu_count(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "seed": seed,
        "command": without_user(command),
    }


def without_user(text: str) -> str:
    """Return a text without home folder, user and host name, as files to be handed on.

    The home folder becomes `~`. The two names are replaced where they are a part of a
    path or an address: elsewhere they may be words like any other.

    Example:
        >>> before = os.environ.get("HOME"), os.environ.get("LOGNAME")
        >>> os.environ["HOME"], os.environ["LOGNAME"] = "/home/jane", "jane"
        >>> without_user("tumorlens audit /home/jane/set --out /data/jane/audit")
        'tumorlens audit ~/set --out /data/USER/audit'
    """
    for home in _homes():
        text = re.sub(rf"(?<![\w.~-]){re.escape(home)}(?![\w.-])", "~", text)
    for name, word in ((_user_name(), "USER"), (socket.gethostname(), "HOST")):
        if len(name) > 1:
            part = rf"(?<=[/\\@:]){re.escape(name)}(?=[/\\@:'\"\s,;]|$)"
            text = re.sub(part, word, text)
    return text


def _homes() -> list[str]:
    """Return the spellings of the home folder, the longest first."""
    try:
        home = str(Path.home())
    except RuntimeError:  # a number without a name, and no HOME
        return []
    found = {home, os.path.realpath(home)} if Path(home).is_absolute() else set()
    return sorted((one for one in found if one != os.sep), key=len, reverse=True)


def with_home(path: str) -> Path:
    """Return the path that `without_user` wrote with `~` for the home folder."""
    first, _, rest = path.partition("/")
    homes = _homes()
    return Path(homes[0], rest) if homes and first == "~" else Path(path)


def _user_name() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a number without a name
        return ""


def processor_name() -> str:
    """Return what the processor calls itself, or its architecture."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # no Linux
        return platform.processor() or platform.machine()
    for line in text.splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def num_processors() -> int:
    """Return the number of processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    count = getattr(os, "process_cpu_count", os.cpu_count)()  # the first: Python 3.13
    return int(count or 1)


def is_main_process() -> bool:
    """Return whether this process should print: under torchrun, that of rank 0."""
    return os.environ.get("RANK", "0") == "0"


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out, on a GPU or in main memory."""
    # torch, cuBLAS, cuDNN, oneDNN and C++ have no type for it in common, and torch is
    # not imported here.
    words = ("out of memory", "defaultcpuallocator", "bad_alloc", "alloc_failed")
    is_named = type(error).__name__ == "OutOfMemoryError"
    is_told = isinstance(error, RuntimeError) and any(
        word in str(error).lower() for word in words
    )
    return isinstance(error, MemoryError) or is_named or is_told


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Turn SIGINT and SIGTERM into a flag while the body runs.

    A second signal of the same kind has its usual effect, so that a user need not wait.
    Outside the main thread, where Python allows no signal handlers, the flag stays
    down.

    Yields:
        Tells whether a signal came.

    Example:
        >>> with interruptible() as is_interrupted:
        ...     signal.raise_signal(signal.SIGINT)
        ...     is_interrupted()
        True
    """
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield flag.is_set
        return

    def on_signal(number: int, _frame: object) -> None:
        flag.set()
        signal.signal(number, before[signal.Signals(number)])

    before = {
        number: signal.signal(number, on_signal)
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield flag.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def keep_freed_memory() -> bool:
    """Let this process keep its freed memory until it ends.

    A training step, like an inference call of torch, frees and allocates the same large
    blocks again and again. By default glibc returns each to the system and gets it back
    filled with zeros page by page, which costs most for single images
    (docs/performance.md). Results don't change. The setting is process-wide, so only
    our commands call this; library code must not.

    Returns:
        Whether the C library accepted it: false unless it is glibc.

    Source:
        mallopt(3) of the Linux manual.
    """
    if not sys.platform.startswith("linux"):
        return False
    import ctypes  # here: every start of a command would wait for it

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((_M_TRIM_THRESHOLD, _NEVER_TRIM), (_M_MMAP_THRESHOLD, _LARGE_BYTES))
    return all(mallopt(name, value) == 1 for name, value in settings)


def start_python(
    module: str,
    *arguments: str,
    stdin: int | IO[bytes] = subprocess.DEVNULL,
    stdout: int | IO[bytes] = subprocess.DEVNULL,
    stderr: int | IO[bytes] = subprocess.DEVNULL,
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start `python -m module` with this package, installed or not, in reach.

    Files in the current folder cannot take the place of libraries, and Ctrl-C in the
    terminal does not reach the child: this process decides when it ends.

    Args:
        module: Full name of a module.
        arguments: Its command line.
        stdin: Where it reads from, as `subprocess.Popen` takes it.
        stdout: Where its output goes.
        stderr: Where its errors go.
        environment: Variables that it gets besides those of this process.
    """
    package = str(Path(tumorlens.__file__).parents[1])
    known = os.environ.get("PYTHONPATH")
    paths = os.pathsep.join([package, known] if known else [package])
    return subprocess.Popen(
        [sys.executable, "-P", "-m", module, *arguments],
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        env={**os.environ, "PYTHONPATH": paths, **(environment or {})},
        start_new_session=True,
    )


class HelperError(Exception):
    """A helper process died, took too long, or gave no valid answer."""


class HelperTimeoutError(HelperError):
    """A helper process took too long."""


class Helper:
    """A Python child process that answers requests, one at a time.

    The child starts at the first request and stays for the following ones. After an
    error the next request starts a new one. A forked process gets a child of its own.
    Threads may share a helper: they wait for each other.

    A request and an answer are a line of JSON each, followed by raw bytes. The module
    of the child calls `answer_requests(handle, *helper_pipes())`.

    Example:
        ::

            with Helper("tumorlens.data.dicom.gdcm", time_limit_s=60) as helper:
                answer, pixels = helper.request({"rows": 2}, frame)
    """

    def __init__(
        self,
        module: str,
        *,
        time_limit_s: float,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Prepare a helper; nothing is started yet.

        Args:
            module: Full name of the module that is the child's program.
            time_limit_s: Seconds after which a request fails and the child is killed.
                The first request includes the start.
            environment: Variables that the child gets besides those of this process.
        """
        self._module = module
        self._time_limit_s = time_limit_s
        self._environment = environment
        self._lock = threading.Lock()
        self._child: _Child | None = None

    def __enter__(self) -> Self:
        """Return the helper."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    @property
    def pid(self) -> int | None:
        """Process id of the child, `None` while there is none."""
        return self._child.process.pid if self._child else None

    def request(
        self, content: Mapping[str, Any], payload: bytes = b""
    ) -> tuple[dict[str, Any], bytes]:
        """Send a request and return the answer with its payload.

        Args:
            content: JSON-ready values.
            payload: Raw bytes.

        Raises:
            HelperError: The child died, took longer than the limit, or its answer is
                not valid. It is gone then.
            TumorlensError: The child raised it; it lives on.
        """
        with self._lock:
            # A forked process inherits the object, but not the child.
            if self._child is None or self._child.owner != os.getpid():
                self._child = _Child(self._module, self._environment)
                self._end = weakref.finalize(self, self._child.end)
            try:
                header, answer = self._child.exchange(
                    content, payload, self._time_limit_s
                )
            except BaseException:
                # Also after Ctrl-C: the answer still to come is not that of the next
                # request.
                self._child.process.kill()
                self._child = None
                self._end()
                raise
        if (error := header.get("error")) is not None:
            kind: type[TumorlensError] = getattr(errors, error["kind"])
            raise kind(error["problem"], hint=error["hint"])
        return header["content"], answer

    def close(self) -> None:
        """End the child, if there is one."""
        with self._lock:
            if self._child is not None:
                self._child = None
                self._end()


class _Child:
    """A running helper process with its pipes."""

    def __init__(self, module: str, environment: Mapping[str, str] | None) -> None:
        self.owner = os.getpid()
        # A file and not a pipe, which would block the child when it is full.
        self._errors = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - closed by `end`
        self.process = start_python(
            module,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            environment=environment,
        )

    def exchange(
        self, content: Mapping[str, Any], payload: bytes, time_limit_s: float
    ) -> tuple[dict[str, Any], bytes]:
        """Return header and payload of the answer to a request.

        Raises:
            HelperError: See `Helper.request`.
            HelperTimeoutError: It took longer than the limit.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        if os.fstat(self._errors.fileno()).st_size > _MAX_ERROR_BYTES:
            self._errors.seek(0)  # the child writes through the same file offset
            self._errors.truncate()
        is_late = threading.Event()

        def kill() -> None:
            is_late.set()
            self.process.kill()

        timer = threading.Timer(time_limit_s, kill)
        timer.daemon = True
        timer.start()
        answer = None
        try:
            _send(self.process.stdin, {"content": dict(content)}, payload)
            answer = _receive(self.process.stdout)
        except (OSError, EOFError):
            pass  # it is gone; why, is found below
        except (ValueError, LookupError, TypeError) as error:
            raise HelperError(f"gave no valid answer: {error}") from None
        finally:
            timer.cancel()
            timer.join()
        if is_late.is_set():
            raise HelperTimeoutError(f"took longer than {time_limit_s:g} s")
        if answer is None:
            raise HelperError(self._last_words())
        return answer

    def end(self) -> None:
        """Close the pipes, at which the child ends, and kill it if it does not."""
        if self.owner != os.getpid():
            return
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with suppress(OSError):  # unsent data without a reader
                    pipe.close()
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._errors.close()

    def _last_words(self) -> str:
        # Its pipe is closed, so it is about to end, unless it closed the pipe itself.
        try:
            status: int | str = self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return "closed its pipe"
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        return f"ended with status {status}" + (f": {lines[-1][:300]}" if lines else "")


def helper_pipes() -> tuple[IO[bytes], IO[bytes]]:
    """Return the pipes of a helper's child: requests, answers.

    From then on everything that libraries print to standard output goes to standard
    error, C code included, and never between the answers.
    """
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return sys.stdin.buffer, answers


def answer_requests(
    handle: Callable[[dict[str, Any], bytes], tuple[Mapping[str, Any], bytes]],
    requests: IO[bytes],
    answers: IO[bytes],
) -> None:
    """Answer requests until the other side closes the pipe: the child of a `Helper`.

    Args:
        handle: Content and payload of a request to those of its answer. A
            `TumorlensError` is raised on the other side; any other exception ends the
            child, with its traceback on standard error.
        requests: See `helper_pipes`.
        answers: See `helper_pipes`.
    """
    while True:
        try:
            header, payload = _receive(requests)
        except EOFError:
            return
        try:
            content, answer = handle(header["content"], payload)
            _send(answers, {"content": dict(content)}, answer)
        except TumorlensError as error:
            told = {
                "kind": type(error).__name__,
                "problem": error.problem,
                "hint": error.hint,
            }
            _send(answers, {"error": told}, b"")


def _send(pipe: IO[bytes], header: dict[str, Any], payload: bytes) -> None:
    line = json.dumps({**header, "num_bytes": len(payload)})
    pipe.write(line.encode("ascii") + b"\n")
    pipe.write(payload)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> tuple[dict[str, Any], bytes]:
    line = pipe.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    header = json.loads(line)
    payload = pipe.read(header["num_bytes"])
    if len(payload) != header["num_bytes"]:
        raise EOFError
    if not header.keys() & {"content", "error"}:
        raise KeyError("content")
    return header, payload


def _version(package: str) -> str | None:
    import importlib.metadata  # here: it takes half the time of all of ours

    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    source = Path(tumorlens.__file__).parents[2]
    if not (source / ".git").exists():
        return None
    try:
        answer = subprocess.run(
            ["git", "-C", str(source), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
