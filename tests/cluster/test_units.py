"""Units of work under leases, on SQLite and on a real PostgreSQL if there is one."""

from __future__ import annotations

import socket
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy
from sqlalchemy.exc import OperationalError

from tumorlens.cluster import units as module
from tumorlens.cluster.units import (
    FORMAT,
    Lease,
    LeaseLostError,
    StoreError,
    Units,
    has_job,
    machine_identity,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

NAMES = ("first", "second", "third")


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'store.sqlite'}"


@pytest.fixture(params=["sqlite", "postgresql"])
def any_url(request: pytest.FixtureRequest, url: str) -> Iterator[str]:
    if request.param == "sqlite":
        yield url
        return
    server = request.getfixturevalue("postgres").url
    yield server
    engine = sqlalchemy.create_engine(server.replace("://", "+pg8000://"))
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE tumorlens_units, tumorlens_jobs")
    engine.dispose()


def filled(url: str, *names: str, **options: Any) -> Units:
    units = Units(url, "job", **options)
    units.enter("print")
    units.add((name, {"of": name}) for name in names or NAMES)
    return units


def claimed(units: Units) -> Lease:
    lease = units.claim()
    assert lease is not None
    return lease


def on_machine(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "machine_identity", lambda: name)


def test_units_are_claimed_in_the_order_in_which_they_were_added(any_url: str) -> None:
    units = filled(any_url)
    units.add([("first", {"of": "another"}), ("fourth", {})])
    leases = [claimed(units) for _ in range(4)]
    assert [lease.unit.name for lease in leases] == [*NAMES, "fourth"]
    assert leases[0].unit.payload == {"of": "first"}
    assert units.claim() is None
    for number, lease in enumerate(leases):
        lease.finish({"number": number})
    assert [unit.result for unit in units.all()] == [{"number": n} for n in range(4)]
    assert {unit.state for unit in units.all()} == {"finished"}


def test_no_unit_is_claimed_twice_by_many_at_once(any_url: str) -> None:
    names = [f"unit-{number}" for number in range(24)]
    filled(any_url, *names)
    taken: list[str] = []

    def take_all() -> None:
        units = Units(any_url, "job")
        while lease := units.claim():
            taken.append(lease.unit.name)
            lease.finish(None)

    threads = [threading.Thread(target=take_all) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == sorted(names)


def test_jobs_in_one_database_do_not_see_each_other(any_url: str) -> None:
    filled(any_url)
    other = Units(any_url, "other job")
    assert other.enter("another print") == "another print"
    assert other.enter("a third") == "another print"
    assert other.all() == []
    assert other.claim() is None
    assert has_job(any_url, "job")
    assert not has_job(any_url, "nothing of the kind")


def test_an_expired_lease_of_a_live_process_of_this_machine_is_not_taken_over(
    any_url: str,
) -> None:
    units = filled(any_url, "only", lease_s=0.1, renew_s=1000)
    lease = claimed(units)
    time.sleep(0.3)
    assert units.claim() is None
    lease.finish("mine")
    assert units.all()[0].result == "mine"


def test_an_expired_lease_of_another_machine_is_taken_over_and_the_first_is_told(
    any_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_machine("far", monkeypatch)
    lease = claimed(filled(any_url, "only", lease_s=3, renew_s=5))
    on_machine("here", monkeypatch)
    units = Units(any_url, "job", renew_s=1000)
    assert units.claim() is None
    time.sleep(3)
    taken = claimed(units)
    assert taken.unit.attempt == lease.unit.attempt + 1
    time.sleep(3)
    with pytest.raises(LeaseLostError, match="only"):
        lease.check()
    with pytest.raises(LeaseLostError, match="only"):
        lease.note(progress=1)
    lease.finish("too late")
    assert units.all()[0].state == "running"
    taken.finish("in time")
    assert units.all()[0].result == "in time"


def test_a_renewed_lease_of_another_machine_is_not_taken_over(
    any_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_machine("far", monkeypatch)
    lease = claimed(filled(any_url, "only", lease_s=2, renew_s=0.2))
    on_machine("here", monkeypatch)
    time.sleep(3)
    assert Units(any_url, "job").claim() is None
    lease.finish(None)


def test_a_dead_process_of_another_machine_with_the_same_host_name_is_not_known_here(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_machine("far", monkeypatch)
    units = filled(url, "only")
    lease = claimed(units)
    units.change(lease.unit, pid=2**22 + 1, process_start=0.0)
    assert units.all()[0].is_orphan()
    on_machine("here", monkeypatch)
    assert not units.all()[0].is_orphan()
    assert units.claim() is None
    lease.finish(None)


def test_a_machine_is_told_apart_by_more_than_its_host_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = machine_identity()
    identify = machine_identity.__wrapped__
    monkeypatch.setattr(socket, "gethostname", lambda: "debian")
    assert identify() == here
    read = Path.readlink
    monkeypatch.setattr(
        Path,
        "readlink",
        lambda path: Path("pid:[1]") if "ns/pid" in str(path) else read(path),
    )
    assert identify() != here


def test_notes_and_time_outlive_an_attempt(any_url: str) -> None:
    units = filled(any_url, "only")
    lease = claimed(units)
    lease.note(epoch=1)
    lease.note(loss=0.5)
    time.sleep(0.1)
    lease.release()
    (unit,) = units.all()
    assert (unit.state, unit.attempt, unit.place) == ("waiting", 1, None)
    assert unit.seconds is None
    assert 0.1 <= unit.earlier_s < 10
    again = claimed(units)
    assert again.notes == {"epoch": 1, "loss": 0.5}
    again.fail("no more")
    (unit,) = units.all()
    assert (unit.state, unit.reason) == ("failed", "no more")
    assert units.claim() is None
    assert units.reopen_failed(keep_notes=lambda name: name == "loss") == 1
    assert units.reopen_failed(keep_notes=lambda _: True) == 0
    (unit,) = units.all()
    assert (unit.state, unit.reason, unit.notes) == ("waiting", None, {"loss": 0.5})


def test_the_time_of_a_dead_owner_counts_until_its_lease_at_most(
    any_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_machine("far", monkeypatch)
    lease = claimed(filled(any_url, "only", lease_s=0.2, renew_s=1000))
    lease._stop()
    on_machine("here", monkeypatch)
    time.sleep(1)
    claimed(Units(any_url, "job")).finish(None)
    assert Units(any_url, "job").all()[0].earlier_s == pytest.approx(0.2, abs=0.01)


def break_database(units: Units, *, times: int) -> list[None]:
    """Make so many connections fail; return a list that grows with each of them."""
    failed: list[None] = []
    engine = units._engine

    class Broken:
        def connect(self) -> Any:
            if len(failed) >= times:
                return engine.connect()
            failed.append(None)
            raise OperationalError("select", {}, Exception("server is away"))

    vars(units)["_engine"] = Broken()
    return failed


def test_a_database_that_is_away_for_a_moment_loses_no_result(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_RETRY_S", 0.01)
    units = filled(url, "only", renew_s=1000)
    lease = claimed(units)
    failed = break_database(units, times=3)
    lease.finish("kept")
    assert len(failed) == 3
    assert units.all()[0].result == "kept"


def test_a_database_that_stays_away_is_an_error_in_the_end(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_RETRY_S", 0.01)
    monkeypatch.setattr(module, "_PATIENCE_S", 0.1)
    units = filled(url, "only", renew_s=1000)
    lease = claimed(units)
    failed = break_database(units, times=10**6)
    with pytest.raises(
        StoreError, match=r"store\.sqlite cannot be used: server is away"
    ):
        lease.finish("lost")
    assert len(failed) > 3


def test_work_goes_on_while_renewals_fail_and_the_log_says_so_once(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    units = filled(url, "only", lease_s=0.2, renew_s=0.05)
    lease = claimed(units)
    failed = break_database(units, times=10)
    while len(failed) < 10:
        time.sleep(0.05)
    time.sleep(0.2)
    lease.check()
    said = capsys.readouterr().err
    assert said.count("only: not renewed for 0.2 s, the work goes on") == 1
    assert "server is away" in said
    lease.finish("kept")
    assert units.all()[0].result == "kept"


def test_a_fault_of_ours_in_a_renewal_reaches_the_thread_that_works(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    units = filled(url, "only", renew_s=0.05)
    lease = claimed(units)

    def faulty(_: Any) -> bool:
        raise ZeroDivisionError("no such thing")

    monkeypatch.setattr(units, "renew", faulty)
    time.sleep(0.3)
    with pytest.raises(ZeroDivisionError, match="no such thing"):
        lease.check()
    lease.release()


def test_a_store_of_the_layout_of_earlier_versions_is_refused_and_left_alone(
    tmp_path: Path, url: str
) -> None:
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    optuna.create_study(study_name="job", storage=url)
    before = (tmp_path / "store.sqlite").read_bytes()
    for opens in (lambda: Units(url, "job"), lambda: has_job(url, "job")):
        with pytest.raises(
            StoreError, match=r"store\.sqlite was made by an earlier version"
        ) as caught:
            opens()
        assert "original TOML file with another --out" in caught.value.hint
    assert (tmp_path / "store.sqlite").read_bytes() == before


def test_a_store_of_another_format_is_refused(url: str) -> None:
    units = filled(url)
    with units._engine.begin() as connection:
        connection.execute(sqlalchemy.update(module._JOBS).values(format=FORMAT + 1))
    for opens in (lambda: Units(url, "job"), lambda: has_job(url, "job")):
        with pytest.raises(
            StoreError, match=f"expected format {FORMAT} in .*, got {FORMAT + 1}"
        ):
            opens()


def test_only_the_first_of_two_may_take_a_dead_owner_s_unit_back(url: str) -> None:
    units = filled(url, "only")
    lease = claimed(units)
    unit = lease.unit
    lease._stop()
    assert units.take_back(unit, notes={"deaths": 1})
    assert not units.take_back(unit, notes={"deaths": 2})
    assert units.all()[0].notes == {"deaths": 1}
    again = claimed(units)
    assert not units.change(unit, reason="of an earlier attempt")
    assert units.change(replace(unit, attempt=2), reason="of this one")
    again.finish(None)
