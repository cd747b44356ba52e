"""Write the JSON Schema of every JSON file that one stage writes and another reads.

    python docs/make_schemas.py FOLDER

Run by `make docs`; a test compares the committed schemas with what this writes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pydantic import BaseModel

from tumorlens.data.audit import Audit
from tumorlens.data.claim import ClaimCheck
from tumorlens.data.leakage import LeakVerdict
from tumorlens.deploy.artefact import Manifest, Parity
from tumorlens.deploy.benchmark.results import Benchmark
from tumorlens.evaluation.map_checks import ExplanationChecks
from tumorlens.evaluation.review_file import Review
from tumorlens.report.card import Card
from tumorlens.runs.external import ExternalMetrics
from tumorlens.runs.folder import ModelCard
from tumorlens.runs.measures import Metrics, TtaEffect
from tumorlens.runs.stress import Stress
from tumorlens.runs.trust import Trust
from tumorlens.study.comparison import Comparison
from tumorlens.study.external_comparison import ExternalComparison

MODELS: dict[str, type[BaseModel]] = {
    "audit.json": Audit,
    "benchmark.json": Benchmark,
    "card.json": Card,
    "checks.json": ExplanationChecks,
    "claim.json": ClaimCheck,
    "comparison.json": Comparison,
    "external-comparison.json": ExternalComparison,
    "external.json": ExternalMetrics,
    "leak.json": LeakVerdict,
    "manifest.json": Manifest,
    "metrics.json": Metrics,
    "model.json": ModelCard,
    "parity.json": Parity,
    "review.json": Review,
    "stress.json": Stress,
    "trust.json": Trust,
    "tta.json": TtaEffect,
}
"""File name -> model. `tta/val.json` and `tta/test.json` have one model."""


def schema_of(name: str) -> str:
    """Return the schema of a file, as JSON text."""
    schema = MODELS[name].model_json_schema(by_alias=True, mode="serialization")
    schema["title"] = name
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(exist_ok=True)
    for file_name in MODELS:
        path = folder / file_name.replace(".json", ".schema.json")
        path.write_text(schema_of(file_name), encoding="utf-8")
