"""Settings and secrets of one enginegate, checked as a whole before anything starts.

Later sources win: `config.toml`, then `ENGINEGATE_SECTION__KEY`, then the command line.
What is unknown or impossible is refused, and all faults are listed at once.
Secrets come from the environment alone (or from files it names), never from the file.
"""

from enginegate.config.credentials import Secrets, master_keys, secrets
from enginegate.config.reading import absent, load, unread
from enginegate.config.settings import (
    Audit,
    Boot,
    Config,
    EngineSettings,
    Health,
    Idle,
    Limits,
    Pool,
    Ports,
    Restart,
    Server,
)

__all__ = [
    "Audit",
    "Boot",
    "Config",
    "EngineSettings",
    "Health",
    "Idle",
    "Limits",
    "Pool",
    "Ports",
    "Restart",
    "Secrets",
    "Server",
    "absent",
    "load",
    "master_keys",
    "secrets",
    "unread",
]
