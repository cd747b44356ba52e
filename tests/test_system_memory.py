from __future__ import annotations

import io
import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from support.working_artefacts import make_artefact
from tumorlens.cli import app, predict
from tumorlens.deploy.benchmark import worker

if TYPE_CHECKING:
    from pathlib import Path

CODE = """
import ctypes, resource, sys
from tumorlens.system import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
size = 64 << 20
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    block = libc.malloc(size)
    ctypes.memset(block, 1, size)
    libc.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(how: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", CODE, how], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_a_large_block_is_fetched_from_the_system_once() -> None:
    # Ten blocks of 64 MiB, one after the other: without the wish each is new.
    kept, handed_back = page_faults("keep"), page_faults("default")
    if handed_back == 0:
        pytest.skip("this system does not count page faults")
    assert kept < 0.2 * handed_back


def test_who_asks_a_network_again_and_again_keeps_what_it_frees(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kept: list[str] = []
    for module in (predict, worker):
        name = module.__name__
        monkeypatch.setattr(module, "keep_freed_memory", partial(kept.append, name))
    worker.serve(io.BytesIO(), io.BytesIO())
    artefact = make_artefact(tmp_path / "onnx")
    Image.new("L", (8, 8)).save(tmp_path / "image.png")
    assert app.main(["predict", str(artefact.path), str(tmp_path / "image.png")]) == 0
    assert kept == ["tumorlens.deploy.benchmark.worker", "tumorlens.cli.predict"]
