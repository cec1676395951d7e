"""The address of a run's MLflow store, and a check for its database driver that does not load MLflow."""

from __future__ import annotations

import os
from importlib.metadata import entry_points
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import unquote, urlsplit

from rlsys import env
from rlsys.config.run import RunConfig
from rlsys.errors import UserError
from rlsys.files import why_not_writable
from rlsys.urls import masked_url, why_not_http

SQLITE = "sqlite:///"
SQLITE_HEAD = b"SQLite format 3\0"
"""How every SQLite file begins that holds anything."""
DATABASES = ("postgresql", "mysql", "mssql")
PACKAGES = {"psycopg": "psycopg[binary]", "psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}
"""Package names by the name of the module, where they differ."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class TrackingError(UserError):
    """The store cannot be used as the config says; the message names it and the remedy."""


def store_uri(config: RunConfig) -> str:
    """Return the URI of a run's store: its config's, else `MLFLOW_TRACKING_URI`, else a file in `output_dir`."""
    variable = (env.read("MLFLOW_TRACKING_URI") or "").strip()
    return config.tracking.uri or variable or sqlite_uri(Path(config.output_dir) / "mlflow.db")


def sqlite_uri(file: Path) -> str:
    """Return the URI of an SQLite file, links resolved."""
    return f"{SQLITE}{quoted_path(os.path.realpath(file))}"


def quoted_path(path: str) -> str:
    """Return a path as it stands in an SQLite URI, where `%` and `?` of names would be read as signs."""
    return path.replace("%", "%25").replace("?", "%3F")


def sqlite_file(uri: str) -> Path | None:
    """Return the file of an SQLite URI, links resolved, the same for every spelling; None for another store."""
    if not uri.startswith(SQLITE):
        return None
    return Path(os.path.realpath(unquote(uri.removeprefix(SQLITE).partition("?")[0])))


def require_driver(uri: str) -> None:
    """Raise TrackingError for an address that MLflow cannot use, and for a database whose driver is not installed."""
    if why := _why_no_store(uri):
        raise TrackingError(
            f"{_named(uri)}: {why}; give http://HOST:PORT of an MLflow server, sqlite:///FILE, the "
            f"address of a database ({', '.join(DATABASES)}), or null for a file in output_dir."
        )
    if uri.partition("://")[0].partition("+")[0] not in DATABASES:
        return
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError

    try:
        make_url(uri).get_dialect().import_dbapi()
    except ImportError as error:
        module = (error.name or "").partition(".")[0]
        raise TrackingError(
            f"{_named(uri)}: needs the Python package {PACKAGES.get(module, module)}, which is not "
            "installed; install it, or give the http address of an MLflow server."
        ) from error
    except (ArgumentError, NoSuchModuleError) as error:
        raise TrackingError(f"{_named(uri)}: not the address of a database: {error}") from error


def _named(uri: str) -> str:
    return f"MLflow store {masked_url(uri)} (of tracking.uri, or of MLFLOW_TRACKING_URI where that is null)"


def _why_no_store(uri: str) -> str:
    """Return why no store of MLflow can be at this address, "" if one can."""
    scheme = uri.partition(":")[0] if ":" in uri else ""
    kind = scheme.partition("+")[0].lower()
    if kind in ("http", "https"):
        return why_not_http(uri)
    if kind == "sqlite":
        return _why_no_database(uri) if uri.startswith(SQLITE) and uri != SQLITE else "has no file behind three slashes"
    if kind in (*DATABASES, "databricks") or uri == "databricks":
        return ""
    if kind in ("", "file"):
        is_allowed = (env.read("MLFLOW_ALLOW_FILE_STORE") or "").lower() in ("1", "true")
        return "" if is_allowed else "MLflow takes a folder only where MLFLOW_ALLOW_FILE_STORE=true is set"
    known = {one.name for one in entry_points(group="mlflow.tracking_store")}
    return "" if scheme in known else f"MLflow has no store of the kind {scheme}"


def _why_no_database(uri: str) -> str:
    """Return why no store can be in the file of an SQLite URI, "" if one can be there or made there."""
    path = uri.removeprefix(SQLITE)
    if path.startswith((":memory:", "file:")):
        return "names no file of its own, which all processes would find"
    try:
        file = sqlite_file(uri)
        if file is None or file.is_dir():
            return "is a folder"
        if not file.exists():
            return why_not_writable(file.parent)
        if not file.is_file():
            return "is neither a file nor a folder, but a pipe, socket or device"
        if not os.access(file, os.R_OK | os.W_OK, effective_ids=True):
            return "cannot be read or written by this user"
        with file.open("rb") as opened:
            head = opened.read(len(SQLITE_HEAD))
    except (OSError, ValueError) as error:
        return f"cannot be opened ({error})"
    if head not in (b"", SQLITE_HEAD):
        return f"file is not a database: it begins with {head!r}"
    return why_not_writable(file.parent)  # where SQLite keeps what it is about to write


def is_own_address(host: str | None) -> bool:
    """Return whether a numeric address is of this machine alone: all of 127.0.0.0/8, or 0.0.0.0 as servers print it."""
    try:
        address = ip_address(host or "")
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def bypass_proxy(uri: str) -> None:
    """Exempt a server on loopback from `http_proxy`, in this process: a proxy elsewhere cannot reach it."""
    try:
        host = urlsplit(uri).hostname
    except ValueError:
        return
    if host not in LOOPBACK and not is_own_address(host):
        return
    own = dict.fromkeys((*LOOPBACK, str(host)))
    for name in ("no_proxy", "NO_PROXY"):
        exempt = [one for one in os.environ.get(name, "").split(",") if one.strip()]
        os.environ[name] = ",".join([*exempt, *(one for one in own if one not in exempt)])
