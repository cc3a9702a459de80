"""The settings as types: every key, its default and its limits. `config.toml` explains them."""

from pathlib import Path
from typing import Annotated, Any, Final, Literal

from msgspec import Meta, Struct

from enginegate.config.rules import memory_bytes
from enginegate.policy import SECONDS_MAX

_INT_MAX: Final = 2**31 - 1  # what sockets, Docker and the kernel take

Port = Annotated[int, Meta(ge=1, le=65_535)]
Count = Annotated[int, Meta(ge=0, le=_INT_MAX)]
AtLeastOne = Annotated[int, Meta(ge=1, le=_INT_MAX)]
Seconds = Annotated[float, Meta(ge=0, le=SECONDS_MAX)]
SomeSeconds = Annotated[float, Meta(gt=0, le=SECONDS_MAX)]


class Server(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65_535)] = 8000
    max_body_bytes: AtLeastOne = 65_536
    max_header_bytes: AtLeastOne = 16_384
    request_timeout_s: SomeSeconds = 10.0
    max_connections: AtLeastOne = 2000
    shutdown_grace_s: Seconds = 30.0


class Limits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    memory: str | int = "1g"
    cpus: Annotated[float, Meta(ge=0.01, le=4096)] = 1.0  # Docker takes no less than 0.01
    pids: AtLeastOne = 512
    profile: Literal["baseline", "strict"] = "baseline"

    @property
    def memory_bytes(self) -> int:
        size = memory_bytes(self.memory)
        assert size is not None  # `load` has refused anything else
        return size


class EngineSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    backend: Literal["process", "docker"] = "process"
    image: str = ""
    allowed_images: tuple[str, ...] = ()
    command: tuple[str, ...] = ()  # empty: the bundled sample engine
    container_port: Port = 8000
    health_path: str = "/health"
    url_mode: Literal["host", "network"] = "host"
    advertise_host: str = "127.0.0.1"
    publish_address: str = "127.0.0.1"
    network: str = "engine_net"
    wake_timeout_s: SomeSeconds = 10.0
    env: dict[str, str] = {}
    env_passthrough: tuple[str, ...] = ()
    catalog_dir: str = ""
    rotate_mode: Literal["recreate", "live"] = "recreate"
    key_overlap_s: Seconds = 60.0
    limits: Limits = Limits()

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """Return the settings for display; the values in `env` may be secret, its names are not."""
        shown = {name: getattr(self, name) for name in self.__struct_fields__}
        return [*(shown | {"env": dict.fromkeys(self.env, "***")}).items()]

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self.__rich_repr__())
        return f"EngineSettings({shown})"


class Ports(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    min: Port = 9001
    max: Port = 9999


class Boot(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    timeout_s: SomeSeconds = 60.0


class Health(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    interval_s: SomeSeconds = 30.0
    timeout_s: SomeSeconds = 10.0
    max_failures: AtLeastOne = 3
    concurrency: AtLeastOne = 50
    require_status_ok: bool = True


class Restart(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    backoff_base_s: Seconds = 5.0
    backoff_max_s: SomeSeconds = 300.0
    max_attempts: Count = 8


class Idle(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    sleep_after_s: Seconds = 900.0
    connection_idle_s: SomeSeconds = 900.0
    stop_after_s: Seconds = 0.0
    min_available_memory_mb: Count = 0


class Pool(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    size: Count = 0


class Audit(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    retention_days: Annotated[int, Meta(ge=0, le=36_500)] = 90
    max_mb: AtLeastOne = 1024


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    data_dir: str = "./data"
    server: Server = Server()
    engine: EngineSettings = EngineSettings()
    ports: Ports = Ports()
    boot: Boot = Boot()
    health: Health = Health()
    restart: Restart = Restart()
    idle: Idle = Idle()
    pool: Pool = Pool()
    audit: Audit = Audit()

    @property
    def data_path(self) -> Path:
        """The data directory; a relative one counts from the current directory."""
        return Path(self.data_dir).absolute()
