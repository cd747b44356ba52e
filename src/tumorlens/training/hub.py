"""Pretrained weights by the name of a network: from a server to a checked file.

The server is the model hub, or that of the address that timm has for a network. timm
would fetch from both by itself. A wrong digest or a cut transfer would then leave a
file that the next run takes, a server that stalls would be waited for without end, and
most other faults would end in the traceback of one of four libraries. Here each is one
error, and a file is used only if it has the size and the digest that its server
promised.

Weights in the cache are used without a look at the network. The variables of the hub's
client hold: HF_ENDPOINT, HF_TOKEN, HF_HOME, HF_HUB_OFFLINE (for both servers), and
those of proxies and certificates. Files of addresses are in TORCH_HOME, as torch.hub
keeps them.
"""

from __future__ import annotations

import errno
import glob
import logging
import math
import re
import shutil
import ssl
import urllib.request
import warnings
from contextlib import contextmanager, nullcontext, suppress
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.parse import urlsplit

import huggingface_hub
import timm
import torch
from huggingface_hub import constants
from huggingface_hub.errors import EntryNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils.tqdm import tqdm

from tumorlens.errors import ConfigError, DataError
from tumorlens.files import remove_leftovers, replacing, sha256_of
from tumorlens.urls import without_password, without_secrets

if TYPE_CHECKING:
    from collections.abc import Iterator
    from http.client import HTTPResponse

    from tumorlens.runs.progress import Progress

WAYS_OUT = (
    "set model.pretrained to a .safetensors or .pth file of its weights, or to 'no' "
    "for random ones"
)

_TIMEOUT_S = 10
_CHUNK_BYTES = 1 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")
_DIGEST_IN_NAME = re.compile(r"-([0-9a-f]{8,})\.")
"""First digits of the SHA-256 in a file's name, as torch.hub has them."""
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class _DamagedError(Exception):
    """A file that is not what its server promised."""


class _DamagedInCacheError(Exception):
    """A file of the cache that is no longer what was fetched. It is removed."""


def fetch_weights(name: str, *, progress: Progress | None = None) -> Path:
    """Return the file of a network's pretrained weights, fetched if it is not cached.

    Args:
        name: timm's name of the network.
        progress: Called with the megabytes that are there and those in all.

    Raises:
        ConfigError: There are none, or they cannot be fetched. Nothing is left then
            that a later call would take.
    """
    known = timm.get_pretrained_cfg(name)
    if known is None or not (known.hf_hub_id or known.url):
        raise ConfigError(
            f"there are no pretrained weights for model.name {name!r}", hint=WAYS_OUT
        )
    show = progress or (lambda _done, _total: None)
    address = str(known.url)
    if known.hf_hub_id:
        address = f"{constants.ENDPOINT}/{known.hf_hub_id}"
    try:
        if known.hf_hub_id:
            return _from_hub(known.hf_hub_id, known.hf_hub_filename, show)
        return _from_address(address, show)
    except Exception as error:
        # The client of the hub, httpx below it, hf_xet and urllib have no error in
        # common, and some of theirs are plain exceptions.
        if isinstance(error, MemoryError | ConfigError):
            raise
        cause = error.__cause__ if isinstance(error, DataError) else error
        reason, hint = _explain(cause or error, is_hub=bool(known.hf_hub_id))
        raise ConfigError(
            f"the pretrained weights of {name} cannot be "
            f"{_way_to(address, error)}: {without_secrets(reason, address)}",
            hint=hint,
        ) from None


def _way_to(address: str, error: BaseException) -> str:
    """Return where weights were to come from, in words."""
    if isinstance(error, _DamagedInCacheError):
        return "used"
    words = f"fetched from {without_password(address)}"
    proxy = urllib.request.getproxies().get(urlsplit(address).scheme)
    if proxy is None or urllib.request.proxy_bypass(urlsplit(address).hostname or ""):
        return words
    return f"{words} through {without_password(proxy)}"


@contextmanager
def _in_cache() -> Iterator[None]:
    """Tell a damaged file of the cache from one that a server has just sent.

    Raises:
        _DamagedInCacheError: In place of `_DamagedError`.
    """
    try:
        yield
    except _DamagedError as error:
        raise _DamagedInCacheError(
            f"the file in the cache was damaged: {error}"
        ) from None


def _from_hub(hub_id: str, filename: str | None, show: Progress) -> Path:
    """Return a file of the hub's cache, fetched if it is not there.

    Raises:
        _DamagedError: It is not what the hub promised. It is removed.
        _DamagedInCacheError: The same of a file that was there.
        EntryNotFoundError: The hub has no file of weights under these names.
        OSError: Or another error of the client.
    """
    repository, _, revision = hub_id.partition("@")
    names = _names_of_weights(filename)
    for name in names:
        found = huggingface_hub.try_to_load_from_cache(
            repository, name, revision=revision or None
        )
        if isinstance(found, str):
            path = Path(found)
            with _in_cache():
                _check_digest(path, _digest_in_cache(path))
            return path
    for name in names:
        try:
            # This asks once and returns. `hf_hub_download` would ask again for
            # minutes where a server does not answer or refuses.
            about = huggingface_hub.get_hf_file_metadata(
                huggingface_hub.hf_hub_url(repository, name, revision=revision or None),
                timeout=constants.HF_HUB_ETAG_TIMEOUT,
            )
        except EntryNotFoundError:
            if name == names[-1]:
                raise
            continue
        if not (about.commit_hash and about.etag):
            raise _DamagedError("the server does not answer as a model hub does")
        folder = Path(constants.HF_HUB_CACHE)
        folder.mkdir(parents=True, exist_ok=True)
        _check_space(folder, about.size)
        with _quiet_client():
            path = Path(
                huggingface_hub.hf_hub_download(
                    repository,
                    name,
                    revision=revision or None,
                    tqdm_class=_bar_class(show),
                )
            )
        _check_digest(path, about.etag)
        break
    return path


def _names_of_weights(filename: str | None) -> tuple[str, ...]:
    """Return the names under which a repository may have weights, as timm tries them.

    Example:
        >>> _names_of_weights(None)
        ('model.safetensors', 'pytorch_model.bin')
        >>> _names_of_weights("open_clip_pytorch_model.bin")
        ('open_clip_model.safetensors', 'open_clip_pytorch_model.bin')
    """
    plain = filename or "pytorch_model.bin"
    if not plain.endswith(".bin"):
        return (plain,)
    return plain.replace("pytorch_model", "model")[:-4] + ".safetensors", plain


def _digest_in_cache(path: Path) -> str:
    """Return the name of a file in the hub's store of content, or nothing.

    The cache is a link to it. Where a file system has no links, it is not known.
    """
    return path.readlink().name if path.is_symlink() else ""


def _check_digest(path: Path, digest: str) -> None:
    """Remove a file of the hub that does not have its digest.

    Args:
        path: The file in the cache.
        digest: Its ETag on the hub: the SHA-256 of large files, which weights are.
            Anything else is not compared.

    Raises:
        _DamagedError: It does not have it.
    """
    if not _SHA256.fullmatch(digest) or (found := sha256_of(path)) == digest:
        return
    with suppress(OSError):  # a cache that this user may not write
        if path.is_symlink():
            path.resolve().unlink()
        path.unlink()
    raise _DamagedError(f"expected a file with the SHA-256 {digest}, got {found}")


def _from_address(address: str, show: Progress) -> Path:
    """Return a file of torch.hub's cache, fetched if it is not there.

    Raises:
        _DamagedError: It is not what the address promises. It is removed.
        _DamagedInCacheError: The same of a file that was there.
        OfflineModeIsEnabled: It is not there, and the network is not to be used.
        DataError: Caused by an error of the disk or of the network.
    """
    name = Path(urlsplit(address).path).name
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    is_cached = path.is_file()
    if not is_cached:
        if constants.HF_HUB_OFFLINE:
            raise OfflineModeIsEnabled
        remove_leftovers(path.parent.glob(f".{glob.escape(path.stem[:40])}.*"))
        with replacing(path) as temporary:
            _download(address, temporary, show)
            _check_name(temporary, name)
    try:
        with _in_cache() if is_cached else nullcontext():
            _check_name(path, name)
    except (_DamagedError, _DamagedInCacheError):
        with suppress(OSError):
            path.unlink()
        raise
    return path


def _download(address: str, path: Path, show: Progress) -> None:
    """Fetch a file.

    torch.hub would wait without end for a server that stalls, and keep what there is
    of a transfer that was cut.

    Raises:
        _DamagedError: The transfer was cut.
        HTTPError: The server refuses.
        OSError: It cannot be reached, or the disk is full.
    """
    # Some servers refuse the name of urllib. This is what torch.hub sends.
    request = urllib.request.Request(address, headers={"User-Agent": "torch.hub"})
    answer: HTTPResponse
    try:
        answer = urllib.request.urlopen(request, timeout=_TIMEOUT_S)
    except HTTPError as error:
        error.close()
        raise
    with answer, path.open("wb") as file:
        length = answer.headers.get("Content-Length")
        size = int(length) if length else None
        _check_space(path.parent, size)
        num_bytes = 0
        while chunk := answer.read(_CHUNK_BYTES):
            file.write(chunk)
            num_bytes += len(chunk)
            show(*_megabytes(num_bytes, size))
    if size is not None and num_bytes != size:
        raise _DamagedError(
            f"the transfer broke off after {num_bytes:,} of {size:,} bytes"
        )


def _check_name(path: Path, name: str) -> None:
    """Compare a file with the digest in a name.

    Raises:
        _DamagedError: They differ.
    """
    digest = _DIGEST_IN_NAME.search(name)
    if digest is None or (found := sha256_of(path)).startswith(digest[1]):
        return
    raise _DamagedError(
        f"expected a file with a SHA-256 of {digest[1]}..., got {found}"
    )


def _check_space(folder: Path, size: int | None) -> None:
    """Refuse a file that the disk has no room for, before it is fetched.

    Raises:
        OSError: It has not.
    """
    free = shutil.disk_usage(folder).free
    if size is not None and free < size:
        raise OSError(
            errno.ENOSPC,
            f"{folder} has {free / 1e6:.0f} MB left, and they are {size / 1e6:.0f} MB",
        )


def _megabytes(done: int, total: int | None) -> tuple[int, int]:
    """Return bytes that are done, and in all, as megabytes that have begun."""
    return math.ceil(done / 10**6), math.ceil(max(total or 0, done) / 10**6)


def _bar_class(show: Progress) -> type[tqdm]:
    """Return a progress bar that shows nothing by itself."""

    class Bar(tqdm):
        """The first of the bars counts: hf_xet has one for the network, too."""

        is_first = True

        def __init__(self, *args: Any, **options: Any) -> None:
            silent = {**options, "disable": True}
            base: Any = super()  # huggingface_hub's class has no types
            base.__init__(*args, **silent)
            self._reports, Bar.is_first = Bar.is_first, False
            self._done = options.get("initial") or 0

        def update(self, n: float | None = 1) -> None:
            self._done += int(n or 0)
            if self._reports:
                show(*_megabytes(self._done, self.total))

    return Bar


@contextmanager
def _quiet_client() -> Iterator[None]:
    """Let the hub's client report nothing but that it waits longer than for seconds.

    What else it tells of a failing download ends in our error. Its warning of a disk
    that is nearly full is of `_check_space`.
    """

    def is_wait(record: logging.LogRecord) -> bool:
        return "Rate limited" in record.getMessage()

    handlers = logging.getLogger("huggingface_hub").handlers
    for handler in handlers:
        handler.addFilter(is_wait)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        for handler in handlers:
            handler.removeFilter(is_wait)


def _explain(error: BaseException, *, is_hub: bool) -> tuple[str, str]:
    """Return why weights cannot be fetched, and what to do."""
    kind = type(error).__name__
    reason = getattr(error, "reason", None) or error  # of urllib
    status = getattr(getattr(error, "response", error), "status_code", None)
    status = status or getattr(error, "code", None)
    lines = [line for line in str(reason).splitlines() if line.strip()] or [kind]
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, and they are not in the cache", (
            f"unset HF_HUB_OFFLINE, or {WAYS_OUT}"
        )
    if isinstance(error, _DamagedInCacheError):
        return lines[0], f"run it again, and they are fetched anew, or {WAYS_OUT}"
    if isinstance(error, _DamagedError):
        return lines[0], (
            f"nothing of it was kept: run it again, check HF_ENDPOINT, or {WAYS_OUT}"
        )
    if isinstance(status, int):
        return _explain_status(status, is_hub=is_hub)
    if isinstance(reason, OSError) and reason.errno in _DISK_FULL:
        home = "HF_HOME" if is_hub else "TORCH_HOME"
        return f"the disk is full: {reason.strerror}", (
            f"free some space, or set {home} to a folder on another disk"
        )
    if isinstance(reason, TimeoutError) or "Timeout" in kind:
        return "the server has stopped answering", (
            f"run it again, check HTTPS_PROXY, or {WAYS_OUT}"
        )
    if isinstance(reason, ssl.SSLError) or "CERTIFICATE" in lines[0]:
        return lines[0], (
            "set SSL_CERT_FILE to the certificates of your network, or " + WAYS_OUT
        )
    return lines[0], f"check the network, HF_ENDPOINT and HTTPS_PROXY, or {WAYS_OUT}"


def _explain_status(status: int, *, is_hub: bool) -> tuple[str, str]:
    known = {one.value: one.phrase for one in HTTPStatus}
    reason = f"the server answers {status} {known.get(status, '')}".rstrip()
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        way = "set HF_TOKEN to a token that may read them, or " * is_hub
    elif status == HTTPStatus.TOO_MANY_REQUESTS:
        way = "wait some minutes and run it again, or "
    elif status == HTTPStatus.NOT_FOUND:
        way = "check HF_ENDPOINT, as a mirror may not have them, or " * is_hub
    else:
        way = "run it again later, or "
    return reason, way + WAYS_OUT
