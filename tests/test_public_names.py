"""The docstring of a package lists what other packages use of it; read from the source, without importing anything.

A line "- `module` (`Name`, `other_name`): what it is" lists a module or sub-package and the names in it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.support.paths import REPO

PACKAGES = ("rlsys", "actors", "learner", "reward_servers", "cluster")
USERS = (*PACKAGES, "benchmarks", "examples")
_ENTRY = re.compile(r"^- `(\w+)`(?: \((`\w+`(?:,\s+`\w+`)*)\))?:\s", re.MULTILINE)


def module_of(path: Path) -> str:
    parts = path.relative_to(REPO).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for user in USERS for path in sorted((REPO / user).rglob("*.py"))}
TREES = {module: ast.parse(path.read_text(encoding="utf-8")) for module, path in MODULES.items()}
ROOMS = sorted(name for name, path in MODULES.items() if path.stem == "__init__" and name.split(".")[0] in PACKAGES)


def package_of(module: str) -> str:
    return module if MODULES[module].stem == "__init__" else module.rpartition(".")[0]


def listed(room: str) -> Mapping[str, frozenset[str]]:
    """Module or sub-package of `room` -> the names in it that the room's docstring lists."""
    entries = _ENTRY.findall(ast.get_docstring(TREES[room]) or "")
    return {module: frozenset(re.findall(r"\w+", names)) for module, names in entries}


def defined(module: str) -> set[str]:
    """Names that a module has at its top level, imported ones included."""
    found: set[str] = set()
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return found


def imports_from_elsewhere() -> Iterator[tuple[str, str, str, str]]:
    """(importing module, room, module of the room, name), "" for the module itself, wherever a room is left."""
    for user, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                found = [(alias.name, "") for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                whole = [(f"{node.module}.{alias.name}", "") for alias in node.names]
                named = [(node.module, alias.name) for alias in node.names]
                found = [full if full[0] in MODULES else part for full, part in zip(whole, named, strict=True)]
            else:
                continue
            for module, name in found:
                room = package_of(module) if module in MODULES else ""
                if room in ROOMS and room not in (module, package_of(user)):
                    yield user, room, module.rpartition(".")[2], name


@pytest.mark.parametrize("room", ROOMS)
def test_every_name_that_a_package_lists_exists(room: str) -> None:
    for module, names in listed(room).items():
        assert f"{room}.{module}" in MODULES, f"{room} has no module {module}"
        missing = names - defined(f"{room}.{module}")
        assert not missing, f"{room}.{module} does not define {', '.join(sorted(missing))}"


def test_every_name_that_is_imported_from_another_package_is_listed_there() -> None:
    unlisted = {
        f"{room}: list {module}.{name or '*'}, which {user} imports"
        for user, room, module, name in imports_from_elsewhere()
        if module not in listed(room) or (name and name not in listed(room)[module])
    }
    assert not unlisted, "\n".join(sorted(unlisted))


def test_every_sub_package_is_listed() -> None:
    nested = [room for room in ROOMS if "." in room]
    assert not [room for room in nested if room.rpartition(".")[2] not in listed(room.rpartition(".")[0])]


@pytest.mark.parametrize("room", ROOMS)
def test_a_package_file_is_a_docstring_and_nothing_else(room: str) -> None:
    body = TREES[room].body
    docstring = ast.get_docstring(TREES[room])
    assert len(body) == 1 and docstring and docstring.splitlines()[0].endswith(".")
