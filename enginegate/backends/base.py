"""What the core asks of whatever runs engines.

Every call is repeatable: names derive from `engine_id`, so that after a crash
`inspect` finds what `start` made, and doing a thing twice is doing it once.
"Could not ask" is an error (`BackendError` with `unavailable`), never "absent".
"""

from collections.abc import AsyncIterator, Sequence
from enum import StrEnum
from typing import Protocol

from msgspec import Struct


class Presence(StrEnum):
    """What the backend says of an engine."""

    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"
    ABSENT = "absent"


class EngineSpec(Struct, frozen=True, kw_only=True):
    """What an engine is started from; equal specs give equal engines.

    `key_hashes` are SHA-256 in hex, the first one in force; `port` is the port on
    the host. `fresh` says that it has never been in service, so that its data may be
    made; the data of any other is never replaced by an empty place.
    """

    engine_id: str
    engine_version: str
    port: int
    key_hashes: tuple[str, ...]
    fresh: bool = True


class Observation(Struct, frozen=True, kw_only=True):
    """What is known of one engine right now.

    `life` names one life of the process or container (pid and start time, or
    container id and StartedAt); another life means that it was restarted.
    `key_hash` is the hash it was started with, None where that is not known.
    `restarts` counts restarts that the backend made by itself since it was started.
    `restarting` is True while the backend is about to start it again by itself.
    `connected` is False where it is cut off from the network it is served on.
    `data_lost` is True where neither the engine nor its data are there, which `detail`
    names (a listing need not look for them, and says that it is absent).
    `image` names the content it was made from, where it was made from an image.
    `keyed` is False after a start that leaves the key file to a `put_key`: the engine has
    its key by the variable, and its boot need not wait for the file.
    """

    engine_id: str
    presence: Presence
    life: str = ""
    key_hash: str | None = None
    port: int | None = None
    engine_version: str | None = None
    exit_code: int | None = None
    restarts: int = 0
    restarting: bool = False
    connected: bool = True
    data_lost: bool = False
    image: str = ""
    keyed: bool = True
    detail: str = ""


class BackendEvent(Struct, frozen=True, kw_only=True):
    """A hint that an engine changed; the listing is the truth.

    `kind` is `exited`, `started`, `paused`, `unpaused` or `removed`; with an empty
    `engine_id` it is `blind` (no events come until further notice) or `resync` (they
    do; some may have been lost, so compare everything).
    """

    kind: str
    engine_id: str = ""
    life: str = ""
    exit_code: int | None = None


class Usage(Struct, frozen=True, kw_only=True):
    """Consumption since the engine's life began; None where it cannot be read.

    `wanted_s` is the time for which its living threads have run or waited for a processor:
    on an overbooked machine it tells work from waiting where `cpu_s` cannot.
    """

    cpu_s: float | None = None
    wanted_s: float | None = None
    rx_bytes: int | None = None
    tx_bytes: int | None = None


class Connection(Struct, frozen=True):
    """An established connection to the engine's port; `quiet_s` since anything moved on it."""

    quiet_s: float


class Backend(Protocol):
    name: str

    async def open(self) -> None:
        """Connect; an unreachable backend is no error here, it shows in `ping`."""
        ...

    async def close(self) -> None:
        """Let go of everything but the engines, which stay up. May be called twice."""
        ...

    async def ping(self) -> bool:
        """Return whether the backend can be asked."""
        ...

    def url(self, spec: EngineSpec) -> str:
        """Return where products reach the engine."""
        ...

    async def prepare(self, spec: EngineSpec) -> None:
        """Fetch what a start needs and may be long in coming: the image.

        Raises:
            ImageUnavailableError: the image cannot be had.
            BackendError: anything else.
        """
        ...

    async def start(self, spec: EngineSpec) -> Observation:
        """Make the engine exist and run according to the spec, on its own data.

        Creates what is missing, replaces what differs from the spec (the volume is
        kept), starts what is stopped, leaves alone what runs as the spec says, and
        thaws what is frozen. Does not wait for health. Returns what runs now.

        Raises:
            PortTakenError: another program holds the port.
            DataLostError: it is not fresh, and its data are not there.
            ImageUnavailableError: the image cannot be had.
            BackendError: anything else.
        """
        ...

    async def stop(self, engine_id: str, *, grace_s: float) -> None:
        """Stop it: SIGTERM, wait up to `grace_s`, SIGKILL. Frozen ones are thawed first."""
        ...

    async def pause(self, engine_id: str) -> None:
        """Freeze a running engine; a frozen one stays frozen.

        Raises:
            NotRunningError: it has no process.
            BackendError: anything else.
        """
        ...

    async def unpause(self, engine_id: str) -> Observation:
        """Thaw a frozen engine; a running one stays running. Returns what runs now.

        Raises:
            NotRunningError: it has no process.
            BackendError: anything else.
        """
        ...

    async def reconnect(self, engine_id: str) -> None:
        """Bring an engine that was taken off its network back onto it, as it is; else nothing."""
        ...

    async def destroy(self, engine_id: str) -> None:
        """Remove the engine at once and for ever, with its data. Absent is done."""
        ...

    async def inspect(self, engine_id: str) -> Observation:
        """Return what is known; `ABSENT` only when the backend says so itself."""
        ...

    async def list(self) -> Sequence[Observation]:
        """Return every engine of this instance; complete, or it raises."""
        ...

    async def remove_orphan(self, engine_id: str) -> None:
        """Stop and remove an engine that has no row; its data is never touched."""
        ...

    async def logs(self, engine_id: str, *, lines: int) -> Sequence[str]:
        """Return its last log lines, oldest first; empty when there are none."""
        ...

    async def trim_logs(self) -> None:
        """Cut logs that have grown over their bound, where nobody else bounds them."""
        ...

    async def usage(self, engine_id: str) -> Usage:
        """Return what it has consumed."""
        ...

    async def connections(self, engine_id: str, *, port: int) -> Sequence[Connection]:
        """Return the established connections to its port, our own probes excepted."""
        ...

    async def put_key(
        self, engine_id: str, key_hashes: Sequence[str], *, first: bool = False
    ) -> None:
        """Replace the engine's key file, never half of it; `first`: there is none to replace."""
        ...

    def watch(self) -> AsyncIterator[BackendEvent]:
        """Yield events for as long as it is iterated; redials by itself."""
        ...
