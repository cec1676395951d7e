"""The address of a run's MLflow store, and a check for its database driver that does not load MLflow."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

from rlsys import env
from rlsys.config.run import RunConfig
from rlsys.errors import UserError
from rlsys.urls import masked_url

SQLITE = "sqlite:///"
DATABASES = ("postgresql", "mysql", "mssql")
PACKAGES = {"psycopg": "psycopg[binary]", "psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}
"""Package names by the name of the module, where they differ."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class TrackingError(UserError):
    """The store cannot be used as the config says; the message names it and the remedy."""


def store_uri(config: RunConfig) -> str:
    """Return the URI of a run's store: its config's, else `MLFLOW_TRACKING_URI`, else a file in `output_dir`."""
    default = f"{SQLITE}{Path(config.output_dir).resolve() / 'mlflow.db'}"
    return config.tracking.uri or env.read("MLFLOW_TRACKING_URI") or default


def require_driver(uri: str) -> None:
    """Raise TrackingError if the driver of a database is not installed."""
    if uri.partition("://")[0].partition("+")[0] not in DATABASES:
        return
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError

    try:
        make_url(uri).get_dialect().import_dbapi()
    except ImportError as error:
        module = (error.name or "").partition(".")[0]
        raise TrackingError(
            f"tracking.uri={masked_url(uri)}: needs the Python package {PACKAGES.get(module, module)}, which is not "
            "installed; install it, or give the http address of an MLflow server."
        ) from error
    except (ArgumentError, NoSuchModuleError) as error:
        raise TrackingError(f"tracking.uri={masked_url(uri)}: not the address of a database: {error}") from error


def bypass_proxy(uri: str) -> None:
    """Exempt a server on loopback from `http_proxy`, in this process: a proxy elsewhere cannot reach it."""
    try:
        host = urlsplit(uri).hostname
    except ValueError:
        return
    if host not in LOOPBACK:
        return
    for name in ("no_proxy", "NO_PROXY"):
        exempt = [one for one in os.environ.get(name, "").split(",") if one.strip()]
        os.environ[name] = ",".join([*exempt, *(one for one in LOOPBACK if one not in exempt)])
