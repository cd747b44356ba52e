"""Claims on trials: on SQLite, and on a real PostgreSQL where one is installed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tumorlens.cluster import units
from tumorlens.errors import ConfigError, RunError
from tumorlens.study import store
from tumorlens.study.plan import StudyPlan
from tumorlens.study.plan_file import load_plan
from tumorlens.study.store import MAX_DEATHS, Store

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.postgres import Postgres

AXES = "[axes]\noptim.lr = [0.1, 0.2, 0.3]\n"
SEARCH = (
    '[search]\ntrials = 4\nsampler = "random"\n[search.ranges]\n'
    "optim.lr = {low = 1e-4, high = 1e-1, log = true}\n"
    "optim.epochs = {low = 2, high = 8, step = 2}\n"
    'optim.name = ["sgd", "adamw"]\n'
    "model.drop_rate = [0.0, 0.5]\n"
)
NAMES = [f"lr={lr}_grouped_seed42" for lr in ("0.1", "0.2", "0.3")]


@pytest.fixture
def plan_of(tmp_path: Path) -> Callable[[str], StudyPlan]:
    def make(text: str) -> StudyPlan:
        (tmp_path / "questions.toml").write_text(text)
        return load_plan(tmp_path / "questions.toml")

    return make


@pytest.fixture
def open_store(tmp_path: Path, plan_of: Callable[[str], StudyPlan]) -> Any:
    def make(text: str = AXES) -> Store:
        return Store(
            plan_of(text), f"sqlite:///{tmp_path / 'store.sqlite'}", place=tmp_path
        )

    return make


def states(store: Store) -> list[str]:
    return [row.state for row in store.rows()]


def test_every_trial_is_taken_once_in_the_order_of_the_plan(open_store: Any) -> None:
    store = open_store()
    store.fill()
    store.fill()
    assert [row.name for row in store.rows()] == NAMES
    taken = [claim for _ in range(3) if (claim := open_store().claim())]
    assert [claim.name for claim in taken] == NAMES
    assert store.claim() is None
    for claim in taken:
        claim.finish(0.5)
    assert states(store) == ["finished"] * 3
    assert store.claim() is None


def test_only_what_matches_is_taken(open_store: Any) -> None:
    store = open_store()
    store.fill()
    claim = store.claim(only="lr=0.2*")
    assert claim is not None
    assert claim.name == NAMES[1]
    assert store.claim(only="lr=0.2*") is None
    claim.finish(None)


def test_two_that_ask_at_once_never_get_the_same_trial(open_store: Any) -> None:
    open_store().fill()
    stores = [open_store() for _ in range(4)]
    taken: list[str] = []

    def take(store: Store) -> None:
        claim = store.claim()
        if claim is not None:
            taken.append(claim.name)
            claim.finish(1.0)

    threads = [threading.Thread(target=take, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == NAMES


def test_a_trial_that_is_given_back_is_taken_again(open_store: Any) -> None:
    store = open_store()
    store.fill()
    store.claim().release()
    assert states(store) == ["waiting"] * 3
    again = [store.claim() for _ in range(3)]
    # The first one again: it was interrupted, and the others have not begun.
    assert [claim.name for claim in again] == NAMES
    for claim in again:
        claim.finish(0.1)
    assert states(store) == ["finished"] * 3


def test_a_failure_is_kept_with_its_reason_until_it_is_tried_again(
    open_store: Any,
) -> None:
    store = open_store()
    store.fill()
    store.claim().fail("the loss is nan")
    row = store.rows()[0]
    assert (row.state, row.reason) == ("failed", "the loss is nan")
    for _ in range(2):
        store.claim().finish(0.5)
    assert store.claim() is None
    assert store.retry_failed() == 1
    assert store.retry_failed() == 0
    assert states(store) == ["waiting", "finished", "finished"]
    store.claim().finish(0.7)
    assert store.rows()[0].reason is None


DYING = """
import os, sys
from pathlib import Path
from tumorlens.study.plan_file import load_plan
from tumorlens.study.store import Store
store = Store(load_plan(Path(sys.argv[1])), sys.argv[2], place=Path("."))
claim = store.claim()
if len(sys.argv) > 3:
    claim.choose()
print(claim.name, os.getpid(), flush=True)
os.kill(os.getpid(), 9)
"""


def die_with_a_trial(plan: Path, url: str, *more: str) -> tuple[str, int]:
    done = subprocess.run(
        [sys.executable, "-c", DYING, str(plan), url, *more],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -9, done.stderr
    name, pid = done.stdout.split()
    return name, int(pid)


def test_the_trial_of_a_killed_worker_is_free_at_once(
    open_store: Any, tmp_path: Path
) -> None:
    store = open_store()
    store.fill()
    url = f"sqlite:///{tmp_path / 'store.sqlite'}"
    name, _ = die_with_a_trial(tmp_path / "questions.toml", url)
    assert name == NAMES[0]
    assert states(store)[0] == "running"
    claims = [store.claim() for _ in range(3)]
    assert sorted(claim.name for claim in claims) == NAMES
    assert store.claim() is None
    for claim in claims:
        claim.finish(0.5)
    assert states(store) == ["finished"] * 3


def test_a_search_goes_on_with_what_it_had_chosen(
    open_store: Any, tmp_path: Path
) -> None:
    store = open_store(SEARCH)
    store.fill()
    url = f"sqlite:///{tmp_path / 'store.sqlite'}"
    die_with_a_trial(tmp_path / "questions.toml", url, "choose")
    before = store.rows()[0].settings
    assert set(before) == {"optim.lr", "optim.epochs", "optim.name", "model.drop_rate"}
    others = [store.claim() for _ in range(4)]
    again = next(claim for claim in others if claim.name == "trial-0001")
    assert again.choose() == before
    for claim in others:
        claim.finish(0.1)


def test_workers_that_keep_dying_on_a_trial_make_it_fail(
    open_store: Any, tmp_path: Path
) -> None:
    store = open_store("[axes]\noptim.lr = [0.1]\n")
    store.fill()
    url = f"sqlite:///{tmp_path / 'store.sqlite'}"
    for _ in range(MAX_DEATHS):
        _, pid = die_with_a_trial(tmp_path / "questions.toml", url)
        assert store.close_dead(pid, reason="killed", is_memory=True)
        assert not store.close_dead(pid, reason="killed", is_memory=True)
    row = store.rows()[0]
    assert (row.state, row.reason) == ("failed", f"killed, {MAX_DEATHS} times")
    assert store.claim() is None


def test_a_death_for_want_of_memory_splits_the_next_batch(
    open_store: Any, tmp_path: Path
) -> None:
    store = open_store("[axes]\noptim.lr = [0.1]\n")
    store.fill()
    url = f"sqlite:///{tmp_path / 'store.sqlite'}"
    _, pid = die_with_a_trial(tmp_path / "questions.toml", url)
    store.close_dead(pid, reason="killed", is_memory=True)
    claim = store.claim()
    assert claim.num_splits == 1
    claim.finish(0.5)


def test_what_a_search_chooses_lies_in_its_ranges(open_store: Any) -> None:
    store = open_store(SEARCH)
    store.fill()
    chosen = []
    while claim := store.claim():
        chosen.append(claim.choose())
        claim.finish(0.5)
    assert len(chosen) == 4
    for settings in chosen:
        assert 1e-4 <= settings["optim.lr"] <= 1e-1
        assert settings["optim.epochs"] in (2, 4, 6, 8)
        assert isinstance(settings["optim.epochs"], int)
        assert settings["optim.name"] in ("sgd", "adamw")
        assert settings["model.drop_rate"] in (0.0, 0.5)
    assert len({repr(settings) for settings in chosen}) > 1
    assert [row.settings for row in store.rows()] == chosen


def draw(store: Store, count: int) -> list[str]:
    """Run trials, and return what was chosen for each."""
    drawn = []
    for _ in range(count):
        claim = store.claim()
        assert claim is not None
        drawn.append(repr(claim.choose()))
        claim.finish(0.5)
    return drawn


WIDE = (
    '[search]\ntrials = {}\nsampler = "{}"\nseed = {}\n[search.ranges]\n'
    "optim.lr = {{low = 1e-6, high = 1.0, log = true}}\n"
    "optim.weight_decay = {{low = 0.0, high = 1.0}}\n"
)


def undisturbed(open_store: Any, tmp_path: Path, text: str, count: int) -> list[str]:
    store = open_store(text)
    store.fill()
    drawn = draw(store, count)
    (tmp_path / "store.sqlite").unlink()
    return drawn


@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc"])
def test_a_search_that_starts_again_draws_what_it_would_have_drawn_undisturbed(
    open_store: Any, tmp_path: Path, sampler: str
) -> None:
    text = WIDE.format(13, sampler, 42)
    expected = undisturbed(open_store, tmp_path, text, 13)
    open_store(text).fill()
    drawn = []
    for count in (1, 2, 8, 2):
        drawn += draw(open_store(text), count)
    assert drawn == expected
    assert len(set(drawn)) == 13


@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc"])
def test_workers_at_once_draw_different_points(open_store: Any, sampler: str) -> None:
    text = WIDE.format(4, sampler, 42)
    open_store(text).fill()
    stores = [open_store(text) for _ in range(4)]
    claims = [store.claim() for store in stores]
    drawn = {repr(claim.choose()) for claim in claims}
    for claim in claims:
        claim.finish(0.5)
    assert len(drawn) == 4


def test_another_seed_draws_other_points(open_store: Any, tmp_path: Path) -> None:
    of_42, of_43 = (
        undisturbed(open_store, tmp_path, WIDE.format(4, "random", seed), 4)
        for seed in (42, 43)
    )
    assert not {*of_42} & {*of_43}


def test_a_grid_visits_every_point_once(open_store: Any) -> None:
    store = open_store(
        '[search]\nsampler = "grid"\n[search.ranges]\noptim.lr = [0.1, 0.2]\n'
        'optim.name = ["sgd", "adamw"]\n'
    )
    store.fill()
    seen = []
    while claim := store.claim():
        seen.append(claim.choose())
        claim.finish(0.5)
    points = {(settings["optim.lr"], settings["optim.name"]) for settings in seen}
    assert len(seen) == len(points) == 4


def test_a_search_for_minutes_ends_when_they_are_used_up(
    open_store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store("[search]\nminutes = 0.001\nranges.optim.lr = [1, 2]\n")
    store.fill()
    first = store.claim()
    assert first.name == "trial-0001"
    threading.Event().wait(0.1)
    first.finish(0.5)
    assert store.is_time_over()
    assert store.claim() is None


def test_the_time_after_a_death_is_not_charged_to_the_minutes_of_a_search(
    open_store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store("[search]\nminutes = 1\nranges.optim.lr = [1, 2]\n")
    store.fill()
    url = f"sqlite:///{tmp_path / 'store.sqlite'}"
    die_with_a_trial(tmp_path / "questions.toml", url)
    monkeypatch.setattr(units, "_now", lambda _: time.time() + 1000)
    assert not store.is_time_over()
    assert store.needs_worker([])
    store.take_back_orphans()
    assert states(store) == ["waiting"]
    assert not store.is_time_over()
    store.claim().finish(0.5)


def test_one_more_worker_is_needed_only_if_it_would_find_a_trial(
    open_store: Any,
) -> None:
    store = open_store()
    store.fill()
    here = os.getpid()
    assert store.needs_worker([1, 2])
    assert not store.needs_worker([1, 2, 3])
    assert not store.needs_worker([1], only="lr=0.2*")
    claims = [store.claim(), store.claim()]
    assert store.needs_worker([here])
    assert not store.needs_worker([here, 1])
    claims.append(store.claim())
    assert not store.needs_worker([])
    for claim in claims:
        claim.finish(0.5)
    assert not store.needs_worker([])


def test_a_pruner_stops_what_is_worse_than_the_others(open_store: Any) -> None:
    store = open_store(
        '[search]\ntrials = 8\nsampler = "random"\npruner = "median"\n'
        "[search.ranges]\noptim.lr = [0.1, 0.2]\n"
    )
    store.fill()
    for number in range(8):
        claim = store.claim()
        claim.choose()
        goes_on = claim.report(0.9 if number < 6 else 0.1, epoch=1)
        if number < 6:
            claim.finish(0.9)
        else:
            assert not goes_on
            claim.prune("worse than the others")
    assert states(store).count("pruned") == 2


def test_another_study_of_the_same_name_is_refused(open_store: Any) -> None:
    open_store()
    with pytest.raises(RunError, match="another study called 'questions'"):
        open_store("[axes]\noptim.lr = [0.5]\n")


def test_a_study_that_must_exist_is_not_made(
    plan_of: Callable[[str], StudyPlan], open_store: Any, tmp_path: Path
) -> None:
    plan = plan_of(AXES)
    none, empty = tmp_path / "none" / "x.sqlite", tmp_path / "empty.sqlite"
    empty.touch()
    for file in (none, empty):
        with pytest.raises(RunError, match=f"{file.name} holds no such study"):
            Store(plan, f"sqlite:///{file}", place=tmp_path, must_exist=True)
    assert not none.parent.exists()
    assert empty.read_bytes() == b""
    open_store()
    url = f"sqlite:///{tmp_path / 'store.sqlite'}"
    assert Store(plan, url, place=tmp_path, must_exist=True).rows() == []
    other = plan.model_copy(update={"name": "other"})
    with pytest.raises(RunError, match="holds no such study as 'other'"):
        Store(other, url, place=tmp_path, must_exist=True)


@pytest.mark.parametrize("url", ["mysql://a@b/c", "somewhere", "http://x"])
def test_a_database_of_another_kind_is_refused(
    plan_of: Callable[[str], StudyPlan], tmp_path: Path, url: str
) -> None:
    with pytest.raises(ConfigError, match=f"got '{url}'"):
        Store(plan_of(AXES), url, place=tmp_path)


def test_a_server_out_of_reach_is_named_without_its_password(
    plan_of: Callable[[str], StudyPlan], tmp_path: Path
) -> None:
    with pytest.raises(RunError) as caught:
        Store(plan_of(AXES), "postgresql://me:secret@127.0.0.1:1/x", place=tmp_path)
    assert "postgresql://me@127.0.0.1:1/x cannot be used" in caught.value.problem
    assert "secret" not in str(caught.value)


def test_a_file_that_is_no_database_is_named(
    plan_of: Callable[[str], StudyPlan], tmp_path: Path
) -> None:
    (tmp_path / "x.sqlite").write_text("nothing of the kind, and long enough" * 100)
    with pytest.raises(RunError, match=r"x\.sqlite cannot be used"):
        Store(plan_of(AXES), f"sqlite:///{tmp_path / 'x.sqlite'}", place=tmp_path)


SHARING = """
import sys, time
from pathlib import Path
from tumorlens.study.plan_file import load_plan
from tumorlens.study.store import Store
store = Store(load_plan(Path(sys.argv[1])), sys.argv[2], place=Path("."))
store.fill()
while claim := store.claim():
    print(claim.name, flush=True)
    time.sleep(0.3)
    claim.finish(0.5)
    print("done", claim.name, flush=True)
"""


def test_two_processes_share_a_study_in_postgresql_and_one_is_killed(
    postgres: Postgres, tmp_path: Path
) -> None:
    plan = tmp_path / "shared.toml"
    plan.write_text("[axes]\noptim.lr = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]\n")
    url = postgres.url
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", SHARING, str(plan), url],
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    victim, survivor = workers
    assert victim.stdout is not None
    first = victim.stdout.readline().split()[-1]
    victim.kill()
    rest, _ = victim.communicate()
    assert f"done {first}" not in rest
    output, _ = survivor.communicate(timeout=60)
    assert survivor.returncode == 0
    finished = [line.split()[1] for line in output.splitlines() if line[:4] == "done"]
    # Nothing lost, nothing twice; what the dead one had was taken over.
    assert sorted(finished) == [f"lr=0.{n}_grouped_seed42" for n in range(1, 9)]
    store = Store(load_plan(plan), url, place=tmp_path)
    assert states(store) == ["finished"] * 8
    assert {row.value for row in store.rows()} == {0.5}


def test_a_worker_of_another_machine_that_is_silent_is_given_up(
    postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = tmp_path / "far.toml"
    plan.write_text("[axes]\noptim.lr = [0.1]\n")
    monkeypatch.setattr(store, "RENEW_S", 1)
    monkeypatch.setattr(store, "LEASE_S", 2)
    monkeypatch.setattr(units, "machine_identity", lambda: "far away")
    far = Store(load_plan(plan), postgres.url, place=tmp_path)
    far.fill()
    claim = far.claim()
    assert claim is not None
    monkeypatch.setattr(units, "machine_identity", lambda: "here")
    here = Store(load_plan(plan), postgres.url, place=tmp_path)
    threading.Event().wait(3)
    assert here.claim() is None, "it is alive: its lease is renewed"
    claim._lease._stop()
    threading.Event().wait(3)
    taken = here.claim()
    assert taken is not None
    taken.finish(0.5)
    claim.finish(0.9)  # too late: the other one's result stands
    assert here.rows()[0].value == 0.5
