"""What the documentation names exists: pages, anchors, files, modules, make targets, commands, options, config keys."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import get_args

import pytest
import typer
from pydantic import BaseModel
from typer.core import TyperGroup

from rlsys.commands.app import app
from rlsys.config.run import RunConfig
from tests.support.paths import REPO

PACKAGES = ("rlsys", "actors", "learner", "reward_servers", "cluster", "benchmarks")
PAGES = [REPO / "README.md", REPO / "CONTRIBUTING.md", REPO / "CHANGELOG.md", *sorted(REPO.glob("docs/**/*.md"))]
WRITTEN_BY_THE_READER = {"my_rewards.py", "my.json"}
FENCE = re.compile(r"^( *)(```|~~~)(\w*).*?^\1\2", re.M | re.S)

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPO).as_posix())


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text())


def snippets(page: Path) -> Iterator[str]:
    """Text set as code, apart from blocks: `like this`."""
    yield from (" ".join(found.split()) for found in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose(page)))


def shell_lines(page: Path) -> Iterator[str]:
    """Command lines: of shell blocks, continuation lines joined, and of code in a sentence."""
    for block in FENCE.finditer(page.read_text()):
        if block.group(3) in ("bash", "sh", "console", ""):
            yield from block.group().replace("\\\n", " ").splitlines()
    yield from snippets(page)


def anchors(page: Path) -> set[str]:
    found: set[str] = set()
    for title in re.findall(r"^#+ (.+)$", prose(page), re.M):
        text = re.sub(r"[^\w\- ]", "", title.lower().replace("`", "")).strip().replace(" ", "-")
        found |= {text, re.sub(r"-+", "-", text)}  # as GitHub and as the site write them
    return found


@every_page
def test_every_link_leads_to_something(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"https?:|mailto:", target):
            continue
        name, _, anchor = target.partition("#")
        there = (page.parent / name).resolve() if name else page
        assert there.exists(), f"{target} leads nowhere"
        assert not anchor or anchor in anchors(there), f"{there.name} has no section #{anchor}"


@every_page
def test_every_path_that_is_named_exists(page: Path) -> None:
    top = {path.name for path in REPO.iterdir() if path.name not in ("site", "runs", "dist")}
    for text in snippets(page):
        if not re.fullmatch(r"[\w.\-]+(/[\w.\-]+)*/?(::\w+)?", text):
            continue
        path = text.split("::")[0]
        is_path = ("/" in path and path.split("/")[0] in top) or path.endswith((".py", ".md", ".lock", ".yaml"))
        if is_path and path not in WRITTEN_BY_THE_READER and not is_metric(path):
            assert (REPO / path).exists() or (REPO / "configs" / path).exists(), f"`{text}`: there is no such file"
        if "::" in text:
            assert f"def {text.split('::')[1]}(" in (REPO / path).read_text(), f"`{text}`: there is no such test"


@cache
def product_code() -> str:
    return "".join(path.read_text() for package in PACKAGES for path in sorted((REPO / package).rglob("*.py")))


def is_metric(text: str) -> bool:
    return f'"{text}"' in product_code()


@cache
def config_keys(kind: type[BaseModel] = RunConfig, prefix: str = "") -> dict[str, bool]:
    """Every dotted key, sections included -> whether further keys of the reader's may follow it."""
    found: dict[str, bool] = {}
    for name, field in kind.model_fields.items():
        section = field.annotation
        found[prefix + name] = "dict" in str(section).lower() or "Mapping" in str(section)
        if isinstance(section, type) and issubclass(section, BaseModel):
            found |= config_keys(section, f"{prefix}{name}.")
        for entry in get_args(section):
            if isinstance(entry, type) and issubclass(entry, BaseModel):
                found |= config_keys(entry, f"{prefix}{name}.N.")
    return found


def is_config_key(text: str) -> bool:
    text = re.sub(r"\.\d+(?=\.)", ".N", text)  # an entry of a list
    keys, parts = config_keys(), text.split(".")
    return text in keys or any(keys.get(".".join(parts[:n]), False) for n in range(1, len(parts)))


def is_python_name(text: str) -> bool:
    """Whether dotted `text` is a module, or a name that a module defines."""
    parts = text.split(".")
    for length in range(len(parts), 0, -1):
        place = REPO.joinpath(*parts[:length])
        module = place.with_suffix(".py") if place.with_suffix(".py").exists() else place / "__init__.py"
        if module.exists():
            code = module.read_text()
            return all(re.search(rf"\b{name}\b", code) for name in parts[length:])
    return False


@every_page
def test_every_module_and_config_key_that_is_named_exists(page: Path) -> None:
    sections = set(RunConfig.model_fields)
    keys = [re.match(r"[a-z_]+(\.[\w<>]+)+(?=$|[=:])", text) for text in snippets(page)]
    settings = [re.search(r"(?<=\s)[a-z_]+(\.\w+)+(?==)", line) for line in shell_lines(page) if "rlsys" in line]
    for found in filter(None, [*keys, *settings]):
        name = found.group()
        if name.split(".")[0] not in {*sections, *PACKAGES} or re.search(r"\.(py|md|json|jsonl|yaml|db)$", name):
            continue
        assert is_config_key(name) or is_python_name(name), f"`{name}` is neither a config key nor a name in the code"
    for line in shell_lines(page):
        for module in re.findall(r"python -m ((?:benchmarks|rlsys|tests)[\w.]*)", line):
            assert importlib.util.find_spec(module), f"python -m {module}: there is no such module"


@every_page
def test_every_make_target_and_variable_that_is_named_exists(page: Path) -> None:
    makefile = (REPO / "Makefile").read_text()
    for line in shell_lines(page):
        if not (found := re.match(r"make ([a-z][a-z-]*)(.*)", line.strip())):
            continue
        assert re.search(rf"^{found[1]}:", makefile, re.M), f"make {found[1]}: there is no such target"
        for variable in re.findall(r"\b([A-Z]+)=", found[2]):
            assert re.search(rf"^{variable} \?=", makefile, re.M), f"make {found[1]} has no {variable}"


@every_page
def test_every_command_and_option_of_rlsys_that_is_named_exists(page: Path) -> None:
    for line in shell_lines(page):
        if not (found := re.match(r"(?:\.venv/bin/)?rlsys (.*)", line.strip())):
            continue
        command = typer.main.get_command(app)
        words = re.split(r"\s#\s|\s{2,}#", found[1])[0].split()
        while words and isinstance(command, TyperGroup) and words[0].islower() and not words[0].startswith("-"):
            if words[0] not in command.commands and "run" in command.commands:  # the group's command of its own
                words.insert(0, "run")
            assert words[0] in command.commands, f"`{line}`: there is no command {words[0]}"
            command = command.commands[words.pop(0)]
        assert not isinstance(command, TyperGroup) or not words or words[0].startswith("-") or words[0].isupper(), line
        options = {name for parameter in command.params for name in parameter.opts} | {"--help"}
        for option in (word.partition("=")[0] for word in words if word.startswith("--")):
            assert option in options, f"`{line}`: no option {option}"


@pytest.mark.parametrize("name", ["rlsys.loop.loop.train", "actors.pool", "benchmarks.simulation"])
def test_a_name_in_the_code_is_found(name: str) -> None:
    assert is_python_name(name)
    assert not is_python_name(f"{name}.no_such_name")


def test_keys_that_the_reader_makes_up_are_allowed_only_where_they_may_be() -> None:
    assert is_config_key("reward.weights.captioning.brief")
    assert is_config_key("learner.lora.rank")
    assert not is_config_key("learner.lora.ranks")
