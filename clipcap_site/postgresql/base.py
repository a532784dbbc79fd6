"""PostgreSQL connections that are given up after some seconds without a response.

The server's own `statement_timeout` ends what is slow or waits for a lock, and TCP notices a network that is cut.
Neither helps where the server is frozen while its kernel goes on answering, as in a paused container.
"""

from typing import Any

import psycopg
from django.db.backends.postgresql import base
from psycopg.abc import RV, PQGen
from psycopg.errors import _WaitTimeout


class PatientConnection(psycopg.Connection[Any]):
    """A connection that breaks when the server says nothing for `patience` seconds; None waits for good."""

    patience: float | None = None

    def wait(self, gen: PQGen[RV], interval: float = 0.1, timeout: float | None = None) -> RV:
        """Wait for the server.

        Raises:
            psycopg.OperationalError: it did not answer in time. What became of the statement is unknown, and so the
                connection is closed.
        """
        try:
            return super().wait(gen, interval, self.patience if timeout is None else timeout)
        except _WaitTimeout:
            self.pgconn.finish()
            raise


class DatabaseWrapper(base.DatabaseWrapper):
    """Takes one more of OPTIONS: `patience`, in seconds."""

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        patience = conn_params.pop("patience", None)
        connection = super().get_new_connection(conn_params)
        connection.__class__ = PatientConnection
        connection.patience = patience
        return connection
