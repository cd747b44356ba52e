"""The record of a run's machine, and helper processes."""

from __future__ import annotations

import gc
import importlib.metadata
import json
import os
import platform
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import tumorlens
from tumorlens import system
from tumorlens.errors import DataError, OutOfMemoryError
from tumorlens.system import (
    Helper,
    HelperError,
    describe_environment,
    is_out_of_memory,
    num_processors,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

FAKE_SOURCE = "src/tumorlens/__init__.py"


def describe() -> dict[str, Any]:
    return describe_environment(command="tumorlens train --data d --out r", seed=7)


def test_the_record_says_what_was_typed_and_what_it_ran_on() -> None:
    record = describe()
    assert set(record) == {
        *("tumorlens", "commit", "python", "platform", "cpu_count", "packages"),
        *("seed", "command"),
    }
    assert record["command"] == "tumorlens train --data d --out r"
    assert record["seed"] == 7
    assert record["tumorlens"] == tumorlens.__version__
    assert record["python"] == platform.python_version()
    assert record["packages"]["numpy"] == np.__version__
    assert record["packages"]["timm"] == importlib.metadata.version("timm")
    assert json.loads(json.dumps(record)) == record


def test_a_package_that_is_missing_has_no_version(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(system, "_PACKAGES", ("numpy", "no-such-package-at-all"))
    packages = describe()["packages"]
    assert packages == {"numpy": np.__version__, "no-such-package-at-all": None}


def test_where_a_process_may_not_be_pinned_all_processors_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert num_processors() == len(os.sched_getaffinity(0))
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "process_cpu_count", lambda: 6, raising=False)
    assert num_processors() == 6
    monkeypatch.delattr(os, "process_cpu_count")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert num_processors() == 1


def test_the_record_names_neither_user_nor_host() -> None:
    record = describe()
    words = set(re.findall(r"[\w.-]+", json.dumps(record)))
    assert platform.node() not in words
    assert str(Path.home()) not in json.dumps(record)


def test_a_source_checkout_has_its_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*words: str) -> str:
        identity = ["-c", "user.name=Nobody", "-c", "user.email=nobody@example.org"]
        done = subprocess.run(
            ["git", "-C", str(tmp_path), *identity, *words],
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    git("init", "--quiet")
    git("commit", "--quiet", "--allow-empty", "-m", "Begin")
    monkeypatch.setattr(tumorlens, "__file__", str(tmp_path / FAKE_SOURCE))
    assert describe()["commit"] == git("rev-parse", "HEAD")


def test_an_installed_package_inside_another_checkout_has_no_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # .venv/lib/python3.11/site-packages/tumorlens of some project under git.
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    installed = tmp_path / "lib" / "site-packages" / "tumorlens" / "__init__.py"
    monkeypatch.setattr(tumorlens, "__file__", str(installed))
    assert describe()["commit"] is None


@pytest.mark.parametrize(
    "failure",
    [
        FileNotFoundError("git"),
        subprocess.TimeoutExpired("git", 5),
        subprocess.CalledProcessError(128, "git"),
    ],
    ids=lambda failure: type(failure).__name__,
)
def test_without_a_working_git_there_is_no_commit(
    failure: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: Any, **_options: Any) -> None:
        raise failure

    (tmp_path / ".git").mkdir()
    monkeypatch.setattr(tumorlens, "__file__", str(tmp_path / FAKE_SOURCE))
    monkeypatch.setattr(subprocess, "run", fail)
    assert describe()["commit"] is None


# Helper processes

CHILD = """
import os, sys, time
from tumorlens.errors import DataError
from tumorlens.system import answer_requests, helper_pipes

def handle(request, payload):
    match request["do"]:
        case "reverse":
            return {"pid": os.getpid(), "num": len(payload)}, payload[::-1]
        case "environment":
            return {"value": os.environ.get(request["name"]), "path": sys.path}, b""
        case "refuse":
            raise DataError("no such image: é", hint="look again")
        case "raise":
            raise RuntimeError("a fault of ours")
        case "crash":
            os.kill(os.getpid(), 11)
        case "sleep":
            time.sleep(60)
        case "print":
            print("printed by Python", flush=True)
            os.write(1, b"printed by C\\n")
            return {}, b""
        case "garbage":
            answers.write(request["bytes"].encode())
            answers.flush()
            return {}, b""
        case "complain":
            os.write(2, b"x" * (3 << 20))
            return {}, b""
        case "measure":
            return {"bytes": os.fstat(2).st_size}, b""

requests, answers = helper_pipes()
answer_requests(handle, requests, answers)
"""


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Helper]:
    (tmp_path / "child.py").write_text(CHILD, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Helper("child", time_limit_s=60) as helper:
        yield helper


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_helper_answers_with_content_and_payload(helper: Helper) -> None:
    assert helper.pid is None
    payload = bytes(range(256)) * 5000  # more than a pipe holds, line ends included
    content, answer = helper.request({"do": "reverse"}, payload)
    assert content == {"pid": helper.pid, "num": len(payload)}
    assert answer == payload[::-1]


def test_a_helper_stays_between_requests_and_ends_when_it_is_closed(
    helper: Helper,
) -> None:
    pids = {helper.request({"do": "reverse"})[0]["pid"] for _ in range(3)}
    (pid,) = pids
    helper.close()
    assert not is_running(pid)
    helper.close()  # twice does no harm
    assert helper.request({"do": "reverse"})[0]["pid"] != pid


def test_a_helper_that_is_forgotten_ends(helper: Helper) -> None:
    forgotten = Helper("child", time_limit_s=60)
    pid = forgotten.request({"do": "reverse"})[0]["pid"]
    del forgotten
    gc.collect()
    assert not is_running(pid)


def test_an_error_in_a_helper_is_raised_here_and_the_helper_lives_on(
    helper: Helper,
) -> None:
    pid = helper.request({"do": "reverse"})[0]["pid"]
    with pytest.raises(DataError) as caught:
        helper.request({"do": "refuse"})
    assert (caught.value.problem, caught.value.hint) == (
        "no such image: é",
        "look again",
    )
    assert helper.request({"do": "reverse"})[0]["pid"] == pid


def test_a_fault_in_a_helper_is_an_error_with_its_last_line(helper: Helper) -> None:
    with pytest.raises(
        HelperError, match=r"^ended with status 1: RuntimeError: a fault of ours$"
    ):
        helper.request({"do": "raise"})


def test_a_crash_is_an_error_and_the_next_request_has_a_new_helper(
    helper: Helper,
) -> None:
    pid = helper.request({"do": "reverse"})[0]["pid"]
    with pytest.raises(HelperError, match=r"^ended with status -11$"):
        helper.request({"do": "crash"})
    assert not is_running(pid)
    assert helper.request({"do": "reverse"}, b"ab") == (
        {"pid": helper.pid, "num": 2},
        b"ba",
    )


def test_a_helper_that_was_killed_between_two_requests_is_an_error(
    helper: Helper,
) -> None:
    pid = helper.request({"do": "reverse"})[0]["pid"]
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(HelperError, match=r"^ended with status -9$"):
        helper.request({"do": "reverse"}, bytes(1 << 20))


def test_a_helper_that_takes_too_long_is_killed(helper: Helper) -> None:
    with Helper("child", time_limit_s=0.5) as impatient:
        start = time.monotonic()
        with pytest.raises(HelperError, match=r"^took longer than 0\.5 s$"):
            impatient.request({"do": "sleep"})
        assert time.monotonic() - start < 10
        assert impatient.pid is None


def test_prints_of_libraries_do_not_end_up_among_the_answers(helper: Helper) -> None:
    assert helper.request({"do": "print"}) == ({}, b"")
    assert helper.request({"do": "reverse"}, b"ab")[1] == b"ba"


@pytest.mark.parametrize(
    "content",
    [
        "no json\n",
        "[1]\n",
        "{}\n",
        '{"num_bytes": 0}\n',
        '{"num_bytes": "x", "content": {}}\n',
    ],
)
def test_garbage_on_the_pipe_is_an_error_and_ends_the_helper(
    helper: Helper, content: str
) -> None:
    pid = helper.request({"do": "reverse"})[0]["pid"]
    with pytest.raises(HelperError, match=r"^gave no valid answer: "):
        helper.request({"do": "garbage", "bytes": content})
    assert not is_running(pid)
    assert helper.request({"do": "reverse"}, b"ab")[1] == b"ba"


def test_ctrl_c_during_a_request_does_not_shift_the_answers(
    helper: Helper, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper.request({"do": "reverse"})

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(system, "_receive", interrupt)
        with pytest.raises(KeyboardInterrupt):
            helper.request({"do": "reverse"}, b"first")
    assert helper.request({"do": "reverse"}, b"second")[1] == b"dnoces"


def test_threads_may_share_a_helper(helper: Helper) -> None:
    payloads = [bytes([number]) * 100_000 + b"e" for number in range(20)]

    def reverse(payload: bytes) -> bytes:
        return helper.request({"do": "reverse"}, payload)[1]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(reverse, payloads)) == [one[::-1] for one in payloads]


def test_what_a_helper_complains_of_does_not_fill_the_disk(helper: Helper) -> None:
    helper.request({"do": "complain"})
    assert helper.request({"do": "measure"})[0]["bytes"] == 0


def test_a_helper_finds_this_package_and_not_files_of_the_current_folder(
    helper: Helper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "json.py").write_text("raise SystemExit('mine')")
    monkeypatch.chdir(tmp_path / "here")
    with Helper("child", time_limit_s=60, environment={"A_NAME": "a value"}) as other:
        found = other.request({"do": "environment", "name": "A_NAME"})[0]
    assert found["value"] == "a value"
    assert str(Path(tumorlens.__file__).parents[1]) in found["path"]
    assert "" not in found["path"]
    assert str(tmp_path / "here") not in found["path"]


def test_a_helper_ends_when_its_parent_is_killed(helper: Helper) -> None:
    code = """
import os, signal
from tumorlens.system import Helper
helper = Helper("child", time_limit_s=60)
print(helper.request({"do": "reverse"})[0]["pid"], flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(
                [str(Path(tumorlens.__file__).parents[1]), os.environ["PYTHONPATH"]]
            ),
        },
    )
    deadline = time.monotonic() + 10
    while is_running(int(done.stdout)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(int(done.stdout))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_process_has_a_helper_of_its_own(helper: Helper) -> None:
    pid = helper.request({"do": "reverse"})[0]["pid"]
    child = os.fork()
    if child == 0:
        try:
            is_other = helper.request({"do": "reverse"})[0]["pid"] != pid
            helper.close()
            os._exit(0 if is_other else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert helper.request({"do": "reverse"})[0]["pid"] == pid


def test_a_helper_leaves_no_thread(helper: Helper) -> None:
    before = threading.active_count()
    helper.request({"do": "reverse"})
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (OutOfMemoryError("memory ran out: resnet18 with a batch of 8"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate"), True),
        (RuntimeError("shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_only_want_of_memory_counts_as_such(
    error: BaseException, *, expected: bool
) -> None:
    assert is_out_of_memory(error) is expected
