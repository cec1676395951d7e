"""Creates `.venv` from a lock, and does nothing when it is already what the lock says.

Runs on the machine's own python3 with nothing installed, hence standard library only.
Packages come from wherever pip is configured to find them: the same indexes and
`--find-links` are handed to uv, which installs the same lock ten times faster.
The one package with a rule of its own is torch. Many indexes do not carry its CPU build:
where the configured ones have none, uv takes it from PyTorch's own. A GPU environment
must not get that build, which satisfies the same pin where an index has both.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import logging
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

log = logging.getLogger("setup")

INSTALL = Path(__file__).resolve().parent
ROOT = INSTALL.parent.parent
SHIM = "rlsys_torchvision_shim"
OLDEST_PYTHON = (3, 11)
UNFINISHED = "unfinished"
DEVICES = ("cpu", "gpu")
TORCH_FAMILY = ("torch", "torchvision")
VERSION = r"\b(\d{3,}\.\d+(?:\.\d+)?)\b"  # of a driver
OLDEST_DRIVER = 580  # of CUDA 13, for which the packages of gpu.lock are built
VERSION_OF_TORCH = "import runpy, sysconfig as s; v = runpy.run_path(s.get_path('purelib') + '/torch/version.py')"


class Places(NamedTuple):
    """Where the locks and the project are, and what describes the driver: NVIDIA's own file, else its command."""

    locks: Path = INSTALL
    project: Path = ROOT
    driver_file: Path = Path("/proc/driver/nvidia/version")
    driver_command: str = "nvidia-smi"
    driver_timeout_s: float = 30.0


HERE = Places()


class SetupError(RuntimeError):
    """The environment could not be made; the message says why and what to do."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 when the environment is what the lock says."""
    parser = argparse.ArgumentParser(description="Create .venv from the lock of a device.")
    parser.add_argument("--device", choices=DEVICES, help="which lock; default: the one in use, else cpu")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="setup: %(message)s", stream=sys.stdout)
    try:
        check_python(sys.version_info[:2], sys.executable)
        bring_up_to_date(options.venv, options.device)
    except SetupError as error:
        log.error("%s", error)
        return 1
    return 0


def check_python(version: tuple[int, int], executable: str) -> None:
    """Raise SetupError on a Python that the code cannot run on."""
    if version < OLDEST_PYTHON:
        wanted = ".".join(map(str, OLDEST_PYTHON))
        raise SetupError(
            f"{executable} is Python {version[0]}.{version[1]}; {wanted} or newer is needed. "
            f"Name another one: make setup PYTHON=python{wanted}"
        )


def bring_up_to_date(venv: Path, device: str | None, places: Places = HERE) -> None:
    """Install unless the stamp in `venv` equals (device, hash of everything that decides what is installed)."""
    stamp = venv / "rlsys-setup-stamp"
    found = stamp.read_text().split() if stamp.exists() else []
    device = device or (found[0] if found and found[0] in DEVICES else "cpu")
    wanted = [device, fingerprint(device, places)]
    if device == "gpu" and (problem := driver_problem(driver_version(places))):
        log.warning("%s", problem)
    if found == wanted:
        log.info("environment is up to date (%s, %s lock)", _shown(venv), device)
        return
    if venv.exists() and not stamp.exists():
        raise SetupError(f"{venv} exists and was not made by `make setup`; move it away, then run this again.")
    started = time.monotonic()
    log.info("creating %s from cluster/install/%s.lock, Python %s", _shown(venv), device, platform.python_version())
    shutil.rmtree(venv, ignore_errors=True)
    venv.mkdir(parents=True)
    stamp.write_text(f"{device} {UNFINISHED}\n")  # first, so that what an interrupted run leaves is known as ours
    _run([sys.executable, "-m", "venv", str(venv)])
    install(venv, device, places, started)
    stamp.write_text(" ".join(wanted) + "\n")
    log.info("done in %.0f s; the commands are in %s/bin", time.monotonic() - started, _shown(venv))


def fingerprint(device: str, places: Places = HERE) -> str:
    """Return the SHA-256 over the files that decide what is installed, and the Python that runs them."""
    sha = hashlib.sha256(f"{platform.python_version()} {places.project}".encode())
    lock, project = places.locks / f"{device}.lock", places.project / "pyproject.toml"
    for file in (lock, project, Path(__file__), INSTALL / f"{SHIM}.py"):
        sha.update(file.read_bytes())
    return sha.hexdigest()


def driver_version(places: Places = HERE) -> str:
    """Return the version of NVIDIA's driver, for example "580.95.05"; "" where none says one."""
    found = re.search(rf"^NVRM version:.*?{VERSION}", _driver_file(places), re.MULTILINE)
    found = found or re.search(rf"^\s*{VERSION}", _driver_answer(places), re.MULTILINE)
    return found.group(1) if found else ""


def _driver_file(places: Places) -> str:
    try:
        return places.driver_file.read_text(errors="replace")
    except OSError:
        return ""


def _driver_answer(places: Places) -> str:
    """Return what NVIDIA's command prints, "" if it fails; it can hang on a GPU that has failed."""
    query = [places.driver_command, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, stdin=subprocess.DEVNULL, capture_output=True, timeout=places.driver_timeout_s)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace") if done.returncode == 0 else ""


def driver_problem(version: str) -> str:
    """Say why GPU runs will fail with this driver, "" if they will not. The environment can be made all the same."""
    if not version:
        return (
            f"no NVIDIA driver was found on this machine: the environment can be made here, but runs need a machine "
            f"with driver {OLDEST_DRIVER} or newer."
        )
    if int(version.split(".")[0]) < OLDEST_DRIVER:
        return (
            f"NVIDIA driver {version} is too old for CUDA 13, which gpu.lock's packages use: install driver "
            f"{OLDEST_DRIVER} or newer (on data-centre GPUs NVIDIA's package cuda-compat-13-0 is enough)."
        )
    return ""


def install(venv: Path, device: str, places: Places, started: float) -> None:
    """Install the locked packages, torch where it can be had, the torchvision shim where needed, rlsys itself."""
    python = str(venv / "bin" / "python")
    pins = read_pins(places.locks / f"{device}.lock")
    plain = [pin for name, pin in pins.items() if name not in TORCH_FAMILY]
    options, environment = uv_options(_output([python, "-m", "pip", "config", "list"]))
    pip = [python, "-m", "pip", "install", "--no-deps", "--quiet"]
    quiet = [] if sys.stderr.isatty() else ["--quiet"]
    # copies where the cache is on another disk; hard links, hence little space, where it is not
    uv = [str(venv / "bin" / "uv"), "pip", "install", "--python", python, "--no-deps", *quiet]
    environment = {"UV_LINK_MODE": "copy"} | environment if _crosses_disks(venv) else environment

    def step(text: str, *attempts: Sequence[str]) -> int:
        log.info("[%3.0f s] %s", time.monotonic() - started, text)
        return first_that_works(attempts, environment)

    step("uv", [*pip, pins["uv"]])
    torch, vision = (pins[name] for name in TORCH_FAMILY)
    here, pytorch = [*uv, *options], [*uv, "--torch-backend=cpu"]
    if device == "gpu":
        # first of all, for it is what may be wrong
        step(torch, [*here, without_cpu_build(torch)], [*here, torch])
        check_cuda(python)
        step(vision, [*here, without_cpu_build(vision)], [*here, vision])
    else:
        source = step(torch, [*here, torch], [*pytorch, torch])
        place = pytorch if source else here
        step(vision, [*place, f"{vision}+cpu"], [*here, vision])
    step(f"{len(plain)} packages", [*here, *plain], [*pip, *plain])
    if place_shim(python):
        log.info("[%3.0f s] torchvision does not match this torch: shim placed", time.monotonic() - started)
    step("rlsys itself, editable", [*uv, "--no-build-isolation", "--editable", str(places.project)])
    if sys.dont_write_bytecode:
        # else each of a run's dozen processes would recompile everything that it imports: a minute per run
        log.info("[%3.0f s] bytecode, which Python may not keep by itself here", time.monotonic() - started)
        compile_all(python, venv)


def without_cpu_build(pin: str) -> str:
    """Return the pin, met by no CPU build: "2.13.0+cpu" satisfies "==2.13.0" and is newer than a plain "2.13.0"."""
    return f"{pin},!={pin.split('==')[1]}+cpu"


def torch_version(python: str) -> tuple[str, str]:
    """Return the version and CUDA version of the installed torch, "" for a build without; read, not imported."""
    version, _, cuda = _output(
        [python, "-c", f"{VERSION_OF_TORCH}; print(v['__version__'], v['cuda'] or '')"]
    ).partition(" ")
    return version, cuda.strip()


def check_cuda(python: str) -> None:
    """Raise SetupError where the installed torch is a build without CUDA."""
    version, cuda = torch_version(python)
    if not cuda:
        raise SetupError(
            f"the torch {version} that pip's configured indexes and find-links supplied is a build without CUDA: add "
            "an index with CUDA builds, for example PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cu130 "
            "make setup DEVICE=gpu"
        )


def compile_all(python: str, venv: Path) -> None:
    """Compile every installed module to bytecode. Files that are no Python of this version are left alone."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [python, "-m", "compileall", "-q", "-j", "0", str(venv / "lib")]
    subprocess.run(command, env=environment, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def read_pins(lock: Path) -> dict[str, str]:
    """Return package name -> "name==version", in the order of the lock."""
    lines = (line.split("#")[0].strip() for line in lock.read_text().splitlines())
    return {line.split("==")[0]: line for line in lines if line}


def uv_options(pip_config: str) -> tuple[list[str], dict[str, str]]:
    """Return uv's flags and environment for what `pip config list` printed, so that both look in the same places.

    pip merges its files itself; what is left is the order global < install < environment.
    """
    settings: dict[str, str] = {}
    for prefix in ("global.", "install.", ":env:."):
        for line in pip_config.splitlines():
            name, _, value = line.partition("=")
            if name.startswith(prefix):
                settings[name.removeprefix(prefix)] = ast.literal_eval(value)
    flags = {
        "index-url": "--default-index",
        "extra-index-url": "--index",
        "find-links": "--find-links",
        "trusted-host": "--allow-insecure-host",
    }
    options = [text for key, flag in flags.items() for value in settings.get(key, "").split() for text in (flag, value)]
    if settings.get("no-index", "false").lower() in ("true", "1", "yes", "on"):
        options.append("--no-index")
    # pip weighs all indexes alike; uv by default stops at the first that knows the name
    options += ["--index-strategy", "unsafe-best-match"]
    variables = {"cert": "SSL_CERT_FILE", "proxy": "ALL_PROXY"}
    environment = {variables[key]: settings[key] for key in variables if settings.get(key)}
    return options, environment


def first_that_works(attempts: Sequence[Sequence[str]], environment: Mapping[str, str]) -> int:
    """Return the index of the first command that succeeds. Raises SetupError with the output of each if none does."""
    outputs = []
    for index, command in enumerate(attempts):
        done = subprocess.run(
            command,
            env={**environment, **os.environ},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=None if sys.stderr.isatty() else subprocess.STDOUT,
            text=True,
        )
        if done.returncode == 0:
            return index
        outputs.append(f"{' '.join(command[:6])} …\n{done.stdout[-3000:]}")
    raise SetupError("installation failed; all alternatives were tried:\n" + "\n".join(outputs))


def place_shim(python: str) -> bool:
    """Return whether torchvision needed the shim to import, in which case every start of `python` now loads it.

    A shim that is there already is removed first. Beside a CUDA build of torch none is placed: it would abort every
    process whose torchvision is a real one. Raises SetupError where torchvision does not import.
    """
    site = Path(_output([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip())
    module, hook = site / f"{SHIM}.py", site / f"{SHIM}.pth"
    for file in (hook, module):
        file.unlink(missing_ok=True)
    if _imports(python, "torchvision"):
        return False
    version, cuda = torch_version(python)
    if cuda:
        raise SetupError(
            f"torchvision does not import beside torch {version}: its build is for another torch or CUDA; take both "
            f"from the same index. See: {python} -c 'import torchvision'"
        )
    shutil.copy(INSTALL / f"{SHIM}.py", module)
    hook.write_text(f"import {SHIM}; {SHIM}.install()\n")
    if not _imports(python, "torchvision"):
        raise SetupError(f"torchvision does not import even with the shim; see: {python} -c 'import torchvision'")
    return True


def _imports(python: str, module: str) -> bool:
    return subprocess.run([python, "-c", f"import {module}"], capture_output=True).returncode == 0


def _crosses_disks(venv: Path) -> bool:
    cache = Path(os.environ.get("UV_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME") or Path.home())
    while not cache.exists():
        cache = cache.parent
    return cache.stat().st_dev != venv.stat().st_dev


def _run(command: Sequence[str]) -> None:
    first_that_works([command], {})


def _output(command: Sequence[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _shown(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


if __name__ == "__main__":
    sys.exit(main())
