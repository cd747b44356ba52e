"""The main path of most users: `tumorlens train` with weights of the model hub."""

from __future__ import annotations

import os
import pty
import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import timm
import torch
from safetensors.torch import load_file, save

from support.hub_server import HubServer
from support.zygote import Ended, Zygote

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

REPOSITORY = "timm/test_resnet.r160_in1k"
SETTINGS = {
    **{"model.name": "test_resnet", "model.size_px": 32, "train.device": "cpu"},
    **{"optim.epochs": 1, "optim.lr": 1e-9, "train.batch_size": 8},
}
WORDS = [
    word for one in SETTINGS.items() for word in ("--set", "=".join(map(str, one)))
]


@pytest.fixture
def server() -> Iterator[HubServer]:
    torch.manual_seed(5)
    # Weights of 19 MB, so that a bar has something to show.
    state = timm.create_model("test_resnet", num_classes=45_000).state_dict()
    with HubServer({REPOSITORY: {"model.safetensors": save(state)}}) as running:
        yield running


@pytest.fixture
def zygote(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Zygote]:
    """Return a server of commands with an empty home and the hub in HF_ENDPOINT."""
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with Zygote(tmp_path) as running:
        yield running


def on_a_terminal(zygote: Zygote, *words: object) -> tuple[Ended, str]:
    """Run a command whose output is a terminal; return what that has shown too."""
    near, far = pty.openpty()
    shown: list[bytes] = []

    def read() -> None:
        while True:
            try:
                shown.append(os.read(near, 1 << 16))
            except OSError:  # the other end is closed
                return

    reader = threading.Thread(target=read)
    reader.start()
    running = zygote.start(*words, terminal=Path(os.ttyname(far)))
    ended = running.wait()
    os.close(far)
    reader.join()
    os.close(near)
    return ended, b"".join(shown).decode(errors="replace")


@pytest.mark.slow
def test_the_first_run_fetches_with_a_bar_and_the_next_needs_no_server(
    zygote: Zygote,
    server: HubServer,
    tmp_path: Path,
    make_images: Callable[..., Path],
) -> None:
    data = make_images()
    train = ["train", "--data", data, *WORDS, "--out"]
    out = tmp_path / "run"

    # It breaks off each time: one error, no folder, and nothing that is half there.
    server.fault = "cut"
    failed = zygote.run(*train, out)
    assert failed.status == 2
    assert len(failed.output.splitlines()) == 2, failed.output
    assert failed.is_clean_error
    assert not out.exists()
    assert not [path for path in (tmp_path / "hf").rglob("*") if is_large(path)]

    server.fault, server.pause_s = None, 0.6
    server.requests.clear()
    ended, shown = on_a_terminal(zygote, *train, out)
    assert ended.status == 0, shown
    assert "fetching the weights of test_resnet, MB" in shown
    assert {"11/19", "19/19"} <= set(re.findall(r"\d+/\d+", shown)), shown
    assert [one.method for one in server.requests] == ["HEAD", "HEAD", "GET"]

    server.__exit__()
    again = zygote.run(*train, tmp_path / "again")
    assert again.status == 0, again.output
    # With a rate of nearly nothing, a run has the weights that it began with.
    first, second = (
        load_file(tmp_path / name / "weights.safetensors") for name in ("run", "again")
    )
    (hub_file,) = (path for path in (tmp_path / "hf").rglob("*") if is_large(path))
    theirs = load_file(hub_file)
    for name in ("conv1.0.weight", "layer4.0.conv1.weight"):
        assert torch.equal(first[name], second[name])
        assert torch.allclose(first[name], theirs[name], atol=1e-6)


def is_large(path: Path) -> bool:
    return not path.is_symlink() and path.is_file() and path.stat().st_size > 10_000
