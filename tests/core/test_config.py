"""Settings: defaults, then the file, then the environment, then flags; all faults at once."""

import math
from collections.abc import Mapping
from pathlib import Path

import pytest
from rich.console import Console

from enginegate.config import Config, Secrets, absent, load, master_keys, secrets, unread
from enginegate.errors import ConfigError
from enginegate.keys import new_admin_key, new_master_key

ADMIN, MASTER, OLD_MASTER = new_admin_key(), new_master_key(), new_master_key()


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the path of a configuration file that is named as it would be by a person."""
    monkeypatch.chdir(tmp_path)
    return Path("config.toml")


def faults_of(toml: str, environ: Mapping[str, str] | None = None, **flags: object) -> list[str]:
    path = Path("config.toml")
    path.write_text(toml, encoding="utf-8")
    overrides = {name.replace("__", "."): value for name, value in flags.items()}
    with pytest.raises(ConfigError) as caught:
        load(path, environ or {}, overrides)
    return caught.value.faults


def fault_of(toml: str, environ: Mapping[str, str] | None = None) -> str:
    (fault,) = faults_of(toml, environ)
    return fault


def test_nothing_has_to_be_configured() -> None:
    """Without a file and without variables, the defaults hold."""
    assert load(None, {}) == Config()


def test_the_file_is_overridden_by_the_environment_and_that_by_flags(file: Path) -> None:
    """Each source changes what it names and leaves the rest."""
    file.write_text("[server]\nhost = '0.0.0.0'\nport = 1\nmax_connections = 7\n")
    environ = {"ENGINEGATE_SERVER__PORT": "2", "ENGINEGATE_SERVER__MAX_BODY_BYTES": "9"}
    server = load(file, environ, {"server.port": 3}).server
    assert (server.host, server.port, server.max_connections) == ("0.0.0.0", 3, 7)
    assert server.max_body_bytes == 9
    assert load(file, environ).server.port == 2
    assert load(file, {}).server.port == 1


def test_a_flag_that_was_not_given_overrides_nothing() -> None:
    """The command line passes None for it; a text is read as from the environment."""
    flags = {"server.port": None, "health.interval_s": "0.5", "engine.image": "e:1"}
    config = load(None, {"ENGINEGATE_SERVER__PORT": "2"}, flags)
    assert (config.server.port, config.health.interval_s, config.engine.image) == (2, 0.5, "e:1")


def test_every_type_can_come_from_the_environment() -> None:
    """Texts as they are, numbers and truths as usual, lists and tables as JSON."""
    config = load(
        None,
        {
            "ENGINEGATE_DATA_DIR": "/var/lib/enginegate",
            "ENGINEGATE_ENGINE__BACKEND": "docker",
            "ENGINEGATE_ENGINE__IMAGE": "e:1",
            "ENGINEGATE_ENGINE__COMMAND": '["run", "--fast"]',
            "ENGINEGATE_ENGINE__ENV": '{"MODE": "a=b"}',
            "ENGINEGATE_ENGINE__LIMITS__MEMORY": "512m",
            "ENGINEGATE_ENGINE__LIMITS__CPUS": "0.5",
            "ENGINEGATE_HEALTH__REQUIRE_STATUS_OK": "False",
            "ENGINEGATE_POOL__SIZE": "2",
            "PATH": "/bin",
        },
    )
    assert config.data_path == Path("/var/lib/enginegate")
    assert (config.engine.backend, config.engine.image) == ("docker", "e:1")
    assert config.engine.command == ("run", "--fast")
    assert config.engine.env == {"MODE": "a=b"}
    assert (config.engine.limits.memory, config.engine.limits.cpus) == ("512m", 0.5)
    assert config.health.require_status_ok is False
    assert config.pool.size == 2


def test_a_whole_section_can_come_from_the_environment() -> None:
    """As a JSON table; a variable for one of its keys still wins."""
    environ = {
        "ENGINEGATE_ENGINE__LIMITS__PIDS": "7",
        "ENGINEGATE_ENGINE__LIMITS": '{"pids": 6, "memory": "64m"}',
    }
    limits = load(None, environ).engine.limits
    assert (limits.pids, limits.memory) == (7, "64m")
    with pytest.raises(ConfigError, match="must be a table"):
        load(None, {"ENGINEGATE_ENGINE__LIMITS": "64m"})


def test_all_faults_are_told_at_once(file: Path) -> None:
    """One run shows everything there is to mend, whatever it came from."""
    assert faults_of(
        "datadir = 1\n[health]\ninterval_s = -1\n[ports]\nmin = 9500\n",
        {"ENGINEGATE_PORTS__MAX": "9400", "ENGINEGATE_BOOT__TIMEOUT_S": "soon"},
        server__port=70_000,
    ) == [
        "datadir: no such setting (from config.toml); did you mean data_dir?",
        "health.interval_s: must be greater than 0 (got -1, from config.toml)",
        "boot.timeout_s: must be a number (got 'soon', from ENGINEGATE_BOOT__TIMEOUT_S)",
        "server.port: must be at most 65535 (got 70000, from the command line)",
        "ports.min: must not be greater than ports.max (got 9500 and 9400)",
    ]


@pytest.mark.parametrize(
    ("key", "written", "whys"),
    [
        (
            "engine.allowed_images",
            '["e*", "e:1", "f*"]',
            ["must hold image references or repository:*, unlike 'e*'", "… unlike 'f*'"],
        ),
        (
            "engine.allowed_images",
            '[1, "e*"]',
            ["must be a list of strings", "must hold image references … unlike 'e*'"],
        ),
        (
            "engine.command",
            '["", "a\\u0000"]',
            ["must not hold NUL characters", "must begin with a program"],
        ),
        (
            "engine.env",
            '{PORT = "1", A = 1, "B-C" = "a\\u0000"}',
            [
                "must be a table of strings",
                "PORT is set by the gate itself",
                "'B-C' is no name of a variable",
                "must not hold NUL characters, as B-C does",
            ],
        ),
        (
            "engine.env_passthrough",
            '["CATALOG_DIR", "TZ", "A-B", "ENGINEGATE_URL"]',
            [
                "CATALOG_DIR is set by the gate itself",
                "'A-B' is no name of a variable",
                "must not hand enginegate's own ENGINEGATE_URL to engines",
            ],
        ),
    ],
)
def test_all_faults_of_one_list_or_table_are_told(
    file: Path, key: str, written: str, whys: list[str]
) -> None:
    """Each entry is looked at, also where another one is wrong or of the wrong type."""
    told = faults_of(f"{key} = {written}")
    assert len(told) == len(whys)
    for fault, why in zip(told, whys, strict=True):
        assert fault.startswith(f"{key}: ")
        assert fault.endswith(f"{why.rpartition('… ')[2]} (from config.toml)")


@pytest.mark.parametrize(
    ("toml", "fault"),
    [
        ("[helth]", "helth: no such setting (from config.toml); did you mean health?"),
        ("[health]\nx = 1", "health.x: no such setting (from config.toml)"),
        ("[engine.limits]\ncpu = 1", "engine.limits.cpu: no such setting (from config.toml); did"),
        ("health = 3", "health: must be a table (from config.toml)"),
    ],
)
def test_a_key_that_does_not_exist_is_refused(file: Path, toml: str, fault: str) -> None:
    """A slip of the pen must not leave a default in force unnoticed."""
    assert fault_of(toml).startswith(fault)


@pytest.mark.parametrize(
    "name",
    [
        "ENGINEGATE_SERVER_PORT",
        "ENGINEGATE_ENGINE_IMAGE",
        "ENGINEGATE_HELTH__INTERVAL_S",
        "ENGINEGATE_SERVER__",
        "ENGINEGATE_server__port",
        "ENGINEGATE_DATA_DIRECTORY",
        "ENGINEGATE_DATADIR",
    ],
)
def test_a_variable_that_looks_like_a_setting_and_is_none_is_refused(name: str) -> None:
    """Its value is not shown: it may have been meant for something secret."""
    with pytest.raises(ConfigError, match=f"^{name}: no such setting") as caught:
        load(None, {name: "hush"})
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("DATADIR", "DATA_DIR"),
        ("DATA_DIRECTORY", "DATA_DIR"),
        ("SERVER_PORT", "SERVER__PORT"),
        ("HELTH__INTERVAL_S", "HEALTH__INTERVAL_S"),
        ("ADMINKEY", "ADMIN_KEY"),
        ("MASTER_KEYFILE", "MASTER_KEY_FILE"),
    ],
)
def test_a_variable_nobody_reads_is_told_with_what_was_probably_meant(
    name: str, meant: str
) -> None:
    """One line with the name it should have; secrets are among those names."""
    with pytest.raises(ConfigError) as caught:
        load(None, {f"ENGINEGATE_{name}": "x"})
    assert caught.value.faults == [
        f"ENGINEGATE_{name}: no such setting; did you mean ENGINEGATE_{meant}?"
    ]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("PORT", "; did you mean ENGINEGATE_SERVER__PORT?"),
        ("MEMORY", "; did you mean ENGINEGATE_ENGINE__LIMITS__MEMORY?"),
        ("WATERMARK", ""),
        ("", ""),
    ],
)
def test_a_variable_that_may_be_somebody_elses_is_told_and_left_alone(name: str, hint: str) -> None:
    """Whoever deploys us may use the prefix, too: that is no reason not to start."""
    environ = {f"ENGINEGATE_{name}": "hush"}
    assert load(None, environ) == Config()
    assert unread(environ) == [f"ENGINEGATE_{name}: no such setting{hint}"]


def test_other_variables_are_left_alone() -> None:
    """Secrets, what clients and our own tests read, and what Kubernetes sets for services."""
    names = [
        *(f"ENGINEGATE_{key}_KEY" for key in ("ADMIN", "MASTER", "METRICS", "PLATFORM")),
        *(f"ENGINEGATE_{key}_KEY_FILE" for key in ("ADMIN", "MASTER", "METRICS", "PLATFORM")),
        "ENGINEGATE_URL",
        "ENGINEGATE_REQUIRE_DOCKER",
        "ENGINEGATE_SERVICE_HOST",
        "ENGINEGATE_SERVICE_PORT",
        "ENGINEGATE_SERVICE_PORT_HTTP",
        "ENGINEGATE_PORT_8000_TCP",
        "ENGINEGATE_PORT_8000_TCP_ADDR",
        "ENGINEGATE_ENGINE_POOL_SERVICE_HOST",
        "SERVER__PORT",
    ]
    ports = dict.fromkeys(("ENGINEGATE_PORT", "ENGINEGATE_WEB_PORT"), "tcp://10.0.0.7:8000")
    environ = dict.fromkeys(names, "x") | ports
    assert load(None, environ) == Config()
    assert unread(environ) == []


@pytest.mark.parametrize(
    ("key", "written", "why"),
    [
        ("data_dir", '""', "must name a directory"),
        ("data_dir", "3", "must be text (got 3, from config.toml)"),
        ("server.host", '""', "must be a host name or an address"),
        ("server.host", '"a b"', "must be a host name or an address"),
        ("server.port", "-1", "must be at least 0"),
        ("server.port", "8000.0", "must be a whole number"),
        ("server.port", "true", "must be a whole number"),
        ("server.port", '"8000"', "must be a whole number (got '8000', from config.toml)"),
        ("server.max_connections", "0", "must be at least 1"),
        ("server.max_body_bytes", "9999999999999999999999", "must be at most 2147483647"),
        ("server.request_timeout_s", "0", "must be greater than 0"),
        ("server.shutdown_grace_s", "nan", "must be a finite number"),
        ("server.shutdown_grace_s", "inf", "must be a finite number"),
        ("server.shutdown_grace_s", "1e30", "must be at most 3153600000"),
        ("server.shutdown_grace_s", "true", "must be a number"),
        ("server.shutdown_grace_s", '"10"', "must be a number"),
        ("engine.backend", '"podman"', "must be 'docker' or 'process' (got 'podman', from"),
        ("engine.url_mode", '"bridge"', "must be 'host' or 'network'"),
        ("engine.rotate_mode", "1", "must be 'live' or 'recreate'"),
        ("engine.image", '"Engine:1"', "must be an image reference"),
        ("engine.allowed_images", '"e:1"', "must be a list of strings (from config.toml)"),
        ("engine.allowed_images", "[1]", "must be a list of strings"),
        (
            "engine.allowed_images",
            '["e:1", "e*"]',
            "must hold image references or repository:*, un",
        ),
        ("engine.command", '["", "x"]', "must begin with a program"),
        ("engine.command", '["x", "a\\u0000"]', "must not hold NUL characters"),
        ("engine.container_port", "0", "must be at least 1"),
        ("engine.health_path", '"health"', "must be a path that starts with /"),
        ("engine.health_path", '"/he alth"', "must be a path that starts with /"),
        ("engine.advertise_host", '"http://x"', "must be a host name or an address"),
        ("engine.advertise_host", '"::1"', "must be a host name or an address, an IPv6 one in br"),
        ("engine.advertise_host", '"[::x]"', "must be a host name or an address"),
        ("engine.publish_address", '"localhost"', "must be an IP address"),
        ("engine.network", '"host"', "must name a Docker network"),
        ("engine.network", '"container:x"', "must name a Docker network"),
        ("engine.env", "[]", "must be a table of strings"),
        ("engine.env", "{A = 1}", "must be a table of strings"),
        ("engine.env", '{"A-B" = "1"}', "'A-B' is no name of a variable"),
        ("engine.env", '{PORT = "1"}', "PORT is set by the gate itself"),
        ("engine.env", '{ENGINE_ID = "1"}', "ENGINE_ID is set by the gate itself"),
        ("engine.env", '{A = "b\\u0000"}', "must not hold NUL characters, as A does"),
        ("engine.env_passthrough", '["CATALOG_DIR"]', "CATALOG_DIR is set by the gate itself"),
        ("engine.env_passthrough", '["ENGINEGATE_ADMIN_KEY"]', "must not hand enginegate's own EN"),
        ("engine.limits.memory", '"lots"', "must be an amount such as 512m, 1g"),
        ("engine.limits.memory", "true", "must be text or a whole number"),
        ("engine.limits.memory", '"5m"', "must be at least 6m"),
        ("engine.limits.memory", '"9999999999999999g"', "must be at least 6m and at most"),
        ("engine.limits.memory", "-1", "must be an amount"),
        ("engine.limits.cpus", "0", "must be at least 0.01"),
        ("engine.limits.pids", "0", "must be at least 1"),
        ("engine.limits.profile", '"none"', "must be 'baseline' or 'strict'"),
        ("ports.min", "0", "must be at least 1"),
        ("health.max_failures", "0", "must be at least 1"),
        ("health.require_status_ok", "1", "must be true or false"),
        ("restart.backoff_max_s", "0", "must be greater than 0"),
        ("idle.sleep_after_s", "-0.5", "must be at least 0 (got -0.5, from config.toml)"),
        ("pool.size", "-1", "must be at least 0"),
        ("audit.max_mb", "0", "must be at least 1"),
    ],
)
def test_an_impossible_value_is_refused(file: Path, key: str, written: str, why: str) -> None:
    """The fault names the key, what is wanted, what was got, and where."""
    assert fault_of(f"{key} = {written}").startswith(f"{key}: {why}")


def test_a_long_value_is_shown_in_part(file: Path) -> None:
    """A fault stays readable."""
    fault = fault_of(f'engine.image = "{"Z" * 500}"')
    assert "ZZZ…, from config.toml)" in fault
    assert len(fault) < 250


@pytest.mark.parametrize(
    "variable", ["ENGINEGATE_ENGINE__ENV", "ENGINEGATE_ENGINE__COMMAND", "ENGINEGATE_ENGINE"]
)
def test_a_faulty_table_or_list_is_not_shown(variable: str) -> None:
    """Engines' secrets may be in it."""
    with pytest.raises(ConfigError) as caught:
        load(None, {variable: '{"TOKEN": "hush"'})
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "text", "why"),
    [
        ("SERVER__PORT", "", "must be a whole number (got '', from ENGINEGATE_SERVER__PORT)"),
        ("SERVER__PORT", "80.5", "must be a whole number"),
        ("HEALTH__INTERVAL_S", "nan", "must be a finite number"),
        ("HEALTH__REQUIRE_STATUS_OK", "maybe", "must be true or false (got 'maybe', from"),
        ("ENGINE__COMMAND", "python x.py", "must be a list of strings"),
        ("ENGINE__ENV", "[]", "must be a table of strings"),
    ],
)
def test_a_variable_that_cannot_be_read_is_refused(key: str, text: str, why: str) -> None:
    """It is told as it was written."""
    with pytest.raises(ConfigError) as caught:
        load(None, {f"ENGINEGATE_{key}": text})
    assert f": {why}" in caught.value.faults[0]


@pytest.mark.parametrize(
    ("toml", "fault"),
    [
        (
            "restart.backoff_base_s = 301",
            "restart.backoff_base_s: must not be greater than restart.backoff_max_s (got 301.0 and",
        ),
        ("engine.backend = 'docker'", "engine.image: must be given for the docker backend"),
        ("engine.url_mode = 'network'", "engine.url_mode: must be 'host' for the process backend"),
        (
            "pool.size = 11\nports.max = 9010",
            "pool.size: must not be greater than the number of ports (got 11)",
        ),
        (
            "engine.env = {TZ = 'UTC'}\nengine.env_passthrough = ['LANG', 'TZ']",
            "engine.env_passthrough: TZ is set in engine.env as well",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(file: Path, toml: str, fault: str) -> None:
    """Each may be fine alone."""
    assert fault_of(toml).startswith(fault)


def test_a_catalog_that_is_not_there_is_refused(file: Path, tmp_path: Path) -> None:
    """Engines would be given an empty promise. Docker looks itself, maybe on another machine."""
    (tmp_path / "catalog").mkdir()
    (tmp_path / "file").touch()
    file.write_text("engine.catalog_dir = 'catalog'")
    assert absent(load(file, {})) == []
    for name in ("gone", "file", "\\u0000", "x" * 300):
        file.write_text(f'engine.catalog_dir = "{name}"')
        (fault,) = absent(load(file, {}))
        assert fault.startswith("engine.catalog_dir: no such directory, or it cannot be looked at")
    there = "[engine]\nbackend = 'docker'\nimage = 'e:1'\ncatalog_dir = '/there'"
    file.write_text(there)
    assert absent(load(file, {})) == []


def test_a_faulty_value_is_not_also_called_a_contradiction(file: Path) -> None:
    """One mistake is one fault."""
    assert fault_of("[ports]\nmin = 20000\nmax = 'x'").startswith("ports.max: must be a whole")


@pytest.mark.parametrize(
    "toml",
    [
        "health.timeout_s = 31",
        "health.interval_s = 0.05",
        "server.port = 0",
        "server.host = '::'",
        "engine.advertise_host = '[::1]'",
        "engine.advertise_host = 'engines.example'",
        "engine.publish_address = '::1'",
        "engine.health_path = '/health?deep=1'",
        "engine.allowed_images = ['e:1', 'team/e:*']",
        "engine.env_passthrough = ['LANG', '_X']",
        "ports = {min = 1, max = 65535}",
        "ports = {min = 9001, max = 9001}",
        "restart.backoff_base_s = 0",
        "restart.max_attempts = 0",
        "idle = {sleep_after_s = 0, stop_after_s = 0.5}",
        "engine = {backend = 'docker', image = 'e', url_mode = 'network'}",
    ],
)
def test_unusual_settings_that_make_sense_are_taken(file: Path, toml: str) -> None:
    """A probe may take longer than the interval, a range may be one port, a port any."""
    file.write_text(toml)
    assert load(file, {}) != Config()


@pytest.mark.parametrize(
    ("memory", "size"),
    [
        ('"6m"', 6 * 2**20),
        ('"512m"', 2**29),
        ('"1g"', 2**30),
        ('"1.5G"', 3 * 2**29),
        ('"8192k"', 2**23),
        ('"8388608b"', 2**23),
        ('"8388608"', 2**23),
        ("8388608", 2**23),
    ],
)
def test_memory_is_an_amount(file: Path, memory: str, size: int) -> None:
    """With the units that Docker knows, or as a count of bytes."""
    file.write_text(f"engine.limits.memory = {memory}")
    assert load(file, {}).engine.limits.memory_bytes == size


def test_the_data_directory_counts_from_the_current_directory(file: Path, tmp_path: Path) -> None:
    """As every path on a command line does."""
    assert load(None, {}).data_path == tmp_path / "data"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"[server]\nport = \n", "is not valid TOML: Invalid value (at line 2"),
        (b"a = 1\na = 2\n", "is not valid TOML: Cannot overwrite a value (at line 2"),
        (b"# fine\n\n# \xff\n", "is not UTF-8 text (at line 3)"),
    ],
)
def test_a_file_that_cannot_be_read_says_where(file: Path, content: bytes, why: str) -> None:
    """What the environment has wrong is told all the same; contradictions cannot be known."""
    file.write_bytes(content)
    environ = {"ENGINEGATE_POOL__SIZE": "x", "ENGINEGATE_ENGINE__BACKEND": "docker"}
    with pytest.raises(ConfigError) as caught:
        load(file, environ)
    first, second = caught.value.faults
    assert first.startswith(f"config.toml: {why}")
    assert second.startswith("pool.size: ")


def test_a_file_that_is_not_there_is_a_fault(file: Path) -> None:
    """Whoever names a file wants it read."""
    with pytest.raises(ConfigError, match=r"^config.toml: cannot be read: No such file"):
        load(file, {})


def test_what_engines_get_in_their_environment_is_not_shown() -> None:
    """Names yes, values no: not in a log, not in a traceback, not on a terminal."""
    engine = load(None, {"ENGINEGATE_ENGINE__ENV": '{"TOKEN": "hush"}'}).engine
    console = Console(width=200)
    with console.capture() as shown:
        console.print(engine)
    for text in (repr(engine), str(engine), shown.get()):
        assert "hush" not in text
        assert "'TOKEN': '***'" in text
    assert repr(engine).startswith("EngineSettings(backend='process', image='', ")


BOTH = {"ENGINEGATE_ADMIN_KEY": ADMIN, "ENGINEGATE_MASTER_KEY": MASTER}


def secret_faults(environ: Mapping[str, str]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        secrets(environ)
    assert not any(key in str(caught.value) for key in (ADMIN, MASTER, OLD_MASTER))
    return caught.value.faults


def test_secrets_come_from_the_environment() -> None:
    """The metrics key may be left out; an empty variable is none."""
    expected = Secrets(admin_key=ADMIN, master_keys=(MASTER,))
    assert secrets(BOTH) == secrets({**BOTH, "ENGINEGATE_METRICS_KEY": ""}) == expected
    assert secrets({**BOTH, "ENGINEGATE_METRICS_KEY": "m" * 16}).metrics_key == "m" * 16


def test_secrets_come_from_files_that_the_environment_names(tmp_path: Path) -> None:
    """The newline that every editor adds does not belong to them."""
    for name, key in (("admin", ADMIN), ("master", MASTER)):
        (tmp_path / name).write_text(key + "\n")
    environ = {
        "ENGINEGATE_ADMIN_KEY_FILE": str(tmp_path / "admin"),
        "ENGINEGATE_MASTER_KEY_FILE": str(tmp_path / "master"),
    }
    assert secrets(environ) == secrets(BOTH)


def test_the_master_key_may_be_a_ring() -> None:
    """The new key first, then those that still have to open what they sealed."""
    ring = secrets({**BOTH, "ENGINEGATE_MASTER_KEY": f"{MASTER}, {OLD_MASTER}"})
    assert ring.master_keys == (MASTER, OLD_MASTER)


def test_missing_secrets_say_how_to_make_them() -> None:
    """Both are named at once, with the command."""
    admin, master = secret_faults({})
    assert admin.startswith("ENGINEGATE_ADMIN_KEY: not set, nor is ENGINEGATE_ADMIN_KEY_FILE;")
    assert master.startswith("ENGINEGATE_MASTER_KEY: not set")
    assert "`enginegate init`" in admin
    assert "`enginegate init`" in master


def test_a_secret_given_twice_is_refused() -> None:
    """Nobody can know which one was meant."""
    (fault,) = secret_faults({**BOTH, "ENGINEGATE_ADMIN_KEY_FILE": "/run/admin"})
    assert fault == (
        "ENGINEGATE_ADMIN_KEY: set together with ENGINEGATE_ADMIN_KEY_FILE; give one of the two"
    )


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "cannot read {}: No such file or directory"),
        (b"\n", "{} is empty"),
        (b"\xff", "text"),
    ],
)
def test_a_secret_file_that_cannot_be_used_is_named(
    tmp_path: Path, content: bytes | None, why: str
) -> None:
    """Missing, empty or not a text: the file is named, and what is wrong with it."""
    path = tmp_path / "key"
    if content is not None:
        path.write_bytes(content)
    environ = {"ENGINEGATE_ADMIN_KEY": ADMIN, "ENGINEGATE_MASTER_KEY_FILE": str(path)}
    (fault,) = secret_faults(environ)
    assert fault.startswith("ENGINEGATE_MASTER_KEY_FILE: ")
    assert fault.endswith(why.format(path))


@pytest.mark.parametrize("name", ["ENGINEGATE_ADMIN_KEY", "ENGINEGATE_METRICS_KEY"])
@pytest.mark.parametrize("key", ["short", "x" * 15, "a key with blanks in it", "é" * 20])
def test_a_key_that_is_guessed_or_cannot_travel_is_refused(name: str, key: str) -> None:
    """At least 16 characters, and only such as a header can carry."""
    (fault,) = secret_faults({**BOTH, name: key})
    assert fault == f"{name}: must be at least 16 visible ASCII characters, without blanks"


def test_the_metrics_key_must_not_be_the_admin_key() -> None:
    """It is handed to scrapers and must open nothing else."""
    (fault,) = secret_faults({**BOTH, "ENGINEGATE_METRICS_KEY": ADMIN})
    assert fault.startswith("ENGINEGATE_METRICS_KEY: must differ from the admin key")


def test_master_keys_are_read_without_the_other_secrets() -> None:
    """Tools that need no more: by commas, or a line each as `rekey` writes them."""
    for ring in (
        f"{MASTER},{OLD_MASTER}",
        f"{MASTER}\n{OLD_MASTER}\n",
        f" {MASTER} , {OLD_MASTER}",
    ):
        assert master_keys({"ENGINEGATE_MASTER_KEY": ring}) == (MASTER, OLD_MASTER)
    with pytest.raises(ConfigError, match="ENGINEGATE_MASTER_KEY: not set"):
        master_keys({})


def test_a_master_key_that_is_none_is_named_by_its_place() -> None:
    """What was given is not repeated: it may be a key after all, with a slip in it."""
    ring = f"{MASTER},{OLD_MASTER[:-1]},"
    second, third = secret_faults({**BOTH, "ENGINEGATE_MASTER_KEY": ring})
    assert second.startswith("ENGINEGATE_MASTER_KEY: key 2 of 3 is not a Fernet key")
    assert third.startswith("ENGINEGATE_MASTER_KEY: key 3 of 3")
    assert OLD_MASTER[:-1] not in second


def test_secrets_are_masked_wherever_they_are_printed() -> None:
    """In a repr, and by rich on a terminal."""
    console = Console()
    with console.capture() as shown:
        console.print(secrets(BOTH))
    assert repr(secrets(BOTH)) == "Secrets(***)"
    assert shown.get() == "Secrets(keys='***')\n"


def test_no_setting_is_ever_unbounded() -> None:
    """Timers and sockets can take whatever is allowed: every number has a bound above."""
    for key in ("health.interval_s", "idle.sleep_after_s", "engine.limits.cpus", "pool.size"):
        with pytest.raises(ConfigError, match="must be at most"):
            load(None, {}, {key: 10**400})
        with pytest.raises(ConfigError, match="must be a"):
            load(None, {}, {key: math.inf})
