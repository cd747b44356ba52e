"""Pretrained weights by name: fetched once, whole, or with one error."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import huggingface_hub
import pytest
import timm
import torch
from huggingface_hub import constants, file_download
from safetensors.torch import load_file, save

from support.hub_server import HubServer
from tumorlens.config import ModelConfig
from tumorlens.errors import ConfigError
from tumorlens.training import hub
from tumorlens.training.hub import WAYS_OUT, fetch_weights
from tumorlens.training.network import create_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NAME = "test_resnet"
REPOSITORY = "timm/test_resnet.r160_in1k"
PATH = f"/{REPOSITORY}/resolve/main/model.safetensors"
ADDRESS_NAME = "legacy_seresnet18"
"""A network of timm that has an address and no place on the hub."""
FILE = "tiny-{digest}.pth"
THOUSAND = 1000


def state_of() -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    state: dict[str, torch.Tensor] = timm.create_model(NAME).state_dict()
    return state


@pytest.fixture(scope="module")
def content() -> bytes:
    return save(state_of())


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the caches of the machine out of the tests, and waiting short."""
    folder = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setattr(urllib.request, "_opener", None)  # it knows the proxies
    # The client waits for seconds before each of its attempts.
    waits = SimpleNamespace(sleep=lambda _seconds: None)
    monkeypatch.setattr(file_download, "time", waits)
    monkeypatch.setattr(huggingface_hub.utils._http, "time", waits)
    huggingface_hub.close_session()
    return folder


@pytest.fixture
def server(content: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    files = {"config.json": b'{"architecture": "test_resnet"}'}
    repository = {**files, "model.safetensors": content}
    with HubServer({REPOSITORY: repository}) as running:
        use_hub(running.url, monkeypatch)
        yield running
        huggingface_hub.close_session()


def use_hub(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def settings(name: str = NAME) -> ModelConfig:
    return ModelConfig(name=name, pretrained="yes")


def files_below(folder: Path) -> list[str]:
    """Return all files that hold weights, or a part of them."""
    return sorted(
        path.name
        for path in folder.rglob("*")
        if path.is_file() and path.stat().st_size > 1000
    )


# The hub


def test_weights_are_fetched_once_and_are_those_of_the_hub(
    server: HubServer, content: bytes
) -> None:
    model, _ = create_model(settings(), num_classes=THOUSAND)
    state = model.state_dict()
    assert all(torch.equal(state[key], of) for key, of in state_of().items())
    # Only the weights, and once: timm knows what config.json holds.
    content_path = f"/content/{hashlib.sha256(content).hexdigest()}"
    assert server.paths == [f"HEAD {PATH}"] * 2 + [f"GET {content_path}"]
    create_model(settings(), num_classes=THOUSAND)
    assert len(server.requests) == 3


def test_weights_in_the_cache_need_no_server(server: HubServer) -> None:
    path = fetch_weights(NAME)
    server.__exit__()
    assert fetch_weights(NAME) == path
    assert load_file(path).keys() == state_of().keys()


def test_the_progress_ends_at_the_size_in_megabytes(server: HubServer) -> None:
    big = save({"a": torch.zeros(6_000_000)})
    server.repositories[REPOSITORY]["model.safetensors"] = big
    seen: list[tuple[int, int]] = []
    fetch_weights(NAME, progress=lambda *now: seen.append(now))
    assert seen[-1] == (25, 25)
    assert len(seen) > 1
    assert sorted(seen) == seen
    seen.clear()
    fetch_weights(NAME, progress=lambda *now: seen.append(now))
    assert seen == []


def test_a_repository_that_has_moved_is_followed(server: HubServer) -> None:
    new = "timm/another.name"
    server.repositories[new] = server.repositories.pop(REPOSITORY)
    server.moved[REPOSITORY] = new
    assert fetch_weights(NAME).is_file()


def test_weights_of_torch_are_taken_where_there_are_no_others(
    server: HubServer, tmp_path: Path
) -> None:
    torch.save(state_of(), tmp_path / "w.bin")
    server.repositories[REPOSITORY] = {
        "pytorch_model.bin": (tmp_path / "w.bin").read_bytes()
    }
    assert fetch_weights(NAME).name == "pytorch_model.bin"
    num_requests = len(server.requests)
    model, _ = create_model(settings(), num_classes=THOUSAND)
    assert torch.equal(model.get_parameter("fc.weight"), state_of()["fc.weight"])
    assert len(server.requests) == num_requests


def test_a_download_that_breaks_off_once_goes_on_where_it_was(
    server: HubServer, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The client keeps whole chunks only, of 10 MB.
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    kept = len(content) // 2 // 1000 * 1000
    server.fault = "cut"

    def mend(done: int, total: int) -> None:
        server.fault = None

    path = fetch_weights(NAME, progress=mend)
    assert path.read_bytes() == content
    assert server.requests[-1].headers["range"] == f"bytes={kept}-"


def be_impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for less than a second for more of a file, instead of ten."""
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.5)
    monkeypatch.setattr(hub, "_TIMEOUT_S", 0.5)


def fail(name: str = NAME) -> ConfigError:
    """Return the error of a fetch, which ends soon."""
    start = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        create_model(settings(name), num_classes=4)
    assert time.monotonic() - start < 60
    error = caught.value
    reasons = ("fetched from http", "used: the file in the cache was damaged: ")
    start_of = f"the pretrained weights of {name} cannot be "
    assert error.problem.startswith(tuple(start_of + one for one in reasons))
    assert "\n" not in error.problem + error.hint
    return error


FAULTS: dict[str, tuple[dict[str, Any], str, str]] = {
    "401": (
        {"status": 401},
        "the server answers 401 Unauthorized",
        "set HF_TOKEN to a token that may read them, or " + WAYS_OUT,
    ),
    "403": ({"status": 403}, "the server answers 403 Forbidden", "set HF_TOKEN to"),
    "404": (
        {"status": 404},
        "the server answers 404 Not Found",
        "check HF_ENDPOINT, as a mirror may not have them, or " + WAYS_OUT,
    ),
    "429": (
        {"status": 429},
        "the server answers 429 Too Many Requests",
        "wait some minutes and run it again, or " + WAYS_OUT,
    ),
    "429 later": (
        {"status_of_content": 429},
        "the server answers 429 Too Many Requests",
        "wait some minutes",
    ),
    "503": ({"status": 503}, "the server answers 503 Service", "run it again later"),
    "stall": (
        {"fault": "stall"},
        "the server has stopped answering",
        "run it again, check HTTPS_PROXY, or " + WAYS_OUT,
    ),
    "cut": ({"fault": "cut"}, "peer closed connection", "check the network, HF_END"),
    "digest": (
        {"fault": "wrong digest"},
        "expected a file with the SHA-256 ",
        "nothing of it was kept: run it again, check HF_ENDPOINT, or " + WAYS_OUT,
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_hub_is_one_error_and_leaves_nothing(
    fault: str,
    server: HubServer,
    cache: Path,
    content: bytes,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    how, reason, hint = FAULTS[fault]
    if fault == "stall":
        be_impatient(monkeypatch)
    vars(server).update(how)
    error = fail()
    assert f"{server.url}/{REPOSITORY}: {reason}" in error.problem
    assert error.hint.startswith(hint)
    assert capfd.readouterr() == ("", "")  # the client says nothing of its own
    assert files_below(cache) == []
    # The next run takes none of it.
    vars(server).update(status=None, status_of_content=None, fault=None)
    assert fetch_weights(NAME).read_bytes() == content


def test_a_file_that_the_disk_has_no_room_for_is_not_fetched(
    server: HubServer, cache: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = SimpleNamespace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    error = fail()
    assert "the disk is full: " in error.problem
    assert error.problem.endswith(" has 0 MB left, and they are 2 MB")
    assert error.hint == ("free some space, or set HF_HOME to a folder on another disk")
    assert not [path for path in server.paths if path.startswith("GET")]


def test_a_disk_that_fills_up_meanwhile_is_one_error(
    server: HubServer, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(url: str, file: Any, **_: Any) -> None:
        file.write(b"half of it" * 1000)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(file_download, "http_get", fill)
    error = fail()
    assert error.problem.endswith("the disk is full: No space left on device")
    assert "HF_HOME" in error.hint
    assert files_below(cache) == []


def test_a_damaged_file_in_the_cache_is_removed_and_fetched_again(
    server: HubServer, content: bytes, cache: Path
) -> None:
    path = fetch_weights(NAME)
    path.resolve().write_bytes(content[:-1] + b"!")
    error = fail()
    assert "cannot be used: the file in the cache was damaged: " in error.problem
    assert "expected a file with the SHA-256 " in error.problem
    assert "http" not in error.problem  # no server was asked
    assert error.hint.startswith("run it again, and they are fetched anew, or ")
    assert files_below(cache) == []
    assert fetch_weights(NAME).read_bytes() == content


def test_an_answer_that_is_not_from_a_hub_is_one_error(
    server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A portal of a network answers everything, with a page.
    server.files.update({f"{REPOSITORY}/resolve/main/model.safetensors": b"<html>"})
    use_hub(f"{server.url}/files", monkeypatch)
    assert fail().problem.endswith("the server does not answer as a model hub does")


def test_a_server_that_is_not_there_is_one_error(
    server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.__exit__()
    error = fail()
    assert error.hint.startswith("check the network, HF_ENDPOINT and HTTPS_PROXY, or ")


@pytest.mark.parametrize("endpoint", ["hf-mirror.com", "http://host:port", ""])
def test_an_endpoint_that_is_no_address_is_named_before_timm_fails(
    endpoint: str,
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tumorlens", "train", "--out", "nowhere"],
        env={**os.environ, "HF_ENDPOINT": endpoint},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"error: expected an address in HF_ENDPOINT, got {endpoint!r}",
        "hint: write it as https://HOST, or unset HF_ENDPOINT",
    ]


def test_a_password_in_the_address_of_a_mirror_is_not_shown(
    server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.status = 404
    use_hub(server.url.replace("//", "//me:hunter2@"), monkeypatch)
    error = fail()
    assert "hunter2" not in error.problem + error.hint


def test_the_hub_learns_nothing_but_what_it_must(server: HubServer) -> None:
    fetch_weights(NAME)
    for request in server.requests:
        words = request.headers["user-agent"]
        assert "torch" not in words
        assert "agent/" not in words
        assert "authorization" not in request.headers
        assert "cookie" not in request.headers


def test_a_token_goes_to_the_hub_and_not_to_the_host_of_its_files(
    server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    fetch_weights(NAME)
    for request in server.requests:
        sent = request.headers.get("authorization")
        assert sent == ("Bearer hf_secret" if "resolve" in request.path else None)


# Offline


def test_offline_nothing_is_asked(
    server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    error = fail()
    assert error.problem.endswith(
        "HF_HUB_OFFLINE is set, and they are not in the cache"
    )
    assert error.hint.startswith("unset HF_HUB_OFFLINE, or set model.pretrained to")
    assert server.requests == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    path = fetch_weights(NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch_weights(NAME) == path


# Addresses of timm's


@pytest.fixture
def address(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """Return a function that serves weights at an address, and gives their place."""
    torch.save(state_of(), tmp_path / "w.pth")
    content = (tmp_path / "w.pth").read_bytes()

    def serve(content: bytes = content, digest: str = "") -> Path:
        digest = digest or hashlib.sha256(content).hexdigest()[:8]
        name = FILE.format(digest=digest)
        server.files[name] = content
        plain = timm.get_pretrained_cfg(NAME)
        assert plain is not None
        here = {"url": f"{server.url}/files/{name}", "hf_hub_id": None}
        known = type(plain)(**{**vars(plain), **here})
        monkeypatch.setattr(timm, "get_pretrained_cfg", lambda _: known)
        return tmp_path / "torch" / "hub" / "checkpoints" / name

    return serve


def test_an_address_gives_its_weights_once(
    address: Callable[..., Path], server: HubServer
) -> None:
    place = address()
    model, _ = create_model(settings(), num_classes=THOUSAND)
    state = model.state_dict()
    assert all(torch.equal(state[key], of) for key, of in state_of().items())
    assert place.is_file()
    assert server.paths == [f"GET /files/{place.name}"]
    server.__exit__()
    create_model(settings(), num_classes=THOUSAND)


def test_a_network_of_timm_with_an_address_is_fetched_from_there(
    server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # timm's own address, through a proxy that stands for every host.
    monkeypatch.setenv("HTTPS_PROXY", server.url)
    error = fail(ADDRESS_NAME)
    assert "https://github.com/rwightman/" in error.problem
    assert server.paths == ["CONNECT github.com:443"]


ADDRESS_FAULTS: dict[str, tuple[dict[str, Any], str, str]] = {
    "403": ({"status": 403}, "the server answers 403 Forbidden", WAYS_OUT),
    "404": ({"status": 404}, "the server answers 404 Not Found", WAYS_OUT),
    "429": ({"status": 429}, "the server answers 429 Too Many", "wait some minutes"),
    "stall": ({"fault": "stall"}, "the server has stopped answering", "run it again"),
    "cut": (
        {"fault": "cut"},
        "the transfer broke off after ",
        "nothing of it was kept",
    ),
    "digest": (
        {"fault": "wrong digest"},
        "expected a file with a SHA-256 of ",
        "nothing of it was kept: run it again, check HF_ENDPOINT, or " + WAYS_OUT,
    ),
}


@pytest.mark.parametrize("fault", ADDRESS_FAULTS)
def test_a_fault_of_an_address_is_one_error_and_leaves_nothing(
    fault: str,
    address: Callable[..., Path],
    server: HubServer,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = address()
    if fault == "stall":
        be_impatient(monkeypatch)
    how, reason, hint = ADDRESS_FAULTS[fault]
    vars(server).update(how)
    error = fail()
    assert f"{server.url}/files/{place.name}: {reason}" in error.problem
    assert error.hint.startswith(hint)
    assert capfd.readouterr() == ("", "")
    assert list(place.parent.iterdir()) == []
    vars(server).update(status=None, fault=None)
    assert fetch_weights(NAME) == place


def test_half_a_file_that_another_program_left_is_not_taken(
    address: Callable[..., Path], server: HubServer
) -> None:
    place = address()
    place.parent.mkdir(parents=True)
    place.write_bytes(server.files[place.name][:-7])
    assert "expected a file with a SHA-256 of " in fail().problem
    assert not place.exists()
    assert fetch_weights(NAME) == place


def test_a_full_disk_below_an_address_is_one_error(
    address: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = address()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    error = fail()
    assert error.problem.endswith("the disk is full: No space left on device")
    assert "TORCH_HOME" in error.hint
    assert list(place.parent.iterdir()) == []


def test_an_address_is_not_asked_offline(
    address: Callable[..., Path], server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    address()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in fail().problem
    assert server.requests == []


def test_a_file_of_weights_that_is_none_is_named(
    address: Callable[..., Path],
) -> None:
    place = address(b"no weights" * 1000)
    with pytest.raises(ConfigError, match=r"named tensors|pickle") as (caught):
        create_model(settings(), num_classes=4)
    assert str(place) in caught.value.problem


# Proxies


def test_the_hub_is_asked_through_a_proxy(
    server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_hub("http://hub.invalid", monkeypatch)
    monkeypatch.setenv("HTTP_PROXY", server.url)
    huggingface_hub.close_session()
    assert fetch_weights(NAME).is_file()
    assert {one.host for one in server.requests} == {
        "hub.invalid",
        f"localhost:{server.port}",
    }


def test_a_proxy_that_is_not_there_is_named_without_its_password(
    server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_hub("http://hub.invalid", monkeypatch)
    monkeypatch.setenv("HTTP_PROXY", f"http://jane:secret@localhost:{server.port}")
    server.__exit__()
    huggingface_hub.close_session()
    problem = fail().problem
    assert "through http://" in problem
    assert f"localhost:{server.port}: " in problem
    assert "secret" not in problem


def test_a_mirror_is_reached_through_the_tunnel_of_a_proxy(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = write_certificate(tmp_path, "mirror.invalid")
    small = {"model.safetensors": b"not large"}  # served by the mirror itself
    with HubServer({REPOSITORY: small}, certificate=certificate) as mirror:
        server.tunnel_to = mirror.port
        use_hub("https://mirror.invalid", monkeypatch)
        monkeypatch.setenv("HTTPS_PROXY", server.url)
        huggingface_hub.close_session()
        error = fail()
        assert "CERTIFICATE" in error.problem
        assert error.hint.startswith("set SSL_CERT_FILE to the certificates of your ")
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        huggingface_hub.close_session()
        assert fetch_weights(NAME).read_bytes() == b"not large"
        assert set(server.paths) == {"CONNECT mirror.invalid:443"}
        assert {one.headers["host"] for one in mirror.requests} == {"mirror.invalid"}
        huggingface_hub.close_session()


def write_certificate(folder: Path, host: str) -> Path:
    """Write key and certificate of a host, signed by itself."""
    from datetime import UTC, datetime, timedelta

    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), False)  # noqa: FBT003
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    plain = serialization.NoEncryption()
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
    path = folder / "certificate.pem"
    path.write_bytes(secret + made.public_bytes(pem))
    return path
