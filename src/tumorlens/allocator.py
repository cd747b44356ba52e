"""The C library's memory, told to keep what is freed for the next step.

A step of training, as an answer of torch, frees and asks for the same large blocks
again. By default glibc hands each of them back to the system and gets it anew, filled
with zeros page by page, which takes longest where torch answers for single images
(docs/performance.md). It has no effect on any result, nor where the C library is
another one. It is for a whole process, so commands ask for it, not what a program of
someone else's may call.
"""

from __future__ import annotations

import ctypes
import sys

# Of glibc's malloc.h; both values are the largest that it takes.
_M_TRIM_THRESHOLD, _NEVER_TRIM = -1, 2**31 - 1
_M_MMAP_THRESHOLD, _LARGE_BYTES = -3, 2**30


def keep_freed_memory() -> bool:
    """Let this process keep its freed memory until it ends.

    Returns:
        Whether the C library took the wish: false where it is not glibc.

    Source:
        mallopt(3) of the Linux manual.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    wishes = ((_M_TRIM_THRESHOLD, _NEVER_TRIM), (_M_MMAP_THRESHOLD, _LARGE_BYTES))
    return all(mallopt(name, value) == 1 for name, value in wishes)
