from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import ctypes, resource, sys
from tumorlens.allocator import keep_freed_memory

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
