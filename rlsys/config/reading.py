"""Read config files and `section.key=value` overrides into plain mappings, without the pitfalls of YAML 1.1.

Duplicate keys, aliases that expand without bound, and None are errors. `010` and `1:30` are text, not octal or
sexagesimal numbers; dates are text; and a `#` on the command line does not start a comment.
"""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from rlsys.config.part import ConfigError
from rlsys.urls import masked_url

MAX_BYTES = 256 << 10
MAX_NODES = 100_000
"""Largest number of values in a config after expanding aliases; the largest bundled config has about 100."""

MAX_DIGITS = 100
"""Longest integer that is read: Python converts no more than 4,300 digits, and floats hold 308."""
_MARKUP = re.compile(r"---|[|>&]")
"""Starts of an override's value that YAML takes for something else than the value: a document, a block, an anchor."""


class _Loader(yaml.SafeLoader):
    """Safe YAML with the numbers of YAML 1.2 (plus `_` between digits) and without dates."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in pairs if tag.rsplit(":", 1)[-1] in ("bool", "null", "merge")]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict[Any, Any]:
        if isinstance(node, yaml.MappingNode):
            seen: dict[str, int] = {}
            for key, _ in node.value:
                line = key.start_mark.line + 1
                if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                    if key.value in seen:
                        raise _Refused(f"{key.value} is given twice, in lines {seen[key.value]} and {line}; keep one.")
                    seen[key.value] = line
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        if len(node.value) > MAX_DIGITS:
            raise _Refused(f"the number in line {node.start_mark.line + 1} has more than {MAX_DIGITS} digits.")
        return super().construct_yaml_int(node)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)\Z"), list("-+0123456789")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"[-+]?(?:(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF))\Z|\.(?:nan|NaN|NAN)\Z"
    ),
    list("-+0123456789."),
)


class _Refused(Exception):
    """An error for well-formed YAML that is not accepted; its message ends the message of a ConfigError."""


def read_tree(path: Path) -> dict[str, Any]:
    """Read the mapping in a config file. Raises ConfigError, which names the file, for anything else."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: the config file cannot be read ({error.strerror}).") from error
    if len(content) > MAX_BYTES:
        raise ConfigError(f"{path}: larger than {MAX_BYTES >> 10} KiB, so not a config file; check the path.")
    try:
        text = content.decode("utf-8-sig")
        if (start := text.find("\0")) >= 0:  # UTF-16 without its mark is UTF-8 of every other byte
            raise UnicodeDecodeError("utf-8", content, start, start + 1, "a NUL character")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}: not UTF-8 (line {line}, byte {error.start}); save the file as UTF-8.") from error
    try:
        tree = _construct(text)[0]
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {error}") from error
    except _Refused as error:
        raise ConfigError(f"{path}: {error}") from error
    if tree is None:
        raise ConfigError(f"{path}: the file is empty; a config is a mapping of sections.")
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: a config is a mapping of sections, but this is {type(tree).__name__}.")
    return tree


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Apply an override `section.key=value` to `tree`. Raises ConfigError for a malformed override."""
    name, separator, text = override.partition("=")
    if not separator or not name:
        raise ConfigError(f"override {masked_url(override)!r}: write it as section.key=value.")
    *sections, key = name.split(".")
    value = _value(override, text)
    if _MARKUP.match(text.lstrip()):
        raise ConfigError(f"override {masked_url(override)!r}: YAML reads no text from this; {_quoted(override)}")
    place: dict[str, Any] | list[Any] = tree
    for section, inner in pairwise([*sections, key]):
        found = _entry(place, section, override)
        if found is None:  # missing, or a section with no keys in the file
            found = [] if inner == "0" else {}
            _put(place, section, found, override)
        if not isinstance(found, dict | list):
            raise ConfigError(f"override {masked_url(override)!r}: {section} is a value, not a section.")
        place = found
    _put(place, key, value, override)


def _entry(place: dict[str, Any] | list[Any], key: str, override: str) -> Any:
    """Return what is at a key of a section or at an index of a list, None if there is nothing."""
    if isinstance(place, dict):
        return place.get(key)
    index = _index(place, key, override)
    return place[index] if index < len(place) else None


def _put(place: dict[str, Any] | list[Any], key: str, value: Any, override: str) -> None:
    if isinstance(place, dict):
        place[key] = value
        return
    index = _index(place, key, override)
    place[index : index + 1] = [value]


def _index(place: list[Any], key: str, override: str) -> int:
    """Return the index that a key is; the one after the last entry adds an entry."""
    if not (key.isascii() and key.isdigit() and len(key) < MAX_DIGITS) or int(key) > len(place):
        raise ConfigError(
            f"override {masked_url(override)!r}: {key} is no entry of a list of {len(place)}; entries are counted from "
            f"0, and {len(place)} adds one."
        )
    return int(key)


def _value(override: str, text: str) -> Any:
    try:
        value, length = _construct(text)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"override {masked_url(override)!r}: the value is not YAML: {masked_url(str(error))}\n{_quoted(override)}"
        ) from error
    except _Refused as error:
        raise ConfigError(f"override {masked_url(override)!r}: {error}") from error
    if not text[length:].strip():
        return value
    if value is None or isinstance(value, dict | list):
        if text.lstrip().startswith("#"):
            return text.strip()
        raise ConfigError(
            f"override {masked_url(override)!r}: YAML drops everything after #; quote the values that contain it."
        )
    return text.strip()


def _quoted(override: str) -> str:
    return f"to pass it as text, quote it: '{override.partition('=')[0]}=\"…\"'"


def _construct(text: str) -> tuple[Any, int]:
    """Return the value of a YAML text, and the length of the value's text without trailing comments."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None, 0
        _check_nodes(node)
        return loader.construct_document(node), node.end_mark.index
    except RecursionError as error:
        raise _Refused("values are nested too deeply for a config.") from error
    except ValueError as error:  # "0x_"
        raise _Refused(f"a number cannot be read: {error}") from error
    except (KeyError, AttributeError) as error:  # a tag of YAML on a value that is not of its type, as in !!bool 3
        raise _Refused(f"a value cannot be read as its tag says: {error}; remove the tag.") from error
    finally:
        loader.dispose()


def _check_nodes(root: yaml.Node) -> None:
    """Raise _Refused for a plain None, for recursive aliases, and for aliases that expand to too many values."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size(node: yaml.Node) -> int:
        if id(node) in open_nodes:
            raise _Refused(f"the alias in line {node.start_mark.line + 1} contains itself.")
        if id(node) not in sizes:
            open_nodes.add(id(node))
            sizes[id(node)] = 1 + sum(map(size, _children(node)))
            open_nodes.remove(id(node))
        if sizes[id(node)] > MAX_NODES:
            raise _Refused(f"more than {MAX_NODES} values after expanding aliases, which is too many for a config.")
        return sizes[id(node)]

    size(root)


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [child for pair in node.value for child in pair]
    if isinstance(node, yaml.SequenceNode):
        return list(node.value)
    if isinstance(node, yaml.ScalarNode) and node.style is None and node.value == "None":
        raise _Refused('None is plain text in YAML; write null for no value, or "None" in quotes for the text.')
    return []
