"""A short slice of `make fuzz`: files with random faults are read or refused."""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from support.fuzz_inputs import subjects
from support.fuzzing import cases_of, run_case, spoil_bytes, spoil_fields

if TYPE_CHECKING:
    from pathlib import Path

NUM_CASES = 6


@pytest.mark.slow
def test_files_with_random_faults_are_read_or_refused(tmp_path: Path) -> None:
    samples = tmp_path / "samples"
    samples.mkdir()
    found: Counter[str] = Counter()
    for kind, subject in subjects(samples).items():
        for number in range(1, NUM_CASES):  # 0 would draw pages
            found[run_case(kind, subject, number, tmp_path / "case")] += 1
    assert min(found["read"], found["refused"]) > 20


def test_good_files_of_every_kind_are_read(tmp_path: Path) -> None:
    samples = tmp_path / "samples"
    samples.mkdir()
    for kind, subject in subjects(samples).items():
        for name, content in subject.samples.items():
            folder = tmp_path / kind
            folder.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)
            subject.read(folder / name)


def test_faults_follow_from_the_seed() -> None:
    content = b'{"a": [1, {"b": 2}], "c": "text"}'
    for spoil in (spoil_bytes, spoil_fields):
        first, again = (spoil(content, random.Random(1)) for _ in range(2))
        assert first == again != content


def test_the_cases_are_shared_out_whole() -> None:
    assert sum(cases_of(["png", "bmp", "x"], 100).values()) >= 100
