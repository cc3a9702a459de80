"""One life of an engine's process: a session of its own, held by a pidfd.

The pidfd names this process and no later one with the same number, becomes readable
when it ends, and works alike for our own children and for those of an earlier
enginegate.
"""

import asyncio
import os
import select
import signal
import time
from contextlib import suppress
from typing import Self

from enginegate.backends import proc
from enginegate.backends.process_files import Record

AWAKE_WAIT_S = 0.1
AWAKE_PAUSE_S = 0.002
SIGNAL_BASE = 128  # as shells and Docker write it: killed by signal n is 128 + n


class Life:
    """A process from when we learned of it until it ended.

    `expected` is set while we end it ourselves; such an end is no event. `cleared` is
    set when nothing of the session is left.
    """

    def __init__(self, record: Record, pidfd: int) -> None:
        assert record.pid is not None
        self.record = record
        self.pid = record.pid
        self.pidfd = pidfd
        self.expected = False
        self.over = False
        self.exit_code: int | None = None
        self.ended = asyncio.Event()
        self.cleared = asyncio.Event()

    @classmethod
    def find(cls, record: Record) -> Self | None:
        """Return the life that the record tells of, if it is still going on."""
        if record.pid is None or record.boot_id != proc.boot_id():
            return None
        try:
            pidfd = os.pidfd_open(record.pid)
        except OSError:
            return None
        stat = proc.read_stat(record.pid)
        if stat is None or stat.start_ticks != record.start_ticks:
            os.close(pidfd)  # the number was given to another process
            return None
        return cls(record, pidfd)

    @property
    def name(self) -> str:
        return f"{self.record.boot_id[:8]}.{self.pid}.{self.record.start_ticks}"

    def has_ended(self) -> bool:
        """Ask the kernel; a zombie has ended."""
        if self.over:
            return True
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return bool(poll.poll(0))

    def stat(self) -> proc.Stat | None:
        """Return what /proc says of this very process."""
        stat = proc.read_stat(self.pid)
        ours = stat is not None and stat.start_ticks == self.record.start_ticks
        return stat if ours else None

    def frozen(self) -> bool:
        stat = self.stat()
        return stat is not None and stat.state == proc.STOPPED

    def send(self, number: signal.Signals) -> None:
        """Signal the whole group; one that has ended hears nothing."""
        if not self.has_ended():
            with suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    async def ask_to_end(self) -> None:
        """Send SIGTERM; a frozen process is thawed first, and its main thread awake again.

        The kernel gives a signal to any thread that can take one, and of a process that is
        just being woken that is any. Where only the main thread acts on signals, as in
        CPython, it would sleep on in its system call and hear nothing until the SIGKILL.
        """
        if self.frozen():
            self.send(signal.SIGCONT)
            until = time.monotonic() + AWAKE_WAIT_S
            while (stat := self.stat()) and stat.state == proc.RUNNING:
                if time.monotonic() > until:
                    break  # it is at work, so it has been through what was pending
                await asyncio.sleep(AWAKE_PAUSE_S)
        self.send(signal.SIGTERM)

    def collect(self) -> bool:
        """Take the exit code and bury the process; False where it was no child of ours.

        As long as a child is not buried its number stays taken, so that the rest of
        its group can be killed by that number.
        """
        self.over = True
        try:
            os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return False
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        end = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOHANG)
        if end is not None:
            killed = end.si_code != os.CLD_EXITED
            self.exit_code = end.si_status + SIGNAL_BASE * killed
        return True

    def close(self) -> None:
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


def sweep(record: Record, data_dir: str) -> None:
    """Kill what is left of a session whose leader is gone. Blocks; walks all of /proc.

    Nobody else can be hit: a number is not given to a new process while a session
    bears it, and whoever is killed carries our engine's environment.
    """
    if record.pid is None or record.boot_id != proc.boot_id():
        return
    for one in proc.session(record.pid):
        ours = proc.read_environ(one.pid).get("ENGINE_DATA_DIR") == data_dir
        if ours and one.start_ticks >= record.start_ticks and one.pid != record.pid:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(one.pid, signal.SIGKILL)
