"""Where an Optuna study lies: a file of SQLite, or a database that several machines share."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import optuna
import sqlalchemy
from optuna.exceptions import ExperimentalWarning, OptunaError
from optuna.storages import RDBStorage
from sqlalchemy import URL
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from tgdd_plugin.core.errors import InputError, brief, without_password

HEARTBEAT, GRACE = 10, 60
"""Seconds between a worker's signs of life, and after the last of them until another takes up what it was doing."""

TRIES, PAUSE = 4, 0.5
"""How often a database is tried to be opened, and the seconds in between."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences Optuna's line about every trial, and its warning that heartbeats are experimental."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)


def open_storage(where: str) -> RDBStorage:
    """Opens a database for studies.

    Args:
        where: A file for SQLite, which the processes of one machine can share and whose folder is made if there is
            none, or the URL of a database as SQLAlchemy writes it (``'postgresql://...'``), which workers on many
            machines can share.

    Raises:
        InputError: If it cannot be opened.
    """
    url = where
    if "://" not in where:  # whatever characters its name has
        url = URL.create("sqlite", database=where).render_as_string()
    local = url.startswith("sqlite")
    # A file is quick to open, so that a connection is kept for one transaction alone, and none stays behind a search.
    arguments = {"connect_args": {"timeout": GRACE}, "poolclass": NullPool} if local else None
    for left in reversed(range(TRIES)):
        try:
            if "://" not in where:
                Path(where).parent.mkdir(parents=True, exist_ok=True)
            with quiet():
                storage = RDBStorage(url, arguments, heartbeat_interval=HEARTBEAT, grace_period=GRACE)
            break
        except (SQLAlchemyError, OptunaError, ImportError, RuntimeError, OSError, ValueError) as error:
            if not left:
                raise InputError(
                    f"'{without_password(where)}' cannot be used for a study ({brief(error)}). Name a new file, or the "
                    f"URL of a database."
                ) from error
            time.sleep(PAUSE)  # of processes that make the same tables at once, one succeeds
    if local:
        # SQLite has no row locks, so that two processes could take the same candidate: each transaction has the whole
        # file for itself. (SQLAlchemy, SQLite dialect: "Serializable isolation / Savepoints / Transactional DDL".)
        sqlalchemy.event.listen(storage.engine, "begin", lambda c: c.exec_driver_sql("BEGIN IMMEDIATE"))
    return storage
