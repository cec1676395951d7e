"""Creates `.venv` from a lock, and does nothing when it is already what the lock says.

Runs on the machine's own python3 with nothing installed, hence standard library only.
Packages come from wherever pip is configured to find them: the same indexes and
`--find-links` are handed to uv, which installs the same lock ten times faster.
The one package with a rule of its own is the CPU build of torch: many indexes do not
carry it, so where the configured ones have none, uv takes it from PyTorch's own.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

log = logging.getLogger("setup")

INSTALL = Path(__file__).resolve().parent
ROOT = INSTALL.parent.parent
SHIM = "rlsys_torchvision_shim"
OLDEST_PYTHON = (3, 11)
UNFINISHED = "unfinished"
TORCH_FAMILY = ("torch", "torchvision")


class SetupError(RuntimeError):
    """The environment could not be made; the message says why and what to do."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 when the environment is what the lock says."""
    parser = argparse.ArgumentParser(description="Create .venv from the lock of a device.")
    parser.add_argument("--device", choices=("cpu", "gpu"), help="which lock; default: the one in use, else cpu")
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
    """Raises SetupError on a Python that the code cannot run on."""
    if version < OLDEST_PYTHON:
        wanted = ".".join(map(str, OLDEST_PYTHON))
        raise SetupError(
            f"{executable} is Python {version[0]}.{version[1]}; {wanted} or newer is needed. "
            f"Name another one: make setup PYTHON=python{wanted}"
        )


def bring_up_to_date(venv: Path, device: str | None) -> None:
    """Install unless the stamp in `venv` equals (device, hash of everything that decides what is installed)."""
    stamp = venv / "rlsys-setup-stamp"
    found = stamp.read_text().split() if stamp.exists() else []
    device = device or (found[0] if found else "cpu")
    wanted = [device, fingerprint(device)]
    if found == wanted:
        log.info("environment is up to date (%s, %s lock)", _shown(venv), device)
        return
    if venv.exists() and not found:
        raise SetupError(f"{venv} exists and was not made by `make setup`; move it away, then run this again.")
    started = time.monotonic()
    log.info("creating %s from cluster/install/%s.lock, Python %s", _shown(venv), device, platform.python_version())
    shutil.rmtree(venv, ignore_errors=True)
    venv.mkdir(parents=True)
    stamp.write_text(f"{device} {UNFINISHED}\n")  # first, so that what an interrupted run leaves is known as ours
    _run([sys.executable, "-m", "venv", str(venv)])
    install(venv, INSTALL / f"{device}.lock", started)
    stamp.write_text(" ".join(wanted) + "\n")
    log.info("done in %.0f s; the commands are in %s/bin", time.monotonic() - started, _shown(venv))


def fingerprint(device: str) -> str:
    """SHA-256 over the files that decide what is installed, and the Python that runs them."""
    sha = hashlib.sha256(f"{platform.python_version()} {ROOT}".encode())
    for file in (INSTALL / f"{device}.lock", ROOT / "pyproject.toml", Path(__file__), INSTALL / f"{SHIM}.py"):
        sha.update(file.read_bytes())
    return sha.hexdigest()


def install(venv: Path, lock: Path, started: float) -> None:
    """The locked packages, torch where it can be had, the torchvision shim where needed, rlsys itself."""
    python = str(venv / "bin" / "python")
    pins = read_pins(lock)
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
    step(f"{len(plain)} packages", [*uv, *options, *plain], [*pip, *plain])
    is_cpu = pins["torch"].endswith("+cpu")
    here, pytorch = [*uv, *options], [*uv, "--torch-backend=cpu"]
    source = step(pins["torch"], [*here, pins["torch"]], *([[*pytorch, pins["torch"]]] if is_cpu else []))
    vision, place = pins["torchvision"], pytorch if source else here
    step(vision, *([[*place, f"{vision}+cpu"]] if is_cpu else []), [*here, vision])
    if place_shim(python):
        log.info("[%3.0f s] torchvision does not match this torch: shim placed", time.monotonic() - started)
    step("rlsys itself, editable", [*uv, "--no-build-isolation", "--editable", str(ROOT)])
    if sys.dont_write_bytecode:
        # else each of a run's dozen processes would recompile everything that it imports: a minute per run
        log.info("[%3.0f s] bytecode, which Python may not keep by itself here", time.monotonic() - started)
        compile_all(python, venv)


def compile_all(python: str, venv: Path) -> None:
    """Bytecode of every installed module. Files that are no Python of this version are left alone."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [python, "-m", "compileall", "-q", "-j", "0", str(venv / "lib")]
    subprocess.run(command, env=environment, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def read_pins(lock: Path) -> dict[str, str]:
    """Package name -> "name==version", in the order of the lock."""
    lines = (line.split("#")[0].strip() for line in lock.read_text().splitlines())
    return {line.split("==")[0]: line for line in lines if line}


def uv_options(pip_config: str) -> tuple[list[str], dict[str, str]]:
    """uv's flags and environment for what `pip config list` printed, so that both look in the same places.

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
    """Whether torchvision needed the shim to import, in which case every start of `python` now loads it."""
    if _imports(python, "torchvision"):
        return False
    site = Path(_output([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip())
    shutil.copy(INSTALL / f"{SHIM}.py", site / f"{SHIM}.py")
    (site / f"{SHIM}.pth").write_text(f"import {SHIM}; {SHIM}.install()\n")
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
