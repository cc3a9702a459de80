"""Starting an engine's process, and finding those that are there already. All of it blocks."""

import errno
import os
import re
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from enginegate.backends import proc
from enginegate.backends.base import EngineSpec
from enginegate.backends.process_files import Files, Record, ticks_now
from enginegate.backends.process_life import Life
from enginegate.errors import BackendError, ConfigError, DataLostError, PortTakenError

ENGINE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
BASE_VARIABLES = ("PATH", "HOME", "LANG", "TZ")
OWN_PREFIX = "ENGINEGATE_"
SAMPLE_COMMAND: Final[list[str]] = [
    sys.executable,
    "-I",  # neither the caller's directory nor PYTHON variables reach it
    "-S",  # no site-packages: it starts in half the time
    str(Path(__file__).resolve().parents[1] / "sample_engine.py"),
]


def checked(engine_id: str) -> str:
    """Return the id, which names files; anything that is none of ours is a bug."""
    if not ENGINE_ID.fullmatch(engine_id):
        raise ValueError(f"no engine id: {engine_id!r}")
    return engine_id


def base_environ(
    env: Mapping[str, str], passthrough: Sequence[str], catalog_dir: str
) -> dict[str, str]:
    """Return what every engine finds in its environment, and nothing else of ours."""
    secret = [name for name in passthrough if name.startswith(OWN_PREFIX)]
    if secret:
        raise ConfigError([f"engine.env_passthrough: {name} is ours alone" for name in secret])
    named = {name: os.environ[name] for name in passthrough if name in os.environ}
    base = {name: os.environ[name] for name in BASE_VARIABLES if name in os.environ}
    catalog = {"CATALOG_DIR": str(Path(catalog_dir).resolve())} if catalog_dir else {}
    return {**base, **named, **env, **catalog}


class Launcher:
    """Starts `command` for a spec, and knows its processes by record and environment."""

    def __init__(
        self,
        files: Files,
        *,
        command: Sequence[str],
        env: Mapping[str, str],
        publish_address: str,
        default_version: str,
    ) -> None:
        first, *rest = command
        # A relative path is ours: engines run in their own directories.
        self._command = [str(Path(first).absolute()) if "/" in first else first, *rest]
        self._files = files
        self._env = dict(env)
        self._publish_address = publish_address
        self._default_version = default_version

    def fits(self, record: Record, spec: EngineSpec) -> bool:
        """Return whether the recorded process is what the spec asks for."""
        same = (record.engine_version, record.port) == (self._version(spec), spec.port)
        return same and spec.key_hashes[0] in {record.key_hash, *record.delivered}

    def begin(self, spec: EngineSpec, *, known: bool) -> Record:
        """Make ready, and write down that a start was begun.

        A known engine whose data is gone is not started on an empty directory: that
        would hide the loss.
        """
        data = self._files.data(spec.engine_id)
        if (known or not spec.fresh) and not data.is_dir():
            raise DataLostError("start", spec.engine_id, f"data directory {spec.engine_id}")
        self._need_port(spec)
        data.mkdir(mode=0o700, exist_ok=True)
        self._files.write_key(spec.engine_id, spec.key_hashes)
        record = Record(
            engine_id=spec.engine_id,
            engine_version=self._version(spec),
            port=spec.port,
            key_hash=spec.key_hashes[0],
            boot_id=proc.boot_id(),
            start_ticks=ticks_now(),
        )
        self._files.write_record(record)
        return record

    def run(self, spec: EngineSpec, begun: Record) -> Life:
        """Start the process and write down which one it is."""
        log = self._files.open_log(spec.engine_id)
        try:
            process = subprocess.Popen(  # noqa: S603 - the operator's own command
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._files.data(spec.engine_id),
                env=self._env | self._identity(spec),
                start_new_session=True,
            )
        except OSError as fault:
            detail = f"cannot run {self._command[0]}: {fault.strerror}"
            raise BackendError("start", spec.engine_id, detail) from fault
        finally:
            os.close(log)
        process.returncode = 0  # we wait through the pidfd; Popen shall not
        pidfd, stat = os.pidfd_open(process.pid), proc.read_stat(process.pid)
        assert stat is not None, "a child that nobody waited for is there"
        record = msgspec.structs.replace(begun, pid=process.pid, start_ticks=stat.start_ticks)
        self._files.write_record(record)
        return Life(record, pidfd)

    def find_all(self) -> list[tuple[Life | None, Record]]:
        """Return every engine that has a record, or a process that bears its environment."""
        records = {record.engine_id: record for record in self._files.records()}
        records |= {record.engine_id: record for record in self._unrecorded(records)}
        return [(Life.find(record), record) for record in records.values()]

    def _unrecorded(self, records: Mapping[str, Record]) -> list[Record]:
        """Return records for processes that were started and not written down.

        The oldest leader is the engine; younger ones are sessions that it opened itself.
        One older than the start that was begun is left over from an earlier life.
        """
        found: dict[str, Record] = {}
        leaders = [one for one in proc.processes() if one.leads_session and not one.over]
        for one in sorted(leaders, key=lambda stat: stat.start_ticks):
            record = self._from_environ(one)
            if record is None or record.engine_id in found:
                continue
            known = records.get(record.engine_id)
            begun = known is not None and known.pid is None
            if known is None or (begun and one.start_ticks >= known.start_ticks - 1):
                found[record.engine_id] = record
                with suppress(OSError):  # on a full disk: it is found the same way again
                    self._files.write_record(record)
        return list(found.values())

    def _from_environ(self, stat: proc.Stat) -> Record | None:
        env = proc.read_environ(stat.pid)
        engine_id, port = env.get("ENGINE_ID", ""), env.get("PORT", "")
        if self._files.owner(env.get("ENGINE_DATA_DIR", "")) != engine_id or not port.isdecimal():
            return None
        return Record(
            engine_id=engine_id,
            engine_version=env.get("ENGINE_VERSION", ""),
            port=int(port),
            key_hash=env.get("ENGINE_KEY_HASH", ""),
            boot_id=proc.boot_id(),
            start_ticks=stat.start_ticks,
            pid=stat.pid,
        )

    def _identity(self, spec: EngineSpec) -> dict[str, str]:
        return {
            "PORT": str(spec.port),
            "ENGINE_ID": spec.engine_id,
            "ENGINE_VERSION": self._version(spec),
            "ENGINE_KEY_HASH": spec.key_hashes[0],
            "ENGINE_KEY_HASH_FILE": str(self._files.key_file(spec.engine_id)),
            "ENGINE_DATA_DIR": str(self._files.data(spec.engine_id)),
        }

    def _version(self, spec: EngineSpec) -> str:
        return spec.engine_version or self._default_version

    def _need_port(self, spec: EngineSpec) -> None:
        """Refuse a port that somebody listens on; one in TIME_WAIT is free."""
        address = self._publish_address
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, spec.port))
            except OSError as fault:
                if fault.errno not in {errno.EADDRINUSE, errno.EACCES}:
                    raise
                detail = f"port {spec.port}: {fault.strerror}"
                raise PortTakenError("start", spec.engine_id, detail) from fault
