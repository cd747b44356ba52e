"""Signals as a flag, and everything put back."""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING

import pytest

from tumorlens.system import interruptible

if TYPE_CHECKING:
    from collections.abc import Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def polite_kill() -> Iterator[list[int]]:
    """SIGTERM is noted instead of ending the tests, and Ctrl-C is Python's own.

    A shell that starts the tests in the background has them ignore Ctrl-C.
    """
    received: list[int] = []
    before = {
        signal.SIGTERM: signal.signal(
            signal.SIGTERM, lambda number, _frame: received.append(number)
        ),
        signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler),
    }
    yield received
    for number, handler in before.items():
        signal.signal(number, handler)


def test_no_signal_leaves_the_flag_down() -> None:
    with interruptible() as is_interrupted:
        assert not is_interrupted()


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_raises_the_flag_and_the_body_goes_on(number: signal.Signals) -> None:
    with interruptible() as is_interrupted:
        signal.raise_signal(number)
        assert is_interrupted()
        assert is_interrupted()  # asking does not lower it


def test_a_second_ctrl_c_interrupts_at_once() -> None:
    with interruptible() as is_interrupted:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert is_interrupted()


def test_a_second_kill_does_what_it_did_before(polite_kill: list[int]) -> None:
    with interruptible():
        signal.raise_signal(signal.SIGTERM)
        assert polite_kill == []
        signal.raise_signal(signal.SIGTERM)
        assert polite_kill == [signal.SIGTERM]


def test_a_kill_after_ctrl_c_is_still_polite(polite_kill: list[int]) -> None:
    with interruptible():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        assert polite_kill == []


def test_the_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with interruptible():
        assert [signal.getsignal(number) for number in SIGNALS] != before
    assert [signal.getsignal(number) for number in SIGNALS] == before


def fail_after_a_signal() -> None:
    with interruptible():
        signal.raise_signal(signal.SIGINT)
        raise RuntimeError("the loss is not finite")


def test_the_handlers_are_put_back_when_the_body_fails() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(RuntimeError, match="the loss is not finite"):
        fail_after_a_signal()
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_outside_the_main_thread_the_body_runs_without_a_handler() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    seen: list[bool] = []

    def body() -> None:
        with interruptible() as is_interrupted:
            seen.append(is_interrupted())

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [False]
    assert [signal.getsignal(number) for number in SIGNALS] == before
