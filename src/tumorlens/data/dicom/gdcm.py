"""Decoding with gdcm in a process of its own, because gdcm can crash its process.

gdcm is C++. On damaged JPEG-LS and lossless JPEG it does not always raise: one in some
hundred mutated files ended the whole process, by an abort or a segmentation fault
(python-gdcm 3.2.6). So a `system.Helper` decodes, whose program is this module. When
it dies or takes too long, the file in question is damaged, and the next file gets a
new helper. The helper is kept between files, since starting it takes about a second.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tumorlens.system import (
    Helper,
    HelperError,
    HelperTimeoutError,
    answer_requests,
    helper_pipes,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

TIME_LIMIT_S = 60.0
"""Longest time for one frame; those of 100 million pixels take some 10 s."""


class TooSlowError(ValueError):
    """A frame took longer than the limit."""


_helper = Helper("tumorlens.data.dicom.gdcm", time_limit_s=TIME_LIMIT_S)


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
        TooSlowError: The helper took too long.
        ValueError: The frame cannot be decoded, or the helper died.
    """
    try:
        answer, pixels = _helper.request(
            {"syntax": syntax, "options": dict(options)}, frame
        )
    except HelperError as error:
        is_late = isinstance(error, HelperTimeoutError)
        kind = TooSlowError if is_late else ValueError
        raise kind(f"gdcm failed on its compressed data: it {error}") from None
    if "error" in answer:
        raise ValueError(f"gdcm: {answer['error']}")
    return np.frombuffer(pixels, answer["dtype"]).reshape(answer["shape"]).copy()


def _decode_here(request: dict[str, Any], frame: bytes) -> tuple[dict[str, Any], bytes]:
    """Answer one request, in the helper."""
    from pydicom.encaps import encapsulate
    from pydicom.pixels import get_decoder
    from pydicom.uid import UID

    try:
        array, _ = get_decoder(UID(request["syntax"])).as_array(
            encapsulate([frame]),
            index=0,
            raw=False,
            decoding_plugin="gdcm",
            **request["options"],
        )
    except Exception as error:  # all kinds: it is about the frame, not about this code
        return {"error": " ".join(str(error).split())[-200:]}, b""
    return {"dtype": array.dtype.str, "shape": array.shape}, array.tobytes()


if __name__ == "__main__":
    answer_requests(_decode_here, *helper_pipes())
