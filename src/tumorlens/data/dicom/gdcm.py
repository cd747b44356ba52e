"""Decoding with gdcm in a process of its own, because it can take its process along.

gdcm is C++. On damaged JPEG-LS and lossless JPEG it does not always raise: one in some
hundred mutated files ended the whole process, by an abort or a segmentation fault
(python-gdcm 3.2.6). So a helper process decodes; when it dies, the file in question is
damaged, and the next file gets a new helper. The helper is kept between files, since
starting it takes about a second.

The two sides talk over pipes: a line of JSON with sizes, then raw bytes. Run as a
script, this file is the helper; it then imports nothing of this package. What a
newcomer gets wrong: `multiprocessing` will not do here. It refuses children of data
loader workers, and would run the user's script again.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import threading
from typing import IO, TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

_lock = threading.Lock()
_helper: subprocess.Popen[bytes] | None = None
_helper_owner = 0


def decode(
    frame: bytes, *, syntax: str, options: Mapping[str, int | str]
) -> NDArray[Any]:
    """Return the pixels of one compressed frame.

    Threads wait for each other; processes have a helper each.

    Args:
        frame: The compressed data of one frame, without the item tags around it.
        syntax: UID of the transfer syntax.
        options: Rows, columns and the like, as pydicom's `Decoder.as_array` takes them.

    Returns:
        (H, W) or (H, W, 3), YBR already turned into RGB.

    Raises:
        ValueError: The frame cannot be decoded, or the helper died over it.
    """
    with _lock:
        helper = _running_helper()
        try:
            answer, pixels = _ask(
                helper, {"syntax": syntax, "options": dict(options)}, frame
            )
        except (OSError, EOFError):  # the pipe is closed: there is nobody any more
            _stop_helper()
            raise ValueError("gdcm crashed on its compressed data") from None
    if "error" in answer:
        raise ValueError(f"gdcm: {answer['error']}")
    return np.frombuffer(pixels, answer["dtype"]).reshape(answer["shape"]).copy()


def serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """Decode what is asked for until the other side closes the pipe."""
    from pydicom.encaps import encapsulate
    from pydicom.pixels import get_decoder
    from pydicom.uid import UID

    while line := requests.readline():
        request = json.loads(line)
        frame = requests.read(request["num_bytes"])
        pixels = b""
        try:
            array, _ = get_decoder(UID(request["syntax"])).as_array(
                encapsulate([frame]),
                index=0,
                raw=False,
                decoding_plugin="gdcm",
                **request["options"],
            )
            pixels = array.tobytes()
            answer = {"dtype": array.dtype.str, "shape": array.shape}
        except Exception as error:  # whatever it is, the other side shall hear of it
            answer = {"error": " ".join(str(error).split())[-200:]}
        _send(answers, answer, pixels)


def _running_helper() -> subprocess.Popen[bytes]:
    global _helper, _helper_owner
    # A forked process inherits the variable, but the helper is its parent's.
    if _helper is None or _helper_owner != os.getpid():
        _helper = subprocess.Popen(
            # -P: the folder of this file must not come first in the import path.
            [sys.executable, "-P", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # codecs in C print to it as they like
        )
        _helper_owner = os.getpid()
    return _helper


def _ask(
    helper: subprocess.Popen[bytes], request: dict[str, Any], frame: bytes
) -> tuple[dict[str, Any], bytes]:
    assert helper.stdin is not None
    assert helper.stdout is not None
    _send(helper.stdin, request, frame)
    line = helper.stdout.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    answer = json.loads(line)
    content = helper.stdout.read(answer["num_bytes"])
    if len(content) != answer["num_bytes"]:
        raise EOFError
    return answer, content


def _send(pipe: IO[bytes], header: dict[str, Any], content: bytes) -> None:
    line = json.dumps({**header, "num_bytes": len(content)})
    pipe.write(line.encode("ascii") + b"\n")
    pipe.write(content)
    pipe.flush()


@atexit.register
def _stop_helper() -> None:
    global _helper
    if _helper is None or _helper_owner != os.getpid():
        return
    helper, _helper = _helper, None
    helper.kill()
    helper.wait()
    for pipe in (helper.stdin, helper.stdout):
        if pipe is not None:
            try:
                pipe.close()
            except OSError:  # what was still to be written has no reader
                continue


if __name__ == "__main__":
    # Whatever a codec prints to its standard output must not end up among the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(sys.stdin.buffer, answers)
