"""The configs that the package contains, by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlsys.config import bundled
from rlsys.config.run import ConfigError, load, load_services
from tests.support.paths import CONFIGS


def test_every_config_of_the_repository_is_bundled() -> None:
    assert bundled.names() == tuple(sorted(file.name for file in CONFIGS.glob("*.yaml")))


@pytest.mark.parametrize("name", bundled.names())
def test_every_bundled_config_loads(name: str) -> None:
    read = load_services if name.startswith("judge_") else load
    assert read(Path(name))


@pytest.mark.parametrize("path", ["demo", "demo.yaml", "configs/demo.yaml", "./demo.yaml"])
def test_a_bundled_config_is_found_from_an_empty_folder(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load(Path(path)).tracking.experiment == "rlsys-demo"


def test_a_file_at_the_path_takes_precedence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo.yaml").write_text("output_dir: mine\nmodel: {path: m}\n")
    assert load(Path("demo.yaml")).output_dir == Path("mine")


@pytest.mark.parametrize("path", ["my/demo.yaml", "dmo.yaml", "../configs/demo.yaml", "judge"])
def test_a_missing_path_lists_the_bundled_configs(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"no such config file.*charades_sta\.yaml, demo\.yaml"):
        load(Path(path))
