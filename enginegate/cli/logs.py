"""Logging of the server: one JSON object a line on stderr, whatever a message holds."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Final

from enginegate.cli.plain import one_line, shortened

LEVELS: Final = ("debug", "info", "warning", "error")
_MESSAGE_MAX: Final = 8_192
_TRACE_MAX: Final = 32_768
_CHATTY: Final = ("httpx", "httpcore", "asyncio", "aiodocker")


class OneLine(logging.Formatter):
    """A record as `at`, `level`, `logger`, `message`, and `trace` where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC)
        fields = {
            "at": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": shortened(one_line(record.getMessage()), _MESSAGE_MAX),
        }
        if record.exc_info:
            trace = self.formatException(record.exc_info)
            lines = " | ".join(one_line(line) for line in trace.splitlines())
            fields["trace"] = shortened(lines, _TRACE_MAX)
        return json.dumps(fields, ensure_ascii=False)


def configure(level: str) -> None:
    """Send all records of this level and above to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine())
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLogger().level))
