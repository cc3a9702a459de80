"""The Docker Engine's answers, as far as we read them (a container's are in `container`)."""

from msgspec import Struct


class Listed(Struct, rename="pascal"):
    """A line of the container listing."""

    names: list[str] | None = None
    labels: dict[str, str] | None = None


class Network(Struct, rename="pascal", frozen=True):
    id: str
    name: str
    created: str = ""
    labels: dict[str, str] | None = None
    options: dict[str, str] | None = None


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
