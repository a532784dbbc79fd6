"""Logs as JSON lines, each with the ids that its message is about."""

import json
import logging
import socket
from datetime import UTC, datetime

from django.http import HttpRequest

_OWN = set(vars(logging.makeLogRecord({}))) | {
    "message",
    "asctime",
    "taskName",
    "server_time",
    "status_code",
}


class JsonLines(logging.Formatter):
    """Time, level, logger and message, and whatever the call gave as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        # Django's own messages carry the whole HTTP request, ours the id of a request of captions.
        given = vars(record).items()
        line |= {k: v for k, v in given if k not in _OWN and not isinstance(v, HttpRequest | socket.socket)}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)
