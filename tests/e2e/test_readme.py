"""What the README says can be pasted and compared: it is run and checked, not believed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from enginegate import transitions
from enginegate.api.problems import STATUS
from enginegate.cli.sandbox import ENGINE_PORTS, free_ports
from enginegate.config import Config
from tests.e2e.conftest import ROOT, Cli, remains

README = ROOT / "README.md"
WORKPLACE = ("../" + "shared", "/work", "/home/", "pypi.", "localhost:5")


@pytest.fixture(scope="module")
def readme() -> str:
    return README.read_text(encoding="utf-8")


def block(text: str, language: str) -> str:
    """Return the only block of this language."""
    found = re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(found) == 1
    return str(found[0])


def test_the_quick_start_works_when_pasted(readme: str, tmp_path: Path) -> None:
    """From keys to audit trail, on another port so that nothing else is in the way."""
    commands = tmp_path / "commands"
    commands.mkdir()
    command = commands / "enginegate"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m enginegate "$@"\n')
    command.chmod(0o755)
    server, first = free_ports(), free_ports()
    cli = Cli(
        tmp_path,
        ENGINEGATE_URL=f"http://127.0.0.1:{server}",
        ENGINEGATE_SERVER__PORT=str(server),
        ENGINEGATE_PORTS__MIN=str(first),
        ENGINEGATE_PORTS__MAX=str(first + ENGINE_PORTS - 1),
        PATH=os.pathsep.join([str(commands), str(Path(sys.executable).parent), os.environ["PATH"]]),
    )
    script = "set -euo pipefail\n" + block(readme, "bash").replace(
        "127.0.0.1:8000", f"127.0.0.1:{server}"
    )
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env=cli.env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout
    assert f"accepts requests on http://127.0.0.1:{server}" in said
    assert re.search(r"^ann: provisioned in [\d.]+ ms$", said, re.MULTILINE)
    assert '"engine_id"' in said
    assert '{"status":"sleeping"}' in said
    assert re.search(r"^ann: woke in [\d.]+ ms$", said, re.MULTILINE)
    assert re.search(r"engines_destroyed +1", said)
    assert not remains(tmp_path / "data")


def test_the_diagram_is_the_table_that_is_followed(readme: str) -> None:
    """Printed by `transitions.diagram()`, letter by letter."""
    assert block(readme, "mermaid") == transitions.diagram() + "\n"


def test_the_table_of_errors_is_complete_and_right(readme: str) -> None:
    """Every code with its status, and none that there is not."""
    rows = re.findall(r"^\| (\d{3}) \| `([A-Z_]+)` \|", readme, re.MULTILINE)
    assert {code: int(status) for status, code in rows} == STATUS


def test_the_keys_and_defaults_that_are_shown_exist(readme: str) -> None:
    """Keys of the table of settings are keys of the configuration."""
    rows = re.findall(r"^\| (.+?) \| `ENGINEGATE_", readme, re.MULTILINE)
    for name in re.findall(r"`([a-z_]+(?:\.[a-z_]+)*)`", " ".join(rows)):
        value: object = Config()
        for part in name.split("."):
            value = getattr(value, part)


def test_nothing_of_a_workplace_is_in_it(readme: str) -> None:
    """It reads the same on every machine."""
    assert [word for word in WORKPLACE if word in readme] == []


def test_links_into_the_repository_lead_somewhere(readme: str) -> None:
    """A file that moves is noticed."""
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", readme)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_prose_is_one_sentence_a_line(readme: str) -> None:
    """So that a change of a sentence is a change of a line."""
    outside = re.sub(r"^```.*?^```$", "", readme, flags=re.MULTILINE | re.DOTALL)
    prose = [line for line in outside.splitlines() if line and line[0] not in "|#"]
    assert [line for line in prose if re.search(r"[a-z`)]\. [A-Z`]", line)] == []
