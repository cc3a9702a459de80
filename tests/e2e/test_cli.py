"""The command line, as a shell sees it: what is printed where, and how it exits."""

import json
import logging
import os
import re
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginegate import __version__
from enginegate.cli.client import parsed
from enginegate.cli.logs import OneLine
from enginegate.cli.plain import one_line
from enginegate.keys import new_admin_key, new_master_key
from tests.e2e.conftest import Cli, Server, eventually
from tests.journal.rig import ManualClock, grow

NOBODY = "http://127.0.0.1:9"  # the discard port, where nothing listens
COMMANDS = {"demo", "init", "serve", "config", "products", "engines", "status", "audit"} | {
    "journal",
    "openapi",
    "idle",
    "rekey",
}


@pytest.fixture(scope="module")
def shop(server: Server) -> Iterator[Cli]:
    """The command line as a product uses it, with a product's key alone."""
    key = server.cli.json("products", "register", "shop")["platform_api_key"]
    yield Cli(server.directory, ENGINEGATE_URL=server.url, ENGINEGATE_PLATFORM_KEY=key)
    server.cli.run("products", "delete", "shop")


# --- help and version ---------------------------------------------------------------------------


def test_it_says_its_version(cli: Cli) -> None:
    """One line, for bug reports."""
    assert cli.run("--version").stdout == f"enginegate {__version__}\n"


def test_help_names_every_command(cli: Cli) -> None:
    """Whoever asks for help sees what there is."""
    shown = cli.run("--help").stdout
    assert set(re.findall(r"^  (\w+) ", shown, re.MULTILINE)) >= COMMANDS


def test_help_is_fast(cli: Cli) -> None:
    """It loads nothing that only a command needs."""
    heavy = {"httpx", "rich", "uvicorn", "starlette", "cryptography", "asyncio", "aiodocker"}
    code = "import sys, enginegate.cli.app; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", code], env=cli.env, text=True).split()
    assert heavy & set(loaded) == set()


# --- init ---------------------------------------------------------------------------------------


def test_init_makes_keys_that_only_their_owner_reads(cli: Cli) -> None:
    """Mode 0600 in a directory of mode 0700, whatever the umask."""
    before = os.umask(0)
    try:
        cli.run("init")
    finally:
        os.umask(before)
    secrets = cli.directory / "secrets"
    modes = {path.name: path.stat().st_mode & 0o777 for path in secrets.iterdir()}
    assert modes == {"admin.key": 0o600, "master.key": 0o600, ".gitignore": 0o600}
    assert secrets.stat().st_mode & 0o777 == 0o700
    assert (secrets / ".gitignore").read_text() == "*\n"


def test_init_prints_what_a_shell_can_evaluate(cli: Cli) -> None:
    """Two export lines and nothing else, so that `eval "$(enginegate init)"` works."""
    done = cli.run("init")
    secrets = cli.directory / "secrets"
    assert done.stdout.splitlines() == [
        f"export ENGINEGATE_ADMIN_KEY_FILE={secrets / 'admin.key'}",
        f"export ENGINEGATE_MASTER_KEY_FILE={secrets / 'master.key'}",
    ]
    keys = {(secrets / name).read_text().strip() for name in ("admin.key", "master.key")}
    assert len(keys) == 2
    assert not any(key in done.stdout + done.stderr for key in keys)


def test_init_never_overwrites(cli: Cli) -> None:
    """A second run keeps keys and configuration, and says so."""
    cli.run("init")
    (cli.directory / "config.toml").write_text("data_dir = 'mine'\n")
    files = [*(cli.directory / "secrets").iterdir(), cli.directory / "config.toml"]
    before = {path: path.read_bytes() for path in files}
    again = cli.run("init")
    assert {path: path.read_bytes() for path in files} == before
    assert again.stderr.count("kept") == 3


def test_init_writes_a_configuration_that_is_complete_and_valid(cli: Cli) -> None:
    """Every key with its default, ready to be changed."""
    cli.run("init", "--dir", "here")
    written = (cli.directory / "here" / "config.toml").read_text()
    assert "sleep_after_s = 900" in written
    assert "no faults" in cli.run("config", "check", "--config", "here/config.toml").stdout


def test_init_says_where_it_cannot_write(cli: Cli) -> None:
    """A line with the path, and exit code 1."""
    (cli.directory / "file").write_text("")
    assert "file" in cli.run("init", "--dir", "file/below", exits=1).stderr


# --- serve and config ---------------------------------------------------------------------------


def test_serve_without_secrets_says_how_to_make_them(cli: Cli) -> None:
    """Both keys are named, and the command that makes them; exit code 78."""
    said = cli.run("serve", exits=78).stderr
    assert "ENGINEGATE_ADMIN_KEY" in said
    assert "ENGINEGATE_MASTER_KEY" in said
    assert "enginegate init" in said


def test_all_faults_are_listed_at_once(cli: Cli) -> None:
    """File, environment, flags and secrets: nobody has to fix one to see the next."""
    (cli.directory / "config.toml").write_text("[server]\nprot = 1\n[idle]\nsleep_after_s = -1\n")
    cli.env["ENGINEGATE_BOOT__TIMEOUT_S"] = "soon"
    said = cli.run("serve", "--backend", "cloud", exits=78).stderr.splitlines()
    for part in ("server.prot", "idle.sleep_after_s", "boot.timeout_s", "engine.backend"):
        assert sum(part in line for line in said) == 1
    assert len(said) == 6


def test_config_check_lists_all_faults(cli: Cli) -> None:
    """The same list without starting anything, and without secrets."""
    (cli.directory / "mine.toml").write_text("colour = 1\n[ports]\nmin = 0\n")
    said = cli.run("config", "check", "--config", "mine.toml", exits=78).stderr.splitlines()
    assert [line.split(":")[0] for line in said] == ["colour", "ports.min"]
    assert "no faults" in cli.run("config", "check").stdout


def test_a_catalog_that_is_gone_stops_servers_and_no_tool(own_server: Server) -> None:
    """Who looks after a journal on another machine has no use for it."""
    own_server.stop()
    own_server.cli.env["ENGINEGATE_ENGINE__CATALOG_DIR"] = "gone"
    for command in ("config check", "serve"):
        said = own_server.cli.run(*command.split(), exits=78).stderr
        assert "engine.catalog_dir: no such directory" in said
    own_server.cli.run("journal", "verify")


def test_serve_refuses_a_log_level_that_is_none(cli: Cli) -> None:
    """A mistake in the call is exit code 2."""
    assert "--log-level" in cli.run("serve", "--log-level", "loud", exits=2).stderr


def test_serve_says_one_line_when_it_accepts_requests(own_server: Server) -> None:
    """Stdout has the address, the backend and the path of the data; SIGTERM ends it with 0."""
    assert own_server.line == (
        f"enginegate {__version__} accepts requests on {own_server.url}"
        f" (process backend, data in {own_server.directory / 'data'})\n"
    )
    assert own_server.stop() == 0
    assert (own_server.directory / "out").read_text() == own_server.line
    assert all(
        {"at", "level", "logger", "message"} <= json.loads(line).keys()
        for line in own_server.log.splitlines()
    )


def test_ctrl_c_ends_the_server_well(own_server: Server) -> None:
    """SIGINT is SIGTERM by another name."""
    assert own_server.stop(signal.SIGINT) == 0


def test_a_second_server_on_the_directory_is_refused(server: Server) -> None:
    """It names the directory and exits 75; the first one does not notice."""
    said = server.cli.run("serve", "--port", "0", exits=75).stderr
    assert "in use by another enginegate" in said
    assert re.search(r"\(\S*\bdata\)", said)
    assert server.cli.json("status")["total"] >= 0


def test_a_second_server_with_the_same_configuration_is_refused_the_same_way(
    server: Server,
) -> None:
    """The directory is what is told, not the port that is taken as well."""
    port = server.url.rpartition(":")[2]
    said = server.cli.run("serve", "--port", port, exits=75).stderr
    assert "in use by another enginegate" in said


def test_a_second_server_with_another_master_key_is_refused_the_same_way(server: Server) -> None:
    """It need not be the wrong one: who has the directory is what is told."""
    other = Cli(server.directory, **server.cli.env)
    other.env["ENGINEGATE_MASTER_KEY"] = new_master_key()
    assert "in use by another enginegate" in other.run("serve", "--port", "0", exits=75).stderr


def test_a_taken_port_is_told(cli: Cli) -> None:
    """The address is named, and no traceback shown."""
    cli.env |= {"ENGINEGATE_ADMIN_KEY": new_admin_key(), "ENGINEGATE_MASTER_KEY": new_master_key()}
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        said = cli.run("serve", "--port", str(port), exits=1).stderr
    assert f"cannot listen on 127.0.0.1:{port}" in said


def test_a_wrong_master_key_is_refused(own_server: Server) -> None:
    """Sealed keys could not be opened: exit code 78, and nothing is changed."""
    assert own_server.stop() == 0
    other = Cli(own_server.directory, **own_server.cli.env)
    other.env["ENGINEGATE_MASTER_KEY"] = new_master_key()
    assert "master key" in other.run("serve", "--port", "0", exits=78).stderr


# --- products -----------------------------------------------------------------------------------


def test_the_life_of_a_product(server: Server) -> None:
    """Registered, listed, limited, given a new key, deleted."""
    cli = server.cli
    registered = cli.json("products", "register", "life", "--name", "A life", "--max-engines", "2")
    assert registered["platform_api_key"].startswith("pk-eg-")
    listed = {one["slug"]: one for one in cli.json("products", "list")["products"]}
    assert listed["life"]["display_name"] == "A life"
    assert cli.json("products", "policy", "life") == {"policy": {"max_engines": 2}}
    changed = cli.json("products", "policy", "life", "--rate-limit-rpm", "60")
    assert changed == {"policy": {"rate_limit_rpm": 60}}
    assert cli.json("products", "policy", "life", "--no-limits") == {"policy": {}}
    rotated = cli.json("products", "rotate-key", registered["product_id"], "--overlap-s", "5")
    assert rotated["platform_api_key"] != registered["platform_api_key"]
    deleted = cli.json("products", "delete", "life")
    assert deleted["status"] == "deleted"
    assert "PRODUCT_NOT_FOUND: " in cli.run("products", "delete", "life", exits=1).stderr


def test_products_are_shown_to_people(server: Server, shop: Cli) -> None:
    """A table with a line for each, and no key in it; registering shows the key once."""
    shown = server.cli.run("products", "list").stdout
    assert re.search(r"^shop ", shown, re.MULTILINE)
    assert "pk-eg-" not in shown
    registered = server.cli.run("products", "register", "seen").stdout
    assert len(re.findall("pk-eg-", registered)) == 1
    assert "no limits" in server.cli.run("products", "policy", "seen").stdout
    assert "pk-eg-" in server.cli.run("products", "rotate-key", "seen").stdout
    assert "deleted" in server.cli.run("products", "delete", "seen").stdout


def test_no_limits_and_a_limit_contradict_each_other(server: Server) -> None:
    """Refused before anything is asked of the server."""
    done = server.cli.run("products", "policy", "x", "--no-limits", "--max-engines", "1", exits=2)
    assert "--no-limits" in done.stderr


# --- engines ------------------------------------------------------------------------------------


def test_the_life_of_an_engine(shop: Cli) -> None:
    """Admitted into being, put to sleep, woken, stopped, started, rekeyed, destroyed."""
    made = shop.json("engines", "admit", "ann@example.org", "--auto-provision")
    assert (made["admitted"], made["action"]) == (True, "provisioned")
    engine = shop.json("engines", "show", "ann@example.org")
    assert engine == {**made["engine"], "last_health_at": engine["last_health_at"]}
    assert shop.json("engines", "sleep", "ann@example.org", "--force") == {"status": "sleeping"}
    denied = shop.json("engines", "admit", "ann@example.org")
    assert (denied["admitted"], denied["reason"]) == (False, "engine_sleeping")
    woken = shop.json("engines", "admit", "ann@example.org", "--auto-wake", "--verify")
    assert woken["action"] in ("woke", "none")
    assert shop.json("engines", "stop", "ann@example.org") == {"status": "stopped"}
    assert shop.json("engines", "start", "ann@example.org")["url"] == engine["url"]
    key = shop.json("engines", "rotate-key", "ann@example.org")["api_key"]
    assert key != engine["api_key"]
    assert shop.json("engines", "destroy", "ann@example.org")["status"] == "destroyed"
    assert "ENGINE_NOT_FOUND: " in shop.run("engines", "show", "ann@example.org", exits=1).stderr


def test_engines_are_shown_to_people_without_their_keys(shop: Cli) -> None:
    """No screen or shell history keeps a key that nobody asked for; rotating one shows it."""
    shown = shop.run("engines", "admit", "bea", "--auto-provision", "--wait-s", "30").stdout
    shown += shop.run("engines", "list", "--status", "running", "--limit", "10").stdout
    shown += shop.run("engines", "show", "bea").stdout
    assert shown.count("http://127.0.0.1:") == 3
    assert "sk-eg-" not in shown
    assert "sk-eg-" in shop.run("engines", "rotate-key", "bea").stdout
    assert "sleeping" in shop.run("engines", "sleep", "bea").stdout
    assert "engine_sleeping" in shop.run("engines", "admit", "bea", "--no-touch").stdout
    assert "destroyed" in shop.run("engines", "destroy", "bea", "--yes").stdout


def test_a_list_that_is_cut_says_so(shop: Cli) -> None:
    """On stderr, so that the table stays a table."""
    for user in ("cut1", "cut2"):
        shop.run("engines", "admit", user, "--auto-provision")
    done = shop.run("engines", "list", "--limit", "1", "--offset", "0")
    assert len(done.stdout.splitlines()) == 2
    assert done.stderr == "1 of 2\n"
    for user in ("cut1", "cut2"):
        shop.run("engines", "destroy", user)


def test_an_operator_acts_for_a_product(server: Server, shop: Cli) -> None:
    """With the admin key and --product; without it the command says what is missing."""
    assert server.cli.json("engines", "list", "--product", "shop")["total"] == 0
    assert "--product" in server.cli.run("engines", "list", exits=2).stderr
    nobody = server.cli.run("engines", "list", "--product", "nobody", exits=1)
    assert nobody.stderr.startswith("PRODUCT_NOT_FOUND: ")


# --- status and audit ---------------------------------------------------------------------------


def test_status_shows_what_the_key_may_see(server: Server, shop: Cli) -> None:
    """The product its engines, the operator the whole fleet and the server itself."""
    assert shop.json("status").keys() == {"total", "by_status", "health", "unhealthy_count"}
    assert {"backend", "journal", "version"} <= server.cli.json("status").keys()
    assert re.search(r"^health +ok$", shop.run("status").stdout, re.MULTILINE)
    assert re.search(r"^shop +0 ", server.cli.run("status").stdout, re.MULTILINE)


def test_the_audit_trail_is_shown_and_filtered(server: Server, shop: Cli) -> None:
    """Newest first; what is left over is told with the cursor to go on from."""
    for user in ("dan", "eve"):
        shop.run("engines", "admit", user, "--auto-provision")
    found = shop.json("audit", "--user-id", "dan", "--action", "provision")["entries"]
    assert [one["user_id"] for one in found] == ["dan"]
    assert shop.json("audit", "--since", found[0]["timestamp"])["entries"]
    page = shop.run("audit", "--limit", "1", "--action", "provision")
    assert "eve" in page.stdout
    cursor = page.stderr.split("--cursor ")[1].strip()
    rest = shop.run("audit", "--limit", "1", "--action", "provision", "--cursor", cursor)
    assert "dan" in rest.stdout
    assert server.cli.json("audit", "--product", "shop", "--user-id", "eve")["entries"]
    for user in ("dan", "eve"):
        shop.run("engines", "destroy", user)


def test_following_the_trail_goes_on_over_a_restart(own_server: Server, tmp_path: Path) -> None:
    """Each entry once, in order, filtered, also those made while nobody could be asked."""
    own_server.cli.run("products", "register", "one")
    with (tmp_path / "seen").open("wb") as out, (tmp_path / "said").open("wb") as err:
        tail = own_server.cli.begin(
            "audit", "--follow", "--actor", "admin", "--json", stdout=out, stderr=err
        )

    def seen() -> list[dict[str, Any]]:
        return [json.loads(line) for line in (tmp_path / "seen").read_text().splitlines()]

    try:
        eventually(lambda: len(seen()) == 1, "what was is shown")
        own_server.cli.run("products", "register", "two")
        eventually(lambda: len(seen()) == 2, "what comes is shown")
        own_server.stop(signal.SIGKILL)
        eventually(lambda: "trying again" in (tmp_path / "said").read_text(), "the break is told")
        own_server.start()
        own_server.cli.run("products", "register", "three")
        eventually(lambda: len(seen()) == 3, "what comes after a restart is shown")
    finally:
        tail.send_signal(signal.SIGINT)
        assert tail.wait(30) == 130
    ids = [entry["id"] for entry in seen()]
    assert ids == sorted(set(ids))
    assert {entry["actor"] for entry in seen()} == {"admin"}


def test_following_for_people_is_a_line_an_entry(server: Server, tmp_path: Path, shop: Cli) -> None:
    """Aligned columns, written as they come."""
    with (tmp_path / "seen").open("wb") as out:
        tail = server.cli.begin("audit", "--follow", "--product", "shop", stdout=out)
    try:
        shown = eventually((tmp_path / "seen").read_text, "an entry is shown")
    finally:
        tail.send_signal(signal.SIGINT)
        tail.wait(30)
    assert re.match(r"\d{4}-\d\d-\d\dT[\d:.]+Z  \w+ +(ok|denied) +\w+", shown)


# --- errors -------------------------------------------------------------------------------------


def test_an_error_of_the_server_is_one_line(shop: Cli) -> None:
    """`CODE: message` on stderr, nothing on stdout, exit code 1."""
    done = shop.run("engines", "stop", "nobody", "--json", exits=1)
    assert re.fullmatch(r"ENGINE_NOT_FOUND: .+\n", done.stderr)
    assert done.stdout == ""


def test_a_server_that_is_not_there_is_told(shop: Cli) -> None:
    """With its address, and exit code 69."""
    done = shop.run("engines", "list", "--url", NOBODY, exits=69)
    assert done.stderr.startswith(f"cannot connect to {NOBODY}")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("url", ["nonsense", "ftp://127.0.0.1", "http://127.0.0.1:x"])
def test_an_address_that_is_none_is_told(cli: Cli, url: str) -> None:
    """One line, exit code 2."""
    cli.env["ENGINEGATE_ADMIN_KEY"] = new_admin_key()
    assert len(cli.run("status", "--url", url, exits=2).stderr.splitlines()) == 1


@pytest.mark.parametrize("wait_s", ["nan", "inf"])
def test_a_number_that_is_none_is_told(shop: Cli, wait_s: str) -> None:
    """JSON has no such number: one line, exit code 2, and nothing was sent."""
    done = shop.run("engines", "admit", "ann", "--wait-s", wait_s, exits=2)
    assert len(done.stderr.splitlines()) == 1


def test_something_else_on_the_address_is_told(cli: Cli) -> None:
    """Another program answers: its status is shown, and its text as one harmless line."""
    cli.env["ENGINEGATE_ADMIN_KEY"] = new_admin_key()
    answer = b"HTTP/1.1 404 Not Found\r\nContent-Length: 9\r\n\r\n\x1b[2J<p>no\n"
    with socket.create_server(("127.0.0.1", 0)) as other:
        url = f"http://127.0.0.1:{other.getsockname()[1]}"
        with cli.begin("status", "--url", url, stderr=subprocess.PIPE) as asking:
            connection, _ = other.accept()
            with connection:
                connection.recv(65_536)
                connection.sendall(answer)
            _, said = asking.communicate(timeout=30)
    assert asking.returncode == 1
    assert re.fullmatch(r"HTTP 404 from http://\S+ not of enginegate:  \[2J<p>no\n", said)


def test_keys_come_from_files_too(server: Server, tmp_path: Path) -> None:
    """As for `serve`; without a key, with two, or with a bad one the command says which."""
    (tmp_path / "key").write_text(f"{server.admin_key}\n")
    cli = Cli(tmp_path, ENGINEGATE_URL=server.url)
    assert "ENGINEGATE_PLATFORM_KEY or ENGINEGATE_ADMIN_KEY" in cli.run("status", exits=2).stderr
    cli.env["ENGINEGATE_ADMIN_KEY_FILE"] = "missing"
    assert "cannot read missing" in cli.run("status", exits=78).stderr
    cli.env["ENGINEGATE_ADMIN_KEY_FILE"] = "key"
    assert cli.json("status")["health"] == "ok"
    cli.env["ENGINEGATE_ADMIN_KEY"] = server.admin_key
    assert "both set" in cli.run("status", exits=78).stderr
    cli.env["ENGINEGATE_PLATFORM_KEY"] = "kéy"
    said = cli.run("status", exits=78).stderr
    assert "ENGINEGATE_PLATFORM_KEY" in said
    assert "kéy" not in said


def test_a_wrong_key_is_refused(server: Server) -> None:
    """By the server, in its own words."""
    cli = Cli(server.directory, ENGINEGATE_URL=server.url, ENGINEGATE_ADMIN_KEY=new_admin_key())
    assert cli.run("products", "list", exits=1).stderr.startswith("INVALID_ADMIN_KEY: ")


# --- journal and openapi ------------------------------------------------------------------------


def test_the_journal_is_looked_after_by_commands(own_server: Server) -> None:
    """Verified at any time; printed, compacted and repaired once the server has stopped."""
    cli = own_server.cli
    key = cli.json("products", "register", "kept")["platform_api_key"]
    assert "in use by pid" in cli.run("journal", "verify").stdout
    for verb in ("dump", "compact", "repair"):
        assert "in use by another enginegate" in cli.run("journal", verb, exits=75).stderr
    own_server.stop()
    assert "clean" in cli.run("journal", "verify").stdout
    printed = cli.run("journal", "dump").stdout
    facts = [json.loads(line)["fact"] for line in printed.splitlines()]
    assert "kept" in [fact.get("slug") for fact in facts]
    assert key not in printed
    assert {fact["key_hash"] for fact in facts if "key_hash" in fact} == {"***"}
    assert "compacted" in cli.run("journal", "compact").stdout
    assert "in order" in cli.run("journal", "repair").stdout
    own_server.start()
    assert [one["slug"] for one in cli.json("products", "list")["products"]] == ["kept"]


def test_a_running_server_is_backed_up_and_the_copy_starts(own_server: Server) -> None:
    """The copy verifies by itself, holds no key, and serves what was answered before it began."""
    cli = own_server.cli
    key = cli.json("products", "register", "kept")["platform_api_key"]
    assert "clean" in cli.run("journal", "backup", "copy").stdout
    assert "new or empty" in cli.run("journal", "backup", "copy", exits=78).stderr
    assert "in use by another" in cli.run("rekey", "--purge-old-generations", exits=75).stderr
    copy = own_server.directory / "copy"
    assert "clean" in cli.run("journal", "verify", "--data-dir", str(copy)).stdout
    content = b"".join(path.read_bytes() for path in copy.iterdir())
    assert key.encode() not in content
    assert cli.env["ENGINEGATE_MASTER_KEY"].encode() not in content
    own_server.stop()
    (own_server.directory / "data").rename(own_server.directory / "lost")
    copy.rename(own_server.directory / "data")
    own_server.start()
    assert [one["slug"] for one in cli.json("products", "list")["products"]] == ["kept"]


def test_a_backup_opens_as_many_files_as_it_may(tmp_path: Path) -> None:
    """No limit stops it where a higher one is allowed; else exit code 1 says what helps."""
    cli, most = Cli(tmp_path), 40
    grow(tmp_path / "data", most, ManualClock())
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    for limit, code in ((hard, 0), (most, 1)):
        allow = partial(resource.setrlimit, resource.RLIMIT_NOFILE, (most, limit))
        options = {"stderr": subprocess.PIPE, "preexec_fn": allow}
        with cli.begin("journal", "backup", f"copy-{limit}", **options) as process:
            said = process.communicate(timeout=60)[1]
        assert process.returncode == code, said
        assert ("Too many open files" in said) is ("ulimit -n" in said) is bool(code)
        assert "Traceback" not in said
    assert not (tmp_path / f"copy-{most}").exists()


def test_a_warning_of_the_journal_is_said_once(own_server: Server) -> None:
    """By the command, not by the log as well."""
    own_server.stop()
    for command in ("repair", "compact"):
        (own_server.directory / "data").chmod(0o755)
        said = own_server.cli.run("journal", command).stderr
        assert said.count("was open to others") == 1, said


def test_damage_is_found_and_placed(own_server: Server) -> None:
    """`verify` names file and offset and exits 2; a server refuses to start with 65."""
    own_server.cli.run("products", "register", "first")
    own_server.cli.run("products", "register", "second")
    own_server.stop()
    segment = max((own_server.directory / "data").glob("wal-*.egj"))
    whole = segment.read_bytes()
    at = whole.index(b"first")
    segment.write_bytes(whole[:at] + b"F" + whole[at + 1 :])
    done = own_server.cli.run("journal", "verify", exits=2)
    assert segment.name in done.stdout
    assert re.search(r"offset \d+", done.stdout)
    assert "A start refuses this" in done.stdout
    assert "journal verify" in own_server.cli.run("serve", exits=65).stderr
    refused = own_server.cli.run("journal", "backup", "copy", exits=65).stderr
    assert refused.startswith("no backup was made: damaged")
    assert str(segment) in refused
    assert not (own_server.directory / "copy").exists()
    segment.write_bytes(whole)


def test_old_damage_is_told_by_every_tool_and_stops_none(own_server: Server) -> None:
    """Exit code 2 with the file's name, from a backup too; repair says that it stays as it is."""
    cli, data = own_server.cli, own_server.directory / "data"
    cli.json("products", "register", "kept")
    own_server.stop()
    cli.run("journal", "compact")
    oldest = min(data.glob("wal-*.egj"))
    whole = oldest.read_bytes()
    oldest.write_bytes(whole[:60] + b"?" + whole[61:])
    own_server.start()
    for command in (["verify"], ["backup", "copy"]):
        said = cli.run("journal", *command, exits=2).stdout
        assert str(oldest) in said
        assert "A start does not need what is damaged" in said
    assert (own_server.directory / "copy" / oldest.name).read_bytes() == oldest.read_bytes()
    own_server.stop()
    said = cli.run("journal", "repair", exits=2).stdout
    assert "in order" not in said
    assert "cannot be mended" in said
    assert str(oldest) in said
    own_server.start()
    assert [one["slug"] for one in cli.json("products", "list")["products"]] == ["kept"]


def test_a_directory_that_is_not_there_is_not_made(cli: Cli) -> None:
    """A slip of the pen leaves no empty journal behind."""
    for command in ("dump", "verify"):
        assert "nowhere" in cli.run("journal", command, "--data-dir", "nowhere", exits=78).stderr
    assert not (cli.directory / "nowhere").exists()


def test_a_tool_in_a_directory_without_a_journal_says_so(cli: Cli) -> None:
    """Exit code 78, 65 where there was one, for verify 2; the directory stays as it was."""
    cli = Cli(cli.directory, ENGINEGATE_MASTER_KEY=new_master_key())
    place = cli.directory / "empty"
    place.mkdir()
    for command in (["verify"], ["dump"], ["compact"], ["repair"], ["backup", "copy"]):
        done = cli.run("journal", *command, "--data-dir", "empty", exits=78)
        assert done.stderr.startswith("there is no journal in this directory"), command
        assert done.stdout == ""
    assert list(place.iterdir()) == []
    (place / "ballast").touch()
    for command, code in (("dump", 65), ("verify", 2)):
        done = cli.run("journal", command, "--data-dir", "empty", exits=code)
        assert "the journal is gone" in done.stdout + done.stderr
    assert [path.name for path in place.iterdir()] == ["ballast"]


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_finds_no_room_is_told_in_one_line(own_server: Server, unbuffered: str) -> None:
    """Without a traceback; whoever reads no further, as `head`, ends it in silence. Exit code 1.

    For `verify` it is 74: its 1 says that the tail is torn.
    """
    own_server.cli.run("products", "register", "kept")
    own_server.stop()
    own_server.cli.env["PYTHONUNBUFFERED"] = unbuffered
    for command, code in (("verify", 74), ("dump", 1), ("compact", 1), ("repair", 1)):
        with Path("/dev/full").open("w") as full:
            options = {"stdout": full, "stderr": subprocess.PIPE}
            with own_server.cli.begin("journal", command, **options) as process:
                _, said = process.communicate(timeout=60)
        assert said == "the output cannot be written: No space left on device\n", command
        assert process.returncode == code, command
        reader, writer = os.pipe()
        os.close(reader)
        options = {"stdout": writer, "stderr": subprocess.PIPE}
        with own_server.cli.begin("journal", command, **options) as process:
            os.close(writer)
            said = process.communicate(timeout=60)[1]
        assert said == "", command
        assert process.returncode == code, command


def test_the_api_is_described_without_a_server(cli: Cli) -> None:
    """For those who generate clients."""
    document = json.loads(cli.run("openapi").stdout)
    assert document["openapi"].startswith("3.")
    assert "/engines/{user_id}/admit" in document["paths"]


def test_a_reader_that_leaves_ends_the_command_quietly(cli: Cli) -> None:
    """`enginegate openapi | head -1` shows that line alone."""
    with cli.begin("openapi", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as printing:
        assert printing.stdout is not None
        printing.stdout.close()
        assert printing.stderr is not None
        assert printing.stderr.read() == ""


# --- what others wrote --------------------------------------------------------------------------


@given(st.text())
def test_text_of_others_is_one_line_without_control_characters(text: str) -> None:
    """Neither a terminal nor a log can be made to show what is not so."""
    shown = one_line(text)
    assert len(shown.splitlines()) <= 1
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in shown)


@given(st.text(), st.text())
def test_one_record_is_one_line(message: str, error: str) -> None:
    """A log line is a JSON object, also with a traceback and with anything in a message."""
    broken = ValueError(error)
    trace = (ValueError, broken, None)
    record = logging.LogRecord("x", logging.INFO, "", 0, "%s", (message,), trace)
    line = OneLine().format(record)
    assert len(line.splitlines()) == 1
    found = json.loads(line)
    assert (found["level"], found["logger"]) == ("info", "x")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", found["at"])
    assert "ValueError" in found["trace"]


def test_a_stream_is_read_as_the_standard_says() -> None:
    """Comments and unknown fields are passed over, lines of data joined, ids kept."""
    lines = [
        ": hello",
        "",
        "id: 1",
        "event: audit",
        "data: a",
        "data:b",
        "retry: 5",
        "",
        "data: c",
        "",
        "data: cut",
    ]
    assert [*parsed(iter(lines))] == [("1", "a\nb"), ("1", "c")]
