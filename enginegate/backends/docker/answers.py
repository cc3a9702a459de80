"""The Docker Engine's answers, as far as we read them (a container's are in `container`)."""

import re
from typing import Final

from msgspec import Struct, field

# How the Engine writes how long ago something was, and the most seconds that can mean.
_AGE: Final = re.compile(
    r"(?P<count>\d+|About an?|Less than a) "
    r"(?P<unit>second|minute|hour|day|week|month|year)s?"
)
_UNIT_S: Final = {
    "second": 1,
    "minute": 60,
    "hour": 3_600,
    "day": 86_400,
    "week": 7 * 86_400,
    "month": 31 * 86_400,
    "year": 366 * 86_400,
}


class Attached(Struct, rename="pascal"):
    networks: dict[str, object] | None = None


class HostConfig(Struct, rename="pascal"):
    network_mode: str = ""


class Listed(Struct, rename="pascal"):
    """A line of the container listing."""

    id: str
    state: str
    names: list[str] | None = None
    labels: dict[str, str] | None = None
    status: str = ""
    host_config: HostConfig = field(default_factory=HostConfig)
    network_settings: Attached = field(default_factory=Attached)

    @property
    def connected(self) -> bool:
        return self.host_config.network_mode in {"", *(self.network_settings.networks or ())}

    @property
    def up_at_most_s(self) -> float | None:
        """Return the longest that "Up 3 minutes (Paused)" can mean; None if it says nothing."""
        found = _AGE.match(self.status.removeprefix("Up "))
        if found is None or not self.status.startswith("Up "):
            return None
        count = int(found["count"]) if found["count"].isdecimal() else 1
        return float((count + 1) * _UNIT_S[found["unit"]])


class Network(Struct, rename="pascal", frozen=True):
    id: str
    name: str
    created: str = ""
    labels: dict[str, str] | None = None
    options: dict[str, str] | None = None


class Volume(Struct, rename="pascal"):
    name: str


class Volumes(Struct, rename="pascal"):
    volumes: list[Volume] | None = None


class CpuUsage(Struct, frozen=True):
    total_usage: int = 0


class Cpu(Struct, frozen=True):
    cpu_usage: CpuUsage = CpuUsage()


class Interface(Struct):
    rx_bytes: int = 0
    tx_bytes: int = 0


class Stats(Struct):
    cpu_stats: Cpu = Cpu()
    networks: dict[str, Interface] | None = None


class ImageConfig(Struct, rename="pascal"):
    user: str | None = None


class Image(Struct, rename="pascal"):
    config: ImageConfig | None = None


class ExecState(Struct, rename="pascal"):
    exit_code: int | None = None


class Exec(Struct, rename="pascal"):
    id: str


class Message(Struct):
    message: str


class Progress(Struct):
    """A line of what the Engine says during a pull."""

    id: str = ""
    status: str = ""
    progress: str = ""
    error: str = ""
