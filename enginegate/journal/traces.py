"""What shows that a directory once had a journal, when no file of it is left.

A first start may be killed before its first segment has its real name: then there is
LOCK and perhaps a temporary file, and the next start begins. What is looked for here is
made later, when a segment is durably in place, and stays until an operator removes it:
the ballast, a torn end in the quarantine, an engine's data. Nothing with it but without
a journal has come about by itself, and to begin anew would hide the loss.
"""

from pathlib import Path

from enginegate.errors import JournalError
from enginegate.journal.files import EX_CONFIG, QUARANTINE, Listing, listing, unusable
from enginegate.journal.room import BALLAST
from enginegate.journal.storage import OsStorage, Storage

ENGINES = "engines"  # a directory for each engine of the process backend, made after its fact
_OS = OsStorage()


def demand_journal(directory: Path, *, storage: Storage = _OS) -> Listing:
    """Return what lies in a directory that holds a journal.

    Raises JournalError: exit code 78 where there is none, 65 where it is gone.
    """
    try:
        found = listing(storage, directory)
        if found.segments or found.snapshots:
            return found
        demand_never_begun(storage, directory)
    except OSError as error:
        raise unusable(directory, error) from error
    raise JournalError(
        "there is no journal in this directory",
        path=str(directory),
        hint="Give the right one as data_dir or with --data-dir; only `enginegate serve` begins"
        " a journal.",
        exit_code=EX_CONFIG,
    )


def demand_never_begun(storage: Storage, directory: Path) -> None:
    """See that a directory without a journal never had one. Raises JournalError, OSError."""
    traces = _traces(storage, directory)
    if not traces:
        return
    named = " and ".join(traces)
    raise JournalError(
        f"the journal is gone, and {named} {'shows' if len(traces) == 1 else 'show'}"
        " that there was one",
        path=str(directory),
        hint="Put back a copy that `enginegate journal backup` made. To begin without what was"
        f" there, use another data_dir, or move {named} out of this one.",
    )


def _traces(storage: Storage, directory: Path) -> list[str]:
    names = storage.names(directory)
    found = [name for name in (BALLAST, QUARANTINE) if name in names]
    # Made empty by a start that has no room to begin its journal, so that alone shows nothing.
    if ENGINES in names and storage.names(directory / ENGINES):
        found.append(ENGINES)
    return found
