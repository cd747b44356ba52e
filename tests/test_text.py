"""Numbers, names and times as people read them, beside the examples in `text`."""

from __future__ import annotations

import pytest

from tumorlens import text


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.04, "0.0 s"),
        (59.94, "59.9 s"),
        (59.95, "1 min 00 s"),
        (3599.6, "1 h 00 min"),
        (86_399, "23 h 59 min"),
        (86_400, "1 d 00 h"),
    ],
)
def test_a_duration_never_shows_sixty_of_a_unit(seconds: float, expected: str) -> None:
    assert text.duration(seconds) == expected


@pytest.mark.parametrize("difference", [0.0, -0.0, 0.0004, -0.0004])
def test_a_difference_that_rounds_to_nothing_has_no_sign(difference: float) -> None:
    assert text.points(difference) == "0.0"


@pytest.mark.parametrize(
    "write",
    [
        text.percent,
        text.decimal,
        text.points,
        text.p_value,
        text.large_number,
        text.megabytes,
        text.duration,
    ],
)
def test_what_is_not_defined_is_shown_as_such(write: object) -> None:
    assert callable(write)
    assert write(None) == "n/a"


def test_a_p_value_is_never_shown_as_zero() -> None:
    assert text.p_value(0.0) == "<0.001"
    assert text.p_value(0.0005) == "0.001"


def test_natural_order_counts_digits_as_numbers() -> None:
    names = ["a10", "a9", "b1", "a", "10", "9", "a9b2", "a9b10"]
    assert sorted(names, key=text.natural_key) == [
        *("9", "10", "a", "a9", "a9b2", "a9b10", "a10", "b1")
    ]
