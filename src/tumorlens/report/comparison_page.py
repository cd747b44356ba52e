"""The page of a comparison: the content of `comparison.json` with figures.

Nothing is measured or tested here: `tumorlens.study.compare` has done that. The page
runs one small script of its own, which sorts the tables; its digest is in the page, and
a browser runs no other. Without it every table is whole, in the order given.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from tumorlens.data.leakage import NO_PATIENTS, SOME_PATIENTS
from tumorlens.data.sets import root_of
from tumorlens.files import write_text
from tumorlens.report.comparison_figures import (
    ArmCurves,
    Bar,
    Point,
    draw_arm_curves,
    draw_bars,
    draw_front,
)
from tumorlens.report.drawing import Drawing, Heading
from tumorlens.report.page import (
    Picture,
    load_picture,
    render_page,
    write_decimal,
    write_megabytes,
    write_percent,
)
from tumorlens.study.comparison import read_comparison
from tumorlens.system import with_home

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from tumorlens.runs.estimate import Estimate
    from tumorlens.study.comparison import ArmLeak, ComparedArm, Comparison

MAX_OPEN_PAIRS = 15
"""A longer list of pairs is folded."""

_FINISHED = "finished"


@dataclass(frozen=True)
class _Shown:
    svg: Markup
    alt: str


def write_comparison_page(
    path_of_comparison_json: Path, *, data: Path | None, out: Path
) -> Path:
    """Write the page of a comparison, and the folder `figures` beside it.

    Args:
        path_of_comparison_json: A file that `tumorlens compare` wrote.
        data: The folder or table that the example's path starts from; `None` if it is
            not known. A picture that is missing is named on the page instead of shown.
        out: The page to write. It links to `comparison.csv`, `.md` and `.tex` in its
            own folder.

    Returns:
        `out`.

    Raises:
        RunError: `comparison.json` is missing, damaged or of another version.
        DataError: The page cannot be written.
    """
    found = read_comparison(path_of_comparison_json)
    files: dict[str, Drawing] = {}
    curves, accuracy = {}, {}
    for protocol in found.protocols:
        if _arm_curves(found, protocol):
            files[f"curves-{protocol}"] = _draw_curves(found, protocol)
            curves[protocol] = [
                _shown(
                    f"curves-{protocol}-{measure}",
                    _draw_curves(found, protocol, measure),
                    f"{measure} over the epochs under {protocol}, a line per arm",
                )
                for measure in ("accuracy", "loss")
            ]
        bars = _accuracy_bars(found, protocol)
        if any(bar.value is not None for bar in bars):
            name = f"accuracy-{protocol}"
            files[name] = _draw_accuracy(found, protocol, bars)
            accuracy[protocol] = _shown(name, files[name], _bars_as_text(bars))
    others = {}
    for name, (drawing, alt) in _draw_others(found).items():
        files[name] = drawing
        others[name] = _shown(name, drawing, alt)
    for name, drawing in files.items():
        drawing.write(out.parent / "figures", name)

    script = _script()
    page = render_page(
        "comparison.html.j2",
        {
            "found": found,
            "headline": found.headline_protocol,
            "protocols": found.protocols,
            "verdicts": _verdicts(found),
            "marks": {name: _leak_mark(found, name) for name in found.protocols},
            "models": list(dict.fromkeys(arm.model for arm in found.arms)),
            "measured_under": {
                name: arms
                for name in found.protocols
                if (arms := found.measured_under(name))
            },
            "has_seeds": any(
                one.num_seeds > 1 for arm in found.arms for one in arm.measures.values()
            ),
            "with_epochs": {
                name
                for arm in found.arms
                for name, one in arm.measures.items()
                if one.has_epochs
            },
            "pairs": {name: found.pairs_under(name) for name in found.protocols},
            "max_open_pairs": MAX_OPEN_PAIRS,
            "curves": curves,
            "accuracy": accuracy,
            "others": others,
            "picture": _picture(found, data),
            "trials": [
                (arm.name, run)
                for arm in found.arms
                for run in arm.runs
                if run.state != _FINISHED or run.reason
            ],
            "settings": {arm.name: _settings(arm) for arm in found.arms},
            "num_trials": sum(len(arm.runs) for arm in found.arms),
            "script": Markup(script),
            "script_digest": _digest(script),
        },
    )
    write_text(out, page)
    return out


def _settings(arm: ComparedArm) -> list[tuple[str, str]]:
    """Return the settings in which an arm differs and that its name does not show."""
    shown = {*arm.name.split(", ")}
    settings = []
    for key, value in arm.settings.items():
        written = "unset" if value is None else value
        if not isinstance(written, str):
            written = json.dumps(value, ensure_ascii=False)
        # Python made some names, and writes True.
        spellings = {written, str(value)}
        if isinstance(value, float):
            spellings.add(f"{value:g}")  # as the names of axes are made
        short = key.partition(".")[2]
        if not shown & {
            one
            for text in spellings
            for one in (text, f"{key}={text}", f"{short}={text}")
        }:
            settings.append((key, written))
    return settings


def _verdicts(found: Comparison) -> list[dict[str, Any]]:
    """Return a verdict per measured protocol, those that leak first."""
    verdicts = [
        {
            "protocol": protocol,
            "leaks": any(leak.is_believable is False for leak in leaks),
            "passed": all(leak.is_believable for leak in leaks),
            "open": _open_question(leaks),
            "sentences": [leak.words for leak in leaks if leak.words],
        }
        for protocol in found.protocols
        if (leaks := found.leaks(protocol))
    ]
    return sorted(verdicts, key=lambda one: not one["leaks"])


def _open_question(leaks: Iterable[ArmLeak]) -> str:
    """Return what is not known if no leak was found and the check has not passed."""
    states = {leak.state for leak in leaks if leak.is_believable is None}
    if not states or states - {NO_PATIENTS, SOME_PATIENTS}:
        return "leaks are not known"
    worst = NO_PATIENTS if NO_PATIENTS in states else SOME_PATIENTS
    return f"copies checked, {worst}"


def _leak_mark(found: Comparison, protocol: str) -> str:
    """Return the first clause of a protocol's leak verdicts; empty without a leak."""
    clauses = dict.fromkeys(
        leak.words.removeprefix("Leak: ").partition(";")[0].rstrip(". ")
        for leak in found.leaks(protocol)
        if leak.is_believable is False
    )
    return f"leaks: {'; '.join(clauses)}" if clauses else ""


def _heading(found: Comparison, title: str, protocol: str = "") -> Heading:
    """Return the heading of a figure; under a protocol that leaks it has a warning."""
    if not protocol:
        return Heading(title, found.title)
    return Heading(title, found.title, _leak_mark(found, protocol))


def _arm_curves(found: Comparison, protocol: str) -> list[ArmCurves]:
    """Return the histories of all arms that have one.

    Trials that did not finish are drawn only if an arm has no others: a mean over seeds
    ends where the shortest of them does.
    """
    arms = []
    for number, arm in enumerate(found.arms):
        runs = [run for run in arm.runs if run.protocol == protocol and run.history]
        finished = [run for run in runs if run.state == _FINISHED]
        if runs:
            arms.append(
                ArmCurves(
                    name=arm.name if finished else f"{arm.name} (unfinished)",
                    number=number,
                    histories=[run.history for run in finished or runs],
                )
            )
    return arms


def _draw_curves(found: Comparison, protocol: str, measure: str = "") -> Drawing:
    arms = _arm_curves(found, protocol)
    num_seeds = max(len(arm.histories) for arm in arms)
    title = f"{measure.capitalize() or 'Accuracy and loss'} over the epochs, {protocol}"
    heading = _heading(found, title, protocol)
    if num_seeds > 1:
        words = f"{heading.subtitle} · means of up to {num_seeds} seeds"
        heading = Heading(heading.title, words, heading.warning)
    measures = (measure,) if measure else ("accuracy", "loss")
    return draw_arm_curves(arms, heading, measures=measures)


def _accuracy_bars(found: Comparison, protocol: str) -> list[Bar]:
    return [
        _bar(
            arm.name,
            arm.measures[protocol].accuracy if protocol in arm.measures else None,
            write_percent,
        )
        for arm in found.arms
    ]


def _bar(
    name: str, estimate: Estimate | None, write: Callable[[float | None], str]
) -> Bar:
    if estimate is None:
        return Bar(name, None, None, None, write(None))
    return Bar(name, estimate.value, estimate.low, estimate.high, write(estimate.value))


def _draw_accuracy(found: Comparison, protocol: str, bars: Sequence[Bar]) -> Drawing:
    return draw_bars(
        bars,
        _heading(found, f"Accuracy on {found.subset}, {protocol}", protocol),
        label=f"accuracy on {found.subset}, with its interval",
        is_fraction=True,
    )


def _draw_others(found: Comparison) -> dict[str, tuple[Drawing, str]]:
    """Return the figures that not every comparison has, each with its text."""
    drawings = {}
    latency = [
        Bar(
            arm.name,
            time.value,
            time.p5,
            time.p95,
            f"{write_decimal(time.value, 2)} ms",
        )
        if (time := arm.latency_ms)
        else Bar(arm.name, None, None, None, write_decimal(None))
        for arm in found.arms
    ]
    if any(bar.value is not None for bar in latency):
        drawings["latency"] = (
            draw_bars(
                latency,
                _heading(found, "Latency"),
                label="ms for one image: median, 5th to 95th percentile",
            ),
            _bars_as_text(latency),
        )
    sizes = [
        Bar(
            arm.name,
            None if arm.size_bytes is None else arm.size_bytes / 1e6,
            None,
            None,
            write_megabytes(arm.size_bytes),
        )
        for arm in found.arms
    ]
    if any(bar.value is not None for bar in sizes):
        drawings["size"] = (
            draw_bars(sizes, _heading(found, "Size of the weights"), label="MB"),
            _bars_as_text(sizes),
        )
    points = [
        point
        for number, arm in enumerate(found.arms)
        if (point := _point(found, number, arm)) is not None
    ]
    if points:
        title = f"Accuracy against latency, {found.headline_protocol}"
        front = ", ".join(point.name for point in points if point.is_on_front)
        drawings["front"] = (
            draw_front(points, _heading(found, title, found.headline_protocol)),
            f"{title}. On the Pareto front: {front}.",
        )
    return drawings


def _point(found: Comparison, number: int, arm: ComparedArm) -> Point | None:
    measures, latency = arm.measures.get(found.headline_protocol), arm.latency_ms
    if measures is None or latency is None:
        return None
    return Point(
        arm.name,
        number,
        latency_ms=(latency.value, latency.p5, latency.p95),
        accuracy=_with_bounds(measures.accuracy),
        is_on_front=arm.name in found.pareto,
    )


def _with_bounds(estimate: Estimate) -> tuple[float, float, float]:
    """Return a value and its bounds; without an interval, the value for each."""
    value, low, high = estimate.value, estimate.low, estimate.high
    assert value is not None
    return value, value if low is None else low, value if high is None else high


def _shown(name: str, drawing: Drawing, alt: str) -> _Shown:
    return _Shown(Markup(drawing.inline(name)), alt)


def _bars_as_text(bars: Sequence[Bar]) -> str:
    """Return the text alternative of a bar chart, for screen readers."""
    return "; ".join(
        f"{bar.name} {bar.text if bar.value is not None else 'not measured'}"
        for bar in bars
    )


def _picture(found: Comparison, data: Path | None) -> Picture | None:
    if found.example is None:
        return None
    path = with_home(found.example.path)
    root = root_of(data) if data else None
    if root is None and path.is_absolute():
        root = Path(path.anchor)
    return load_picture(root, str(path))


def _script() -> str:
    """Return the script that sorts tables, exactly as the page has it."""
    file = resources.files("tumorlens.report") / "templates" / "sort.js"
    return file.read_text(encoding="utf-8")


def _digest(script: str) -> str:
    """Return the digest of a script as a content security policy names it."""
    digest = hashlib.sha256(script.encode("utf-8")).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"
