"""The figures of a model card, made again from the files of its run.

Nothing of the package computes or formats them here: files are read by json, csv and
tomllib, and numbers are written by hand. Sentences of the package that count what a
file holds, such as the leak verdict in words, are taken from it; they have tests of
their own.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
import tomllib
from collections import Counter
from typing import TYPE_CHECKING, Any

import timm
import yaml

from tumorlens.evaluation.map_checks import ExplanationChecks
from tumorlens.runs.external import read_external_metrics
from tumorlens.runs.stress import read_stress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

MEASURES = (
    *("accuracy", "balanced_accuracy", "macro_f1"),
    *("macro_auroc", "log_loss", "brier", "ece"),
)
_ON_IMAGES = (
    *("num_images", "num_groups", "classes", *MEASURES, "per_class"),
    *("confusion_matrix", "by_source", "folds", "interval", "warnings"),
    *("no_interval", "not_measured"),
)
_LEFT_OUT = {
    "copy of": "as copies of another file",
    "conflicting": "as one picture under two labels",
    "unreadable": "as not readable",
}


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def pick(content: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: content[name] for name in names}


def figures_of(tree: Any, place: str = "") -> dict[str, Any]:
    """Return every number and text with a digit, by its place."""
    if isinstance(tree, dict):
        items: Any = tree.items()
    elif isinstance(tree, list | tuple):
        items = enumerate(tree)
    else:
        is_number = isinstance(tree, int | float) and not isinstance(tree, bool)
        has_digit = isinstance(tree, str) and re.search(r"\d", tree)
        return {place: tree} if is_number or has_digit else {}
    found: dict[str, Any] = {}
    for key, value in items:
        # A number can hide in a name, as in a fold's.
        found |= figures_of(value, f"{place}/{key}")
    return found


def expected_card(run: Path) -> dict[str, Any]:
    """Return the parts of `card.json` that have figures, from the files of a run."""
    config = tomllib.loads((run / "config.toml").read_text(encoding="utf-8"))
    folds = sorted(run.glob("folds/*")) or [run]
    metrics, environment = run / "metrics.json", read(run / "environment.json")
    compute = environment.get("compute", {})
    return {
        "networks": {_place(run, one): _network(one) for one in folds},
        "leak": read(run / "leak.json"),
        "split": _split(run),
        "protocol": {
            **pick(config["data"], "val_fraction", "test_fraction", "num_folds"),
            "seed": config["train"]["seed"],
            "looks": _looks(run),
        },
        "training": {
            "epochs": {_place(run, one): len(_history(one)) for one in folds},
            "seconds": {
                _place(run, one): sum(row["seconds"] for row in _history(one))
                for one in folds
            },
            "start": _start(config["model"]["pretrained"]),
            "lr": config["optim"]["lr"],
            "batch_size": config["train"]["batch_size"],
            "label_smoothing": config["train"]["label_smoothing"],
        },
        "machine": {
            **{
                name: environment.get(name)
                for name in ("tumorlens", "commit", "python", "platform", "cpu_count")
            },
            "precision": compute.get("precision"),
            "packages": environment.get("packages", {}),
        },
        "figures": _figures(read(metrics)) if metrics.is_file() else None,
        "trust": {
            _place(run, one): _trust(read(one / "trust.json"))
            for one in folds
            if (one / "trust.json").is_file()
        },
        "external": {
            path.parent.name: _external(path)
            for path in run.glob("external/*/external.json")
        },
        "stress": {path.name: _stress(path) for path in run.glob("stress*.json")},
        "explanations": {
            path.relative_to(run).as_posix(): _explanations(path)
            for path in run.glob("*/checks.json")
        },
        "exports": {
            path.parent.relative_to(run).as_posix(): _export(path)
            for path in run.glob("export/*/parity.json")
        },
        "files": None,
    }


def assert_figures_are_of_files(card: dict[str, Any], run: Path) -> None:
    """Compare every figure of `card.json` with the files of its run, none left out."""
    expected = figures_of(expected_card(run))
    found = figures_of(
        {name: part for name, part in card.items() if name not in _NO_FIGURES}
    )
    assert found == expected
    for name, digest in card["files"].items():
        assert digest == hashlib.sha256((run / name).read_bytes()).hexdigest(), name
    # What is left are sentences, whose figures are those of the leak verdict.
    words = " ".join([card["intended_use"], *card["limits"]])
    known = {"2", *numbers_in(str(expected_card(run)["leak"]["words"]))}
    known |= {f"{n:,}" for n in card["leak"].values() if type(n) is int}
    assert set(numbers_in(words)) <= known


_NO_FIGURES = (
    *("format", "tumorlens", "name", "kind", "model", "classes", "sets"),
    *("intended_use", "limits", "licence", "base_model", "missing", "files"),
)


def numbers_in(text: str) -> list[str]:
    """Return the numbers of a text as they are written, without their signs."""
    return re.findall(r"\d(?:[\d.,:e-]*\d)?", text)


def assert_text_is_of_files(text: str, run: Path) -> None:
    """Compare every number of `card.md`, in its order, with the files of its run."""
    _, head, body = text.split("---\n", 2)
    _assert_head(yaml.safe_load(head), run)
    card = expected_card(run)
    hashes = re.findall(r"^\| (\S+) *\| *([0-9a-f]{64}) \|$", body, re.MULTILINE)
    assert hashes
    for name, digest in hashes:
        assert digest == hashlib.sha256((run / name).read_bytes()).hexdigest(), name
    sections = re.split(r"^## (.*)$", re.sub(r"\\(.)", r"\1", body), flags=re.MULTILINE)
    found = dict(zip(sections[1::2], sections[2::2], strict=True))
    written = {"": sections[0], **found}
    written["Files"] = re.sub(r"^\|.*\|$", "", written["Files"], flags=re.MULTILINE)
    for title, section in written.items():
        expected = [
            one for part in _section(title, card, run) for one in numbers_in(part)
        ]
        assert numbers_in(section) == expected, f"{title}: {expected}"


def _assert_head(head: dict[str, Any], run: Path) -> None:
    """Compare the `model-index`, measure by measure."""
    expected: list[tuple[str, float]] = []
    parts = [read(path) for path in run.glob("metrics.json")]
    others = [read(path) for path in sorted(run.glob("external/*/external.json"))]
    parts += [one["new"] or one["all"] for one in others]
    kinds = [*("accuracy", "balanced_accuracy", "f1", "roc_auc", "log_loss")]
    kinds += ["brier_score", "expected_calibration_error"]
    for part in parts:
        pairs = [(k, part[n]["value"]) for k, n in zip(kinds, MEASURES, strict=True)]
        pairs += [
            ("recall", one["recall"]["value"]) for one in part["per_class"].values()
        ]
        expected += [pair for pair in pairs if pair[1] is not None]
    results = [
        (metric["type"], metric["value"])
        for model in head.get("model-index", [])
        for result in model["results"]
        for metric in result["metrics"]
    ]
    assert results == expected


def _section(title: str, card: dict[str, Any], run: Path) -> Iterator[str]:
    """Return what the numbers of a section come from, in their order."""
    of_title: dict[str, Callable[[dict[str, Any], Path], Iterable[str]]] = {
        "": _first_lines,
        "Intended use": lambda _card, _run: ["2-D"],
        "Limits": _limits,
        "Data": _data,
        "Protocol": _protocol,
        "Networks and training": lambda card, _: _training(card),
        "Figures on test": lambda card, _: _on_test(card),
        "Calibration": lambda card, _: _calibration(card["trust"]),
        "When it answers": lambda card, _: _answers(card),
        "Input gate": lambda card, _: _gates(card["trust"]),
        "Other sets": lambda card, _: _other_sets(card["external"]),
        "Worse images": lambda card, _: _worse(card["stress"]),
        "Explanations": lambda card, _: _maps(card["explanations"]),
        "Exports": lambda card, _: _artefacts(card),
        "Files": lambda _, run: [f"{len(_card_files(run))}", "SHA-256"],
        "Machine and libraries": lambda card, _: _machine(card["machine"]),
        "Licence": _licence,
        "Checklist": lambda _card, _run: ["CLAIM 2024"],
    }
    yield from of_title[title](card, run)


def _first_lines(card: dict[str, Any], run: Path) -> Iterator[str]:
    figures, networks = card["figures"], [*card["networks"].values()]
    config = tomllib.loads((run / "config.toml").read_text(encoding="utf-8"))
    yield f"{run.name} {config['model']['name']}"
    yield f"{len(networks)}" if len(networks) > 1 else ""
    yield f"{card['machine']['tumorlens']} {len(networks[0]['classes'])}"
    if figures:
        yield f"{figures['num_images']:,} {_share(figures['accuracy'])}"
        yield "95 %" if figures["accuracy"]["low"] is not None else ""


def _licence(_card: dict[str, Any], run: Path) -> Iterator[str]:
    model = tomllib.loads((run / "config.toml").read_text(encoding="utf-8"))["model"]
    yield "Apache-2.0"
    if model["pretrained"] in ("auto", "yes"):
        known = timm.get_pretrained_cfg(model["name"])
        yield (known.license or "") if known else ""


def _limits(card: dict[str, Any], _: Path) -> Iterator[str]:
    leak = card["leak"]
    num_unknown = leak["num_test_unknown_patient"]
    if leak["leaks"]:
        yield leak["words"]
    elif num_unknown:
        yield f"{num_unknown:,} of {leak['num_test'] or num_unknown:,}"


def _data(card: dict[str, Any], run: Path) -> Iterator[str]:
    config = tomllib.loads((run / "config.toml").read_text(encoding="utf-8"))
    path = config["data"].get("path", "")
    yield from config["data"].get("names", [str(path).rpartition("/")[2]])
    split = card["split"]
    classes = next(iter(card["networks"].values()))["classes"]
    for name, counts in split["images"].items():
        yield f"{name} {split['groups'][name]:,} {sum(counts.values()):,}"
        yield from (f"{counts.get(label, 0):,}" for label in classes)
    yield from (f"{number:,}" for number in split["left_out"].values())
    yield card["leak"]["words"]


def _protocol(card: dict[str, Any], run: Path) -> Iterator[str]:
    protocol = card["protocol"]
    config = tomllib.loads((run / "config.toml").read_text(encoding="utf-8"))
    val, test = (f"{protocol[f'{name}_fraction']:.0%}" for name in ("val", "test"))
    if "split" not in config["data"]:
        kind = config["data"]["protocol"]
        folds = f"{protocol['num_folds']}"
        yield {"as-given": val, "grouped": f"{test} {val}"}.get(kind, f"{folds} {val}")
    yield f"{protocol['seed']}"
    yield from (f"{number} {name}" for name, number in protocol["looks"].items())


def _training(card: dict[str, Any]) -> Iterator[str]:
    for place, one in card["networks"].items():
        yield f"{place} {one['name']} {one['size_px']} {one['size_px']} {one['epoch']}"
        yield f"{one['temperature']:.3f}"
    found = card["training"]
    yield found["start"]
    yield _time(sum(found["seconds"].values()))
    yield f"{sum(found['epochs'].values())} {found['lr']} {found['batch_size']}"
    yield f"{found['label_smoothing']}"


def _on_test(card: dict[str, Any]) -> Iterator[str]:
    figures = card["figures"]
    if not figures:
        return
    if card["leak"]["leaks"]:
        yield card["leak"]["words"]
    yield "95 %"
    yield from _side_by_side([figures])
    yield figures["interval"]
    yield from figures["warnings"]
    for part in ("no_interval", "not_measured"):
        yield from (f"{name} {why}" for name, why in figures[part].items())
    yield "F1"
    for name, one in figures["per_class"].items():
        yield f"{name} {one['num_images']:,}"
        yield from (_share(one[key]) for key in ("recall", "precision", "specificity"))
        yield _percent(one["f1"])
        yield _decimals(one["auroc"])
    yield from (f"{number:,}" for row in figures["confusion_matrix"] for number in row)
    for name, one in figures["by_source"].items():
        yield f"{name} {one['num_images']:,} {one['num_groups']:,}"
        yield _share(one["accuracy"])
        yield from (_share(one["recall"][label]) for label in figures["classes"])
    for one in figures["folds"]:
        yield f"{one['fold']} {one['num_images']:,} {_percent(one['accuracy'])}"


def _side_by_side(parts: list[dict[str, Any]]) -> Iterator[str]:
    yield from (f"{one['num_images']:,} {one['num_groups']:,}" for one in parts)
    for name in MEASURES:
        values = [one[name] for one in parts]
        if all(value["value"] is None for value in values):
            continue
        if name == "macro_f1":
            yield "F1"
        is_share = name in MEASURES[:3]
        yield from (_share(one) if is_share else _decimals(one) for one in values)


def _calibration(trust: dict[str, Any]) -> Iterator[str]:
    for place, one in trust.items():
        yield f"{place} {one['num_images']:,} {one['num_groups']:,}"
        yield f"{one['temperature']:.3f}"
        for name in ("ece", "log_loss"):
            yield from (_decimals(one[when][name]) for when in ("before", "after"))
    for one in trust["."]["operating_points"].values() if "." in trust else ():
        yield f"{one['threshold']:.3f}"
        yield from (_share(one[name]) for name in ("specificity", "sensitivity"))


def _answers(card: dict[str, Any]) -> Iterator[str]:
    for place, one in card["trust"].items():
        yield f"{place} {one['promise']['words']}"
    found = card["figures"] and card["figures"]["trust"]
    if not found:
        return
    yield f"{100 * found['coverage_wanted']:.0f} %"
    yield _percent(found["error_wanted"])
    yield f"{100 * found['confidence']:.0f} %"
    yield "95 %"
    yield _share(found["answered"]) + _share(found["error_of_answers"])
    yield "80 %" + _share(found["accuracy_of_surest"])
    yield _share(found["coverage"])
    yield from (_share(one) for one in found["coverage_by_class"].values())
    if found["turned_away"]:
        yield _share(found["turned_away"])
    for name, one in found["turned_away_by_source"].items():
        yield f"{name} {_share(one)}"
    yield f"{found['mean_set_size']:.2f}"


def _gates(trust: dict[str, Any]) -> Iterator[str]:
    for place, one in trust.items():
        yield place
        yield from (f"{value:.3f}" for value in one["gate"]["auroc"].values())
        yield _percent(one["gate"]["false_alarms"])


def _other_sets(external: dict[str, Any]) -> Iterator[str]:
    for one in external.values():
        yield f"{one['name']} {one['words']} {one['model']}"
        parts = (one[part] for part in ("new", "seen", "all"))
        yield from _side_by_side([part for part in parts if part])
        yield from one["notes"]


def _worse(stress: dict[str, Any]) -> Iterator[str]:
    for found in stress.values():
        yield f"{found['model']} {found['words']}"
        yield _share(found["clean"])
        yield from _answered(found["clean_trust"])
        for one in found["corruptions"]:
            yield f"{one['title']} {one['level']} {_share(one['accuracy'])}"
            yield _points(one["change"])
            yield f"{one['p_holm']:.3f}" if one["p_holm"] >= 0.0005 else "0.001"
            yield from _answered(one["trust"])


def _answered(trust: dict[str, Any] | None) -> Iterator[str]:
    shares = [trust[name] for name in ("answered", "error", "alarms")] if trust else []
    yield from (_share(one) for one in shares if one)


def _maps(explanations: dict[str, Any]) -> Iterator[str]:
    for one in explanations.values():
        yield f"{one['summary']['num_images']:,}"
        yield from one["words"]


def _artefacts(card: dict[str, Any]) -> Iterator[str]:
    if not card["exports"] and len(card["networks"]) > 1:
        yield "RUN/folds/0"
    for one in card["exports"].values():
        yield f"{one['kind']} {one['precision']} {one['num_images']:,}"
        yield from (_percent(one["accuracy"][name]) for name in ("run", "artefact"))
        yield f"{_points(one['accuracy']['change'])} {one['max_difference']:.1g}"
    yield from (f"{one['kind']} {one['shown']}" for one in card["exports"].values())


def _machine(machine: dict[str, Any]) -> Iterator[str]:
    if machine["platform"]:
        yield f"{machine['platform']} {machine['cpu_count']} {machine['python']}"
        yield f"{machine['precision'] or ''} {machine['commit'] or ''}"
    yield from (version for version in machine["packages"].values() if version)


def _place(run: Path, folder: Path) -> str:
    return folder.relative_to(run).as_posix()


def _network(run: Path) -> dict[str, Any]:
    found = read(run / "model.json")
    names = ("name", "classes", "size_px", "temperature", "epoch", "weights_sha256")
    return pick(found, *names)


def _split(run: Path) -> dict[str, Any]:
    images: dict[str, Counter[str]] = {}
    groups: dict[str, set[str]] = {}
    left_out: Counter[str] = Counter()
    with (run / "split.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["subset"] == "left-out":
                words = [
                    words
                    for start, words in _LEFT_OUT.items()
                    if row["reason"].startswith(start)
                ]
                left_out[(words or ["for other reasons"])[0]] += 1
            else:
                images.setdefault(row["subset"], Counter())[row["label"]] += 1
                groups.setdefault(row["subset"], set()).add(row["group"])
    order = [*("train", "val", "test"), *(f"fold-{number}" for number in range(20))]
    kinds = [*_LEFT_OUT.values(), "for other reasons"]
    return {
        "images": {one: dict(images[one]) for one in order if one in images},
        "groups": {one: len(groups[one]) for one in order if one in groups},
        "left_out": {kind: left_out[kind] for kind in kinds if kind in left_out},
    }


def _start(pretrained: str) -> str:
    if pretrained in ("auto", "yes", "no"):
        return ""
    return f"the weights file {pretrained.rpartition('/')[2]}"


def _looks(run: Path) -> dict[str, int]:
    path = run / "looks.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return dict(Counter(json.loads(line)["subset"] for line in lines))


def _history(run: Path) -> list[dict[str, Any]]:
    lines = (run / "history.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def _figures(metrics: dict[str, Any]) -> dict[str, Any]:
    return pick(metrics, *_ON_IMAGES, "trust")


def _trust(trust: dict[str, Any]) -> dict[str, Any]:
    names = ("num_images", "num_groups", "temperature", "promise")
    return {
        **pick(trust, *names, "operating_points", "gate"),
        **{
            when: pick(trust[when], "log_loss", "brier", "ece")
            for when in ("before", "after")
        },
        "coverage": trust["sets"]["coverage"],
    }


def _external(path: Path) -> dict[str, Any]:
    found = read(path)
    names = ("name", "data", "model", "classes", "unknown_classes", "counts", "notes")
    return {
        **pick(found, *names),
        **{
            part: found[part] and pick(found[part], *_ON_IMAGES)
            for part in ("all", "seen", "new")
        },
        "words": read_external_metrics(path.parent).words,
    }


def _stress(path: Path) -> dict[str, Any]:
    found = read(path)
    corruptions = []
    for one in found["corruptions"]:
        worst = min(one["levels"], key=lambda level: level["change"]["value"])
        figures = pick(worst, "level", "accuracy", "change", "p_holm", "trust")
        corruptions.append({**pick(one, "name", "title"), **figures})
    corruptions.sort(key=lambda one: one["change"]["value"])
    names = ("model", "num_images", "num_groups", "clean", "clean_trust")
    words = read_stress(path).words
    not_measured = found["not_measured"]
    return {
        **pick(found, *names),
        **{"corruptions": corruptions, "not_measured": not_measured, "words": words},
    }


def _explanations(path: Path) -> dict[str, Any]:
    found = read(path)
    names = ("model", "method", "summary", "not_checked")
    words = ExplanationChecks.model_validate(found).sentences()
    return {**pick(found, *names), "words": words}


def _export(path: Path) -> dict[str, Any]:
    found = read(path)
    names = ("kind", "num_images", "max_difference", "accuracy")
    change, limit = found["accuracy"]["change"], 100 * found["bounds"]["max_drop"]
    shown = f"a loss of more than {limit:g} point{'' if limit == 1 else 's'} is "
    if change["low"] is not None and 100 * change["low"] >= -limit:
        shown += "excluded (95 %)"
    else:
        shown += f"not excluded by {found['num_images']:,} image"
        shown += "" if found["num_images"] == 1 else "s"
        if change["low"] is not None:
            shown += f"; up to {-100 * change['low']:.1f} are possible"
    precision = read(path.parent / "model.json")["precision"]
    return {**pick(found, *names), "precision": precision, "shown": shown}


def _card_files(run: Path) -> list[str]:
    card: dict[str, Any] = read(run / "card.json")
    return list(card["files"])


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def _share(found: dict[str, Any]) -> str:
    """Return a share with its bounds, as `82.7 % (80.1 to 85.0)`."""
    bounds = [found[end] for end in ("low", "high") if found[end] is not None]
    return " ".join(map(_percent, [found["value"], *bounds])) + " "


def _decimals(found: dict[str, Any]) -> str:
    values = [found[key] for key in ("value", "low", "high")]
    return " ".join(f"{value:.3f}" for value in values if value is not None)


def _points(change: dict[str, Any]) -> str:
    values = [change[key] for key in ("value", "low", "high")]
    return " ".join(f"{abs(100 * one):.1f}" for one in values if one is not None)


def _time(seconds: float) -> str:
    if seconds < 59.95:
        return f"{seconds:.1f}"
    minutes, rest = divmod(round(seconds), 60)
    return (
        f"{minutes} {rest:02d}"
        if minutes < 60
        else f"{minutes // 60} {minutes % 60:02d}"
    )
