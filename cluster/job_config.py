"""The config of a submitted job: complete, with absolute paths and without secrets."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args
from urllib.parse import unquote

import yaml
from pydantic import BaseModel

from rlsys import env
from rlsys.config.part import ConfigError
from rlsys.config.run import ModelConfig, RunConfig, parse
from rlsys.hub import reference
from rlsys.tracking.store_address import quoted_path
from rlsys.urls import has_secret, masked_url

_SQLITE = re.compile(r"(sqlite(?:\+\w+)?:///)([^?]*)(.*)", re.S)
_SERVER = re.compile(r"\w[\w+.-]*://|databricks\b|uc\b")
REMEDIES = {
    "tracking.uri": "leave it out and set MLFLOW_TRACKING_URI, or MLFLOW_TRACKING_USERNAME and "
    "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, here, where they become variables of the job, or",
    "reward.judge.urls": "give the key in the variable that reward.judge.api_key_env names",
}
"""What to do instead of a secret in a URL."""
TRACKING_SECRETS = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
"""MLflow's own variables for access to a tracking server."""


def job_config(config: RunConfig) -> RunConfig:
    """Return `config` with every relative path made absolute, as seen from here.

    A job runs in a folder of its own, which Ray removes afterwards: nothing may be written or looked for there.
    The paths must mean the same on the cluster's nodes, as they do on one machine or a shared file system.
    Raises ConfigError for a URL with a secret in it, and for a path that cannot be made absolute.
    """
    tree = config.model_dump(mode="json", exclude_unset=True)
    _refuse_secrets(tree)
    _make_paths_absolute(tree, RunConfig)
    judge = tree.get("reward", {}).get("judge", {})
    if (model := judge.get("serve_model")) and (model.startswith(".") or Path(model).exists()):
        judge["serve_model"] = str(Path(model).absolute())
    if uri := tree.get("tracking", {}).get("uri"):
        tree["tracking"]["uri"] = absolute_uri(uri)
    return parse(tree, source="the config of the job")


def as_yaml(config: RunConfig) -> str:
    """Return what is set in `config` as YAML that `rlsys.config.run.load` reads back the same."""
    tree = config.model_dump(mode="json", exclude_unset=True)
    return yaml.dump(tree, Dumper=_QuotedText, sort_keys=False, allow_unicode=True, width=1 << 20)


def absolute_uri(uri: str) -> str:
    """Return an MLflow tracking URI with the path of a file or folder on this machine made absolute.

    Raises ConfigError for an SQLite URI of the form `file:…`, whose path SQLite itself reads.
    """
    if sqlite := _SQLITE.fullmatch(uri):
        start, path, query = sqlite.groups()
        if path.startswith("file:"):
            raise ConfigError(
                f"tracking.uri={masked_url(uri)}: a job needs an absolute path; write sqlite:////folder/mlflow.db."
            )
        return uri if path in ("", ":memory:") else f"{start}{quoted_path(str(Path(unquote(path)).absolute()))}{query}"
    if uri.startswith("file:") and not uri.startswith("file:/"):
        return f"file:{Path(uri.removeprefix('file:')).absolute()}"
    return uri if _SERVER.match(uri) or uri.startswith("file:") else str(Path(uri).absolute())


def tracking_variables(config: RunConfig) -> dict[str, str]:
    """Return the variables with which a job reaches the MLflow store that a run would use here.

    They are for the job's environment alone, which those who may use the cluster can read: they hold secrets.
    """
    found = {name: value for name in TRACKING_SECRETS if (value := env.read(name))}
    if config.tracking.uri is None and (uri := env.read("MLFLOW_TRACKING_URI")):
        found["MLFLOW_TRACKING_URI"] = absolute_uri(uri)
    return found


class _QuotedText(yaml.SafeDumper):
    """Puts every text in quotes: SafeDumper's rules for plain text are not those of our reader."""


_QuotedText.add_representer(str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"'))


def _make_paths_absolute(tree: dict[str, Any], part: type[BaseModel]) -> None:
    for name, field in part.model_fields.items():
        kind, value = field.annotation, tree.get(name)
        if isinstance(value, dict) and isinstance(kind, type) and issubclass(kind, BaseModel):
            _make_paths_absolute(value, kind)
        elif isinstance(value, list):
            for entry in get_args(kind)[:1]:
                if isinstance(entry, type) and issubclass(entry, BaseModel):
                    for one in value:
                        _make_paths_absolute(one, entry)
        elif value is not None and Path in (kind, *get_args(kind)):
            if reference(Path(value), is_model=part is ModelConfig and not tree.get("make_tiny")) is not None:
                continue  # each node has its own cache of the hub
            tree[name] = str(Path(value).absolute())


def _refuse_secrets(tree: Mapping[str, Any]) -> None:
    for name, text in _texts(tree, ""):
        if has_secret(text):
            remedy = REMEDIES.get(name, "give it in an environment variable")
            raise ConfigError(
                f"{name}={masked_url(text)} holds a secret, and a job's files can be read on the cluster; {remedy} "
                "in the environment of the cluster's nodes."
            )


def _texts(value: object, name: str) -> Iterator[tuple[str, str]]:
    """Yield all texts of a tree, keys included, with the names of their fields (`a.b`)."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield name, str(key)
            yield from _texts(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner, name)
    elif isinstance(value, str):
        yield name, value
