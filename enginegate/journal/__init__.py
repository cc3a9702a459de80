"""The journal: the single writer of durable state, and the audit trail.

`Journal` is the files, `Committer` brings it to the event loop; `inspect` holds the
offline tools. The design, with its reasons, is in the README's architecture section.
"""

from enginegate.journal.backup import backup
from enginegate.journal.committer import Committer
from enginegate.journal.failures import JournalFailed, JournalFull
from enginegate.journal.inspect import VerifyReport, compact, dump, rekey, repair, verify
from enginegate.journal.journal import Journal
from enginegate.journal.opening import demand_key
from enginegate.journal.recovery import Position
from enginegate.journal.storage import OsStorage, Storage
from enginegate.journal.traces import demand_journal

__all__ = [
    "Committer",
    "Journal",
    "JournalFailed",
    "JournalFull",
    "OsStorage",
    "Position",
    "Storage",
    "VerifyReport",
    "backup",
    "compact",
    "demand_journal",
    "demand_key",
    "dump",
    "rekey",
    "repair",
    "verify",
]
