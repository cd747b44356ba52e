"""Fixtures of the doctests in the package. Not part of what is installed."""

from __future__ import annotations

from typing import Any

import pytest

import tumorlens
from support.public_examples import folder_of_examples

__all__ = ["folder_of_examples"]


@pytest.fixture(autouse=True)
def _public_examples(
    request: pytest.FixtureRequest,
    doctest_namespace: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Run the examples of the public functions in the folder that they speak of."""
    name = request.node.name
    is_public = name.startswith("tumorlens.") and name.count(".") == 1
    if isinstance(request.node, pytest.DoctestItem) and is_public:
        monkeypatch.chdir(request.getfixturevalue("folder_of_examples"))
        doctest_namespace["tumorlens"] = tumorlens
