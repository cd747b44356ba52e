"""Every config that is shipped can be used as it stands."""

from __future__ import annotations

from pathlib import Path

import pytest

from tumorlens.config import dump_config, load_config

REPOSITORY = Path(__file__).parents[2]
CONFIGS = sorted(REPOSITORY.glob("configs/*.toml"))

each_config = pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)


def test_there_are_configs() -> None:
    assert "demo.toml" in [path.name for path in CONFIGS]


@each_config
def test_it_loads_and_survives_being_written_in_full(
    path: Path, tmp_path: Path
) -> None:
    config = load_config(path)
    (tmp_path / "full.toml").write_text(dump_config(config), encoding="utf-8")
    assert load_config(tmp_path / "full.toml") == config


@each_config
def test_it_names_no_folder_of_somebody(path: Path) -> None:
    data = load_config(path).data
    assert (data.path, data.metadata, data.split, data.cache_dir) == (None,) * 4


@each_config
def test_it_starts_with_what_it_is_for_and_its_command(path: Path) -> None:
    comment = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        comment.append(line.lstrip("# "))
    assert len(comment) >= 2
    assert any(
        line.startswith(f"tumorlens train configs/{path.name} ") for line in comment
    )
