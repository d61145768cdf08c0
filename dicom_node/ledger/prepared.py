"""Statements that are compiled once and run by SQLite's driver: what reception writes per image.

Knows SQLAlchemy's compiler. SQLAlchemy takes ten times as long to put such a statement together as
SQLite takes to run it. Values go to the driver as they are: numbers, texts and None.
"""

import sqlite3
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.dialects.sqlite import dialect
from sqlalchemy.sql.expression import ClauseElement

DIALECT = dialect()


class Prepared:
    """One statement.

    Parameters
    ----------
    columns
        Of an INSERT: those that get a value.
    """

    def __init__(self, statement: ClauseElement, *columns: str) -> None:
        compiled: Any = statement.compile(dialect=DIALECT, column_keys=list(columns) or None)
        self._text = str(compiled)
        self._order: tuple[str, ...] = tuple(compiled.positiontup)
        self._fixed = {key: value for key, value in compiled.params.items() if value is not None}

    def run(self, connection: Connection, values: Mapping[str, object]) -> sqlite3.Cursor:
        """Run it in the connection's transaction; what it returns is fetched from the cursor."""
        given = self._fixed | dict(values)
        return driver(connection).execute(self._text, [given[name] for name in self._order])


def driver(connection: Connection) -> sqlite3.Connection:
    """Give what SQLAlchemy's connection holds."""
    return connection.connection.driver_connection  # type: ignore[return-value]
