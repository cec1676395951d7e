"""The set-up step's decisions, and what the locks promise."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import stat
import subprocess
import sys
import tomllib
import zipfile
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

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


@pytest.mark.parametrize("stamp", ["", "tpu 1234\n", "gpu"])
def test_a_stamp_that_was_cut_off_starts_over(
    setup: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stamp: str
) -> None:
    """As a full disk leaves it."""
    venv, installed = tmp_path / "venv", []
    venv.mkdir()
    (venv / "rlsys-setup-stamp").write_text(stamp)
    monkeypatch.setattr(setup, "_run", lambda _: None)
    monkeypatch.setattr(setup, "install", lambda _, device, *rest: installed.append(device))
    setup.bring_up_to_date(venv, None)
    assert installed == ["gpu" if stamp == "gpu" else "cpu"]


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
    for text in [*project["dependencies"], *extras[device], *extras["dev"], *extras["embedding"]]:
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


PROC = (
    "NVRM version: NVIDIA UNIX {} Kernel Module  {}  Sun Jul 20 00:00:00 UTC 2025\nGCC version:  gcc version 11.4.0\n"
)


@pytest.mark.parametrize(
    ("kind", "version", "says"),
    [
        ("Open", "580.95.05", ""),
        ("x86_64", "610.12", ""),
        ("x86_64", "579.99", "NVIDIA driver 579.99 is too old for CUDA 13.*install driver 580 or newer"),
        ("x86_64", "535.129.03", "NVIDIA driver 535.129.03 is too old"),
    ],
)
def test_an_old_driver_is_named_with_the_one_to_install(
    setup: ModuleType, tmp_path: Path, kind: str, version: str, says: str
) -> None:
    (tmp_path / "version").write_text(PROC.format(kind, version))
    found = setup.driver_version(setup.Places(driver_file=tmp_path / "version"))
    assert found == version
    assert re.fullmatch(f"{says}.*" if says else "", setup.driver_problem(found))


@pytest.mark.parametrize(
    ("script", "version"),
    [
        ("echo 535.161.08; echo 535.161.08", "535.161.08"),
        ("echo no devices; exit 9", ""),
        ("echo '[N/A]'", ""),
        ("printf '\\377\\n580.95.05\\n'", "580.95.05"),
        ("exec sleep 60", ""),  # as it does on a GPU that has fallen off its bus
    ],
)
def test_the_driver_is_asked_for_where_no_file_says_its_version(
    setup: ModuleType, tmp_path: Path, script: str, version: str
) -> None:
    command = tmp_path / "smi"
    places = setup.Places(driver_file=tmp_path / "file", driver_command=str(command), driver_timeout_s=5.0)
    assert setup.driver_version(places) == ""
    assert re.search("no NVIDIA driver was found.*580 or newer", setup.driver_problem(""))
    command.write_text("of another machine")
    command.chmod(0o755)
    assert setup.driver_version(places) == ""
    command.write_text(f"#!/bin/sh\n{script}\n")
    assert setup.driver_version(places) == version


def test_a_compilers_version_is_not_taken_for_the_drivers(setup: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "version").write_text("GCC version:  gcc version 100.3.0\n" + PROC.format("Open", "580.95.05"))
    assert setup.driver_version(setup.Places(driver_file=tmp_path / "version")) == "580.95.05"
    (tmp_path / "version").write_bytes(b"GCC version: 580.95.05\n\xff")
    assert setup.driver_version(setup.Places(driver_file=tmp_path / "version", driver_command="none")) == ""


def test_the_oldest_driver_is_that_of_the_locked_cuda(setup: ModuleType) -> None:
    """Driver 580 belongs to CUDA 13: another CUDA in the lock needs another number here."""
    kinds = {pin.rpartition("-")[2].split("==")[0] for pin in setup.read_pins(INSTALL / "gpu.lock") if "-cu1" in pin}
    assert {"cu13"} <= kinds
    assert setup.OLDEST_DRIVER == 580


def write_wheel(folder: Path, name: str, version: str, files: dict[str, str]) -> None:
    """A pure wheel. A name in `files` that begins with "scripts/" becomes a command."""
    info = f"{name}-{version}.dist-info"
    everything = {
        **{file.replace("scripts/", f"{name}-{version}.data/scripts/"): text for file, text in files.items()},
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    everything[f"{info}/RECORD"] = "".join(f"{file},,\n" for file in [*everything, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        for file, text in everything.items():
            entry = zipfile.ZipInfo(file)
            entry.external_attr = (stat.S_IFREG | 0o755) << 16
            wheel.writestr(entry, text)


# what the shim needs of torch: a library that can be declared once, as the real one aborts at the second
TORCH = """
from torch import version
from torch.version import __version__
class library:
    declared = []
    class Library:
        def __init__(self, name, kind): pass
        def define(self, schema):
            assert schema not in library.declared, "declared twice: the real torch aborts"
            library.declared.append(schema)
"""
# a CUDA build: its library loads beside a torch with CUDA alone, and declares the operators itself
TORCHVISION = """
import torch
if torch.version.cuda:
    torch.library.Library("torchvision", "DEF").define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
assert torch.library.declared, "operator torchvision::nms does not exist"
"""
BACKEND = """
import zipfile
def build_editable(folder, settings=None, metadata=None):
    with zipfile.ZipFile(folder + "/rlsys-0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("rlsys_marker.py", "")
        wheel.writestr("rlsys-0.dist-info/METADATA", "Metadata-Version: 2.1\\nName: rlsys\\nVersion: 0\\n")
        wheel.writestr("rlsys-0.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr("rlsys-0.dist-info/RECORD", "")
    return "rlsys-0-py3-none-any.whl"
"""
SHIM_FILES = {"rlsys_torchvision_shim.py", "rlsys_torchvision_shim.pth"}


@dataclass(frozen=True, kw_only=True)
class MadeUp:
    """A project, its locks and an index of wheels, all made up but for uv and pip."""

    setup: ModuleType
    places: Any
    wheels: Path
    venv: Path

    def torch(self, version: str, cuda: str | None) -> None:
        version_file = f"__version__ = {version!r}\ncuda = {cuda!r}\n"
        write_wheel(self.wheels, "torch", version, {"torch/__init__.py": TORCH, "torch/version.py": version_file})

    def bring(self, device: str) -> None:
        self.setup.bring_up_to_date(self.venv, device, self.places)

    def files(self) -> set[str]:
        (site,) = (self.venv / "lib").glob("python*/site-packages")
        return {file.name for file in site.iterdir()}

    def run(self, code: str) -> str:
        command = [str(self.venv / "bin" / "python"), "-c", code]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def made_up(setup: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MadeUp:
    uv = Path(sys.executable).with_name("uv")
    wheels, locks, project = tmp_path / "wheels", tmp_path / "locks", tmp_path / "project"
    for folder in (wheels, locks, project):
        folder.mkdir()
    write_wheel(wheels, "uv", "1", {"scripts/uv": f'#!/bin/sh\nexec {uv} "$@"\n'})
    write_wheel(wheels, "plain", "1", {"plain.py": ""})
    write_wheel(wheels, "torchvision", "0.28.0", {"torchvision.py": TORCHVISION})
    (locks / "cpu.lock").write_text("plain==1\ntorch==2.13.0+cpu\ntorchvision==0.28.0\nuv==1\n")
    (locks / "gpu.lock").write_text("plain==1\ntorch==2.13.0\ntorchvision==0.28.0\nuv==1\n")
    (project / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    )
    (project / "backend.py").write_text(BACKEND)
    (tmp_path / "version").write_text(PROC.format("Open", "580.95.05"))
    settings = {"CONFIG_FILE": os.devnull, "NO_INDEX": "1", "FIND_LINKS": str(wheels)}
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    for name, value in settings.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))  # made-up builds stay out of the user's
    places = setup.Places(locks=locks, project=project, driver_file=tmp_path / "version")
    return MadeUp(setup=setup, places=places, wheels=wheels, venv=tmp_path / ".venv")


@pytest.mark.stack
def test_an_environment_changes_from_cpu_to_gpu_and_back(made_up: MadeUp) -> None:
    """An index has both builds, of which the CPU one satisfies the GPU lock's pin and counts as the newer."""
    made_up.torch("2.13.0+cpu", None)
    made_up.torch("2.13.0", "13.0")
    for device, cuda in (("cpu", "None"), ("gpu", "13.0"), ("cpu", "None")):
        made_up.bring(device)
        assert made_up.run("import torch, torchvision, plain, rlsys_marker; print(torch.version.cuda)") == cuda
        assert (made_up.files() & SHIM_FILES) == (SHIM_FILES if device == "cpu" else set())
    assert (made_up.venv / "rlsys-setup-stamp").read_text().startswith("cpu ")
    check_that_a_shim_harms_no_cuda_build(made_up)


@pytest.mark.stack
def test_a_gpu_environment_does_not_take_a_torch_without_cuda(made_up: MadeUp) -> None:
    made_up.torch("2.13.0+cpu", None)
    with pytest.raises(made_up.setup.SetupError, match=r"torch 2\.13\.0\+cpu.*without CUDA.*whl/cu130.*DEVICE=gpu"):
        made_up.bring("gpu")
    assert not made_up.files() & SHIM_FILES
    assert "unfinished" in (made_up.venv / "rlsys-setup-stamp").read_text()


def check_that_a_shim_harms_no_cuda_build(made_up: MadeUp) -> None:
    # another torch is installed by hand: the hook must not declare what its torchvision declares
    (site,) = (made_up.venv / "lib").glob("python*/site-packages")
    (site / "torch" / "version.py").write_text("__version__ = '2.13.0'\ncuda = '13.0'\n")
    assert made_up.run("import torchvision, torch; print(len(torch.library.declared))") == "1"
    assert not made_up.setup.place_shim(str(made_up.venv / "bin" / "python"))
    assert not made_up.files() & SHIM_FILES
    # a torchvision that does not fit is an error there, and no reason for a shim
    (site / "torchvision.py").write_text("raise OSError('libcudart.so.12: cannot open shared object file')")
    with pytest.raises(made_up.setup.SetupError, match=r"does not import beside torch 2\.13\.0.*same index"):
        made_up.setup.place_shim(str(made_up.venv / "bin" / "python"))
    assert not made_up.files() & SHIM_FILES
