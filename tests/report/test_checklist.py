"""`checklist.csv`: two guidelines by number, and the files that answer their items."""

from __future__ import annotations

import csv
import re
from typing import TYPE_CHECKING

import pytest

from support.card_runs import whole_run
from support.runs_on_images import make_run
from tumorlens.report.card import card_of_artefact, card_of_run
from tumorlens.report.checklist import ITEMS, as_csv, checklist_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tumorlens.report.card import Card
    from tumorlens.runs.folder import Run


@pytest.fixture(scope="module")
def whole(exported_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a run with figures of every kind, which tests must not change."""
    return whole_run(tmp_path_factory, exported_run)


@pytest.fixture
def bare(make_images: Callable[..., Path], tmp_path: Path) -> Run:
    """Return a run that was trained, and nothing else."""
    return make_run(tmp_path / "run", make_images(num_each=4))


def states(card: Card) -> dict[tuple[str, str], tuple[str, str]]:
    return {(r.guideline, r.item): (r.state, r.source) for r in checklist_of(card)}


def test_the_numbers_are_those_of_the_guidelines() -> None:
    numbers: dict[str, list[str]] = {}
    for item in ITEMS:
        numbers.setdefault(item.guideline, []).append(item.number)
    assert numbers["CLAIM 2024"] == [str(number) for number in range(1, 45)]
    # STARD-AI has parts in five of its items.
    parts = {15: "abcd", 16: "abc", 17: "ab", 26: "ab", 40: "ab"}
    assert numbers["STARD-AI"] == [
        f"{number}{part}" for number in range(1, 41) for part in parts.get(number, [""])
    ]


def test_topics_are_short_labels() -> None:
    for item in ITEMS:
        assert 3 <= len(item.topic.split()) <= 8, item


def test_the_file_has_a_line_for_each_item(whole: Run) -> None:
    rows = list(csv.reader(as_csv(card_of_run(whole)).splitlines()))
    assert rows[0] == ["guideline", "item", "topic", "state", "from"]
    assert len(rows) == 1 + 44 + 48
    assert {row[3] for row in rows[1:]} == {"answered", "not known to the software"}


def test_what_answers_an_item_is_there(whole: Run) -> None:
    for row in checklist_of(card_of_run(whole)):
        assert bool(row.source) == (row.state == "answered"), row
        if not row.source:
            continue
        files = re.findall(r"[\w/*.-]+\.(?:json|jsonl|csv|toml)\b", row.source)
        assert files, row
        for name in files:
            assert list(whole.path.glob(name)), name


def test_what_a_run_was_not_asked_is_not_answered_and_names_the_command(
    bare: Run,
) -> None:
    found = states(card_of_run(bare))
    evaluate = ("not answered", "tumorlens evaluate RUN")
    for item in (28, 29, 32, 37, 38, 39):
        assert found["CLAIM 2024", str(item)] == evaluate
    elsewhere = ("not answered", "tumorlens evaluate RUN --on DATA")
    assert found["CLAIM 2024", "33"] == elsewhere
    assert found["CLAIM 2024", "30"] == ("not answered", "tumorlens stress RUN")
    assert found["STARD-AI", "15c"] == ("not answered", "tumorlens trust RUN")
    assert found["STARD-AI", "19"] == ("not answered", "tumorlens trust RUN")
    assert found["CLAIM 2024", "25"][0] == "answered"


def test_what_is_about_patients_and_authors_is_not_known(whole: Run) -> None:
    found = states(card_of_run(whole))
    unknown = ("not known to the software", "")
    for item in (1, 5, 8, 11, 13, 14, 16, 18, 21, 34, 36, 40, 41, 44):
        assert found["CLAIM 2024", str(item)] == unknown
    for name in ("6", "7", "12", "16a", "17a", "25", "27", "32", "36", "39"):
        assert found["STARD-AI", name] == unknown


def test_numbers_of_cases_are_known_only_where_patients_are(bare: Run) -> None:
    assert bare.leak().num_test_unknown_patient > 0
    assert states(card_of_run(bare))["CLAIM 2024", "35"][0] != "answered"
    known = bare.leak().model_copy(update={"num_test_unknown_patient": 0})
    bare.write_leak(known)
    assert states(card_of_run(bare))["CLAIM 2024", "35"] == (
        "answered",
        "split.csv: group, subset, reason",
    )


def test_an_artefact_sends_to_the_card_of_its_run(whole: Run) -> None:
    found = states(card_of_artefact(whole.path / "export" / "onnx"))
    of_run = ("not answered", "tumorlens card RUN")
    assert found["CLAIM 2024", "28"] == of_run
    assert found["CLAIM 2024", "23"] == ("answered", "model.json: made_with")
    assert found["CLAIM 2024", "44"] == ("not known to the software", "")
