"""The set-up step's decisions, and what the locks promise."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.support.paths import REPO as ROOT

INSTALL = ROOT / "cluster" / "install"
LEFT_OUT = {"torchaudio", "torchcodec", "triton", "sentence-transformers"}


@pytest.fixture(scope="module")
def setup() -> ModuleType:
    """`cluster/install/setup.py`, which is a script and in no package."""
    spec = importlib.util.spec_from_file_location("install_setup", INSTALL / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_an_old_python_is_told_what_to_do(setup: ModuleType) -> None:
    setup.check_python((3, 11), "python3")
    with pytest.raises(setup.SetupError, match=r"is Python 3\.9; 3\.11 or newer.*make setup PYTHON=python3\.11"):
        setup.check_python((3, 9), "/usr/bin/python3")


def test_uv_looks_where_pip_is_configured_to(setup: ModuleType) -> None:
    options, environment = setup.uv_options(
        ":env:.find-links='/wheels /more'\n"
        "global.find-links='/overridden'\n"
        "global.extra-index-url='file:///a\\nfile:///b'\n"
        "install.index-url='https://mirror.example/simple'\n"
        "global.cert='/etc/ca.crt'\n"
        "global.no-index='false'\n"
        "freeze.timeout='10'\n"
    )
    pairs = list(zip(options[::2], options[1::2], strict=True))
    assert pairs == [
        ("--default-index", "https://mirror.example/simple"),
        ("--index", "file:///a"),
        ("--index", "file:///b"),
        ("--find-links", "/wheels"),
        ("--find-links", "/more"),
        ("--index-strategy", "unsafe-best-match"),
    ]
    assert environment == {"SSL_CERT_FILE": "/etc/ca.crt"}
    assert "--no-index" in setup.uv_options("global.no-index='true'")[0]


def test_the_next_way_is_tried_and_all_failures_are_shown(setup: ModuleType) -> None:
    fails = [sys.executable, "-c", "print('no such package'); raise SystemExit(1)"]
    works = [sys.executable, "-c", ""]
    assert setup.first_that_works([fails, works], {}) == 1
    with pytest.raises(setup.SetupError, match=r"(?s)no such package.*no such package"):
        setup.first_that_works([fails, fails], {})


def test_a_folder_that_set_up_did_not_make_is_left_alone(setup: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(setup.SetupError, match="was not made by `make setup`"):
        setup.bring_up_to_date(tmp_path, "cpu")
    assert (tmp_path / "mine").read_text() == "precious"


def test_nothing_is_installed_when_the_stamp_fits(
    setup: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "install", lambda *_: pytest.fail("installed something"))
    (tmp_path / "rlsys-setup-stamp").write_text(f"gpu {setup.fingerprint('gpu')}\n")
    setup.bring_up_to_date(tmp_path, None)  # the device in use is kept


def test_an_interrupted_set_up_starts_over(setup: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    venv = tmp_path / "venv"

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(setup, "_run", lambda _: (venv / "half").write_text("…"))
    monkeypatch.setattr(setup, "install", die)
    with pytest.raises(KeyboardInterrupt):
        setup.bring_up_to_date(venv, "cpu")
    monkeypatch.setattr(setup, "_run", lambda _: None)
    monkeypatch.setattr(setup, "install", lambda *_: None)
    setup.bring_up_to_date(venv, "cpu")
    assert not (venv / "half").exists()
    assert (venv / "rlsys-setup-stamp").read_text().split() == ["cpu", setup.fingerprint("cpu")]


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_a_lock_pins_every_package_once_and_names_no_place(device: str, setup: ModuleType) -> None:
    text = (INSTALL / f"{device}.lock").read_text()
    assert "://" not in text
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[A-Za-z0-9.+!]+", line) for line in lines)
    assert len(setup.read_pins(INSTALL / f"{device}.lock")) == len(lines)


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_a_lock_meets_what_the_project_asks_for(device: str, setup: ModuleType) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    pins = setup.read_pins(INSTALL / f"{device}.lock")
    also = extras["embedding"] if device == "cpu" else []
    for text in [*project["dependencies"], *extras[device], *extras["dev"], *also]:
        wanted = Requirement(text)
        version = pins[normal(wanted.name)].split("==")[1]
        assert wanted.specifier.contains(Version(version).public, prereleases=True), f"{text}, locked is {version}"


def test_laptop_and_gpu_cluster_agree_on_the_shared_pins(setup: ModuleType) -> None:
    cpu, gpu = (setup.read_pins(INSTALL / f"{device}.lock") for device in ("cpu", "gpu"))
    shared = setup.read_pins(INSTALL / "shared-pins.txt")
    assert {"ray", "transformers", "deepspeed", "mlflow", "numpy"} <= shared.keys()
    for name, pin in shared.items():
        assert (cpu[name], gpu[name]) == (pin, pin)


def test_the_cpu_lock_is_complete(setup: ModuleType) -> None:
    """With --no-deps nothing else comes along: each requirement of an installed package must be in the lock."""
    pins = setup.read_pins(INSTALL / "cpu.lock")
    missing = set()
    for distribution in importlib.metadata.distributions():
        if normal(distribution.metadata["Name"]) not in pins:
            continue
        for text in distribution.requires or []:
            wanted = Requirement(text)
            applies = wanted.marker is None or wanted.marker.evaluate({"extra": ""})
            if applies and normal(wanted.name) not in pins.keys() | LEFT_OUT:
                missing.add(f"{wanted.name}, needed by {distribution.metadata['Name']}")
    assert not missing


@pytest.mark.stack
def test_torchvision_imports_in_every_interpreter_of_the_environment() -> None:
    done = subprocess.run([sys.executable, "-c", "import torchvision.transforms.v2"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_make_knows_the_targets_that_others_rely_on() -> None:
    make = shutil.which("make")
    assert make is not None
    for target in ("setup", "demo", "test", "lint", "bench"):
        done = subprocess.run([make, "--dry-run", target, "SEED=3"], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "cluster/install/setup.py" in done.stdout
        assert ("--seed 3" in done.stdout) == (target == "demo")
