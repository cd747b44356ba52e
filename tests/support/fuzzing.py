"""Files with random faults: nothing may leave a stage but a `TumorlensError`.

    PYTHONPATH=tests python -m support.fuzzing --cases 10000 --out docs/fuzz.md

The cases of a kind run in a process of their own with limits on memory and processor
time. The parent waits a limited time for each case: one that hangs, or that takes the
process with it, is counted, and the next process goes on behind it. A case follows from
seed, kind and number alone, and `--kind png --case 17` repeats it here, with its
traceback.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import random
import resource
import selectors
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from support.fuzz_inputs import subjects
from tumorlens.errors import TumorlensError
from tumorlens.files import write_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.fuzz_inputs import Subject

SEED = 42
LIMIT_S = 60
"""Seconds that a case may take by the clock, on a busy machine too."""
MEMORY_BYTES = 3 << 30
"""Address space that a process may add to what it has after its imports."""
MAX_GROWTH_MB = 100
"""Memory that a process may have gained between its first and its last cases."""
SHOW_EVERY = 8
"""Number of files that are read in spite of their fault to one that gets its page."""

_WEIGHTS = {"jpeg": 12, "png": 12, "tiff": 14, "bmp": 8, "dicom": 14, "csv": 6}
"""Share of the cases of a kind; 3 for all others."""

_ODD_VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 9, 9.5, 1e308, -1e308, 10**30, float("nan"), float("inf")),
    *("", "x", "../../x", "<script>x</script>", "\x00\x1b[2J", "é" * 3000),
    *([], {}, [[]], {"x": 1}, [None], [1, 2, 3]),
)
_ODD_BYTES = (b"\x00", b"\xff", b"\x7f", b"\x80", b"\r", b'"', b"{", b"\xef\xbb\xbf")
_ODD_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 2**31 - 1, 2**32 - 1)


def spoil_bytes(content: bytes, rng: random.Random) -> bytes:
    """Return content with one to eight faults: bits, numbers, cuts, copies."""
    spoilt = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 8])):
        if not spoilt:
            break
        # Half of the faults are where most formats have their header.
        end = len(spoilt) if rng.random() < 0.5 else min(len(spoilt), 600)
        place = rng.randrange(end)
        match rng.randrange(8):
            case 0:
                spoilt[place] ^= 1 << rng.randrange(8)
            case 1:
                spoilt[place : place + 1] = rng.choice(_ODD_BYTES)
            case 2 | 3:
                size = rng.choice([1, 2, 4])
                number = rng.choice(_ODD_NUMBERS) % 256**size
                order: Any = rng.choice(["little", "big"])
                spoilt[place : place + size] = number.to_bytes(size, order)
            case 4:
                del spoilt[place:]
            case 5:
                del spoilt[place : place + rng.choice([1, 2, 4, 64])]
            case 6:
                spoilt[place:place] = rng.randbytes(rng.choice([1, 2, 4, 64]))
            case _:
                start = rng.randrange(len(spoilt))
                spoilt[place:place] = spoilt[start : start + rng.choice([4, 64, 512])]
    return bytes(spoilt)


def spoil_fields(content: bytes, rng: random.Random) -> bytes:
    """Return a JSON file with one or two fields changed, removed or added."""
    whole = {"": json.loads(content)}
    for _ in range(rng.choice([1, 1, 2])):
        places = list(_places(whole))
        if not places:
            break
        parent, key = rng.choice(places)
        match rng.randrange(4):
            case 0 if key != "":
                del parent[key]
            case 1 if isinstance(parent, list):
                parent.insert(key, copy.deepcopy(parent[key]))
            case 1 if key != "":
                parent[rng.choice(["x", "", "0"])] = parent[key]
            case _:
                parent[key] = copy.deepcopy(rng.choice(_ODD_VALUES))
    return json.dumps(whole[""]).encode()


def _places(node: Any) -> Iterator[tuple[Any, Any]]:
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in list(items):
        yield node, key
        if isinstance(value, dict | list):
            yield from _places(value)


def run_case(kind: str, subject: Subject, number: int, folder: Path) -> str:
    """Spoil one file and read it.

    Returns:
        "read" or "refused".

    Raises:
        Exception: Anything that is no `TumorlensError`: a fault.
    """
    rng = random.Random(f"{SEED} {kind} {number}")
    name = rng.choice(sorted(subject.samples))
    content = subject.samples[name]
    by_field = subject.is_json and rng.random() < 0.75
    spoilt = (spoil_fields if by_field else spoil_bytes)(content, rng)
    if subject.repair is not None and rng.random() < 0.75:
        spoilt = subject.repair(spoilt)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    path = folder / name
    path.write_bytes(spoilt)
    try:
        subject.read(path)
        if subject.show is not None and number % SHOW_EVERY == 0:
            subject.show(path)
    except TumorlensError as error:
        return "refused" if error.problem else "fault"
    return "read"


@dataclass
class Outcome:
    """What the cases of a kind came to."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    slowest_s: float = 0.0
    growth_mb: float = 0.0

    @property
    def is_good(self) -> bool:
        """Whether nothing was found."""
        return not self.faults and self.growth_mb <= MAX_GROWTH_MB


def fuzz(kind: str, num_cases: int) -> Outcome:
    """Run cases 0 to `num_cases` of a kind, in processes with limits."""
    outcome, number = Outcome(), 0
    while number < num_cases:
        number = _fuzz_from(kind, number, num_cases, outcome)
    return outcome


def _fuzz_from(kind: str, start: int, end: int, outcome: Outcome) -> int:
    """Run cases until the process ends; return the number of the next case."""
    words = [sys.executable, "-m", "support.fuzzing", "--kind", kind]
    process = subprocess.Popen(
        [*words, "--child", str(start), str(end)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    number, limit_s = start, 120.0  # the imports and samples come first
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while selector.select(limit_s):
            line = process.stdout.readline()
            if not line:
                break
            report = json.loads(line)
            limit_s = LIMIT_S
            if "growth_mb" in report:
                outcome.growth_mb = max(outcome.growth_mb, report["growth_mb"])
                continue
            if "ready" in report:
                continue
            number = report["number"] + 1
            outcome.counts[report["result"]] += 1
            outcome.slowest_s = max(outcome.slowest_s, report["seconds"])
            if report["result"] == "fault":
                outcome.faults.append(f"{kind} {report['number']}: {report['why']}")
        else:
            process.kill()
    status = process.wait()
    process.stdout.close()
    if number < end:
        outcome.counts["fault"] += 1
        why = "took too long" if status == -9 else f"ended the process ({status})"
        outcome.faults.append(f"{kind} {number}: {why}")
        number += 1
    return number


def _child(kind: str, start: int, end: int) -> None:
    """Run cases here and report each on standard output."""
    # Libraries in C write there too.
    reports = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        samples = folder / "samples"
        samples.mkdir()
        subject = subjects(samples)[kind]
        _limit_memory()
        print(json.dumps({"ready": True}), file=reports, flush=True)
        before_mb = None
        for number in range(start, end):
            began = time.process_time()
            report: dict[str, Any] = {"number": number}
            try:
                report["result"] = run_case(kind, subject, number, folder / "case")
            except Exception as error:  # whatever a stage lets through is the finding
                place = traceback.extract_tb(error.__traceback__)[-1]
                why = " ".join(f"{type(error).__name__}: {error}".split())[:160]
                where = f"{Path(place.filename).name}:{place.lineno}"
                report |= {"result": "fault", "why": f"{why} ({where})"}
            report["seconds"] = time.process_time() - began
            print(json.dumps(report), file=reports, flush=True)
            if number == start + min(50, (end - start) // 2):
                before_mb = _resident_mb()
        if before_mb is not None:
            growth = {"growth_mb": _resident_mb() - before_mb}
            print(json.dumps(growth), file=reports, flush=True)


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def cases_of(kinds: list[str], num_cases: int) -> dict[str, int]:
    """Return how many cases each kind gets; at least `num_cases` in all."""
    weights = {kind: _WEIGHTS.get(kind, 3) for kind in kinds}
    whole = sum(weights.values())
    return {kind: -(-num_cases * weight // whole) for kind, weight in weights.items()}


def _as_page(outcomes: dict[str, Outcome], seconds: float) -> str:
    rows = [
        f"| {kind} | {one.counts.total():,} | {one.counts['read']:,} | "
        f"{one.counts['refused']:,} | {one.counts['fault']:,} | {one.slowest_s:.1f} | "
        f"{one.growth_mb:.0f} |"
        for kind, one in outcomes.items()
    ]
    total = sum(one.counts.total() for one in outcomes.values())
    faults = [f"- `{fault}`" for one in outcomes.values() for fault in one.faults]
    about = (
        "Every file that a user hands over may be damaged, or made to do harm. `make "
        "fuzz` spoils good files at random (bits, numbers, cuts, copied parts; in JSON "
        "files also fields) and calls the stages that read them, in processes with "
        f"limits: {MEMORY_BYTES >> 30} GiB of further memory, {LIMIT_S} s for a case. "
        "A case is *read* where the fault does no harm, and *refused* where the stage "
        "ends in one error line. Anything else is a *fault*: a traceback, a crash, a "
        f"case that takes too long, or a process that grows by more than "
        f"{MAX_GROWTH_MB} MB from case to case."
    )
    when = (
        f"{total:,} cases with seed {SEED} took {seconds / 60:.0f} minutes with Python "
        f"{platform.python_version()} on {platform.machine()}:"
    )
    lines = [
        "# Damaged files",
        "",
        about,
        "",
        "    make fuzz                      # writes this page",
        "    PYTHONPATH=tests python -m support.fuzzing --kind png --case 17",
        "",
        when,
        "",
        "| kind | cases | read | refused | faults | slowest, CPU s | growth, MB |",
        "|---|--:|--:|--:|--:|--:|--:|",
        *rows,
        "",
        *(["Faults:", "", *faults] if faults else ["No fault was found."]),
        "",
        "A short slice of the same cases is part of `make test`.",
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run what the command line names; return 1 where a fault was found."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--kind", nargs="*", help="only these kinds")
    parser.add_argument("--case", type=int, help="one case of one kind, here")
    parser.add_argument("--out", type=Path, help="page to write")
    parser.add_argument("--child", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        warnings.simplefilter("ignore")
        _child(options.kind[0], *options.child)
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "samples").mkdir()
        known = subjects(folder / "samples")
        if options.case is not None:
            [kind] = options.kind
            print(run_case(kind, known[kind], options.case, folder / "case"))
            return 0
    began = time.monotonic()
    outcomes = {}
    for kind, num_cases in cases_of(options.kind or [*known], options.cases).items():
        outcomes[kind] = fuzz(kind, num_cases)
        print(kind, dict(outcomes[kind].counts), *outcomes[kind].faults, sep="\n  ")
    page = _as_page(outcomes, time.monotonic() - began)
    print(page)
    if options.out:
        write_text(options.out, page)
    return int(not all(one.is_good for one in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
