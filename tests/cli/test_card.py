"""The command `card`: what it prints, and what it refuses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.handmade_runs import answers
from support.handmade_runs import make_run as make_run_by_hand
from support.runs_on_images import make_run
from tumorlens.cli import app

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_it_says_what_is_missing_and_where_the_card_is(
    make_images: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = make_run(tmp_path / "run", make_images(num_each=4))
    assert app.main(["card", str(run.path), "--out", str(tmp_path / "card")]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "figures: not measured; run: tumorlens evaluate RUN"
    assert printed[-1].startswith(f"the card is {tmp_path / 'card' / 'card.md'}")
    assert not (run.path / "card.md").exists()


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        ("no run", "no such run folder"),
        ("not finished", "is not finished"),
        ("damaged", "is damaged"),
        ("other split", "is not the split that this run was made with"),
        ("a file", "cannot write"),
    ],
)
def test_a_fault_is_one_line_with_a_hint_and_writes_nothing(
    fault: str, problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "run", tmp_path / "out"
    if fault != "no run":
        is_finished = fault != "not finished"
        run = make_run_by_hand(path, answers([1, 0]), is_finished=is_finished)
        run.write_environment({"tumorlens": "0"})
    match fault:
        case "damaged":
            (path / "metrics.json").write_text('{"format": 2}')
        case "other split":
            text = (path / "split.csv").read_text()
            (path / "split.csv").write_text(text.replace(",test,", ",train,"))
        case "a file":
            out.write_text("mine")
    assert app.main(["card", str(path), "--out", str(out)]) == 2
    printed = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in printed] == ["error", "hint"]
    assert problem in printed[0]
    assert not out.is_dir()
