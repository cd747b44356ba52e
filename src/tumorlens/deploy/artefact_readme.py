"""README.md of an artefact: how to use it where there is no tumorlens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jinja2

if TYPE_CHECKING:
    from tumorlens.deploy.artefact import ArtefactCard, Parity


def readme_of(card: ArtefactCard, parity: Parity, *, has_seen: bool = False) -> str:
    """Return the text of README.md for a card and its verdict.

    Args:
        card: `model.json`.
        parity: The verdict.
        has_seen: Whether the artefact tells what its training has seen.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tumorlens.deploy"),
        autoescape=False,  # Markdown
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    runtime = card.kind.removesuffix("-int8").removesuffix("-bf16")
    template = environment.get_template("artefact.md.j2")
    return template.render(card=card, parity=parity, runtime=runtime, has_seen=has_seen)
