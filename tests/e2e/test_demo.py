"""The demo tells a true story, and nothing of it stays behind."""

import os
import re
import shlex
import signal
import subprocess
from pathlib import Path

import httpx
import pytest

from enginegate.cli.client import Gate
from enginegate.cli.sandbox import Sandbox
from enginegate.cli.story import CROWD, WARM_ADMITS
from tests.e2e.conftest import Cli, eventually, remains

SCENES = [
    r" 1  serve +enginegate accepts requests on http://127\.0\.0\.1:\d+ after \d+ ms",
    r" 2  register +product demo .*",
    r" 3  cold admit +alice's engine was made, booted and healthy in \d+ ms: http://127\.0\.0\.1:\d+",
    r" 4  call +the engine answers 200 with its key, 401 without",
    rf" 5  warm admits +{WARM_ADMITS:,} .*p50 \d+\.\d\d ms, p99 \d+\.\d\d ms, [\d,]+ a second",
    rf" 6  stampede +{CROWD} simultaneous admits of bob made one engine; .*",
    r" 7  sleep +alice's engine \(pid \d+\) is frozen after \d+ ms.*",
    r" 8  wake +an admit with auto_wake .* in \d+ ms",
    r" 9  kill -9 +server \d+ killed; .* not restarted\)",
    r"10  audit +\d+ entries, the oldest first:",
]


@pytest.fixture
def demo(cli: Cli, tmp_path: Path) -> Cli:
    """The command, with a place of its own for temporary files."""
    (tmp_path / "tmp").mkdir()
    cli.env["TMPDIR"] = str(tmp_path / "tmp")
    return cli


def leaves_nothing(cli: Cli) -> bool:
    place = Path(cli.env["TMPDIR"])
    return not remains(place) and not list(place.iterdir())


def test_the_demo_tells_the_whole_story(demo: Cli) -> None:
    """Each scene is a plain line with what was measured; then all of it is gone."""
    told = demo.run("demo").stdout.splitlines()
    scenes = [line for line in told if re.match(r" ?\d+  ", line)]
    assert len(scenes) == len(SCENES)
    for scene, line in zip(SCENES, scenes, strict=True):
        assert re.fullmatch(scene, line)
    assert re.fullmatch(r"Done in \d+\.\d s; .* are gone\.", told[-1])
    assert not any("-eg-" in line or "\x1b" in line for line in told)
    assert leaves_nothing(demo)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_cleans_up(demo: Cli, number: int) -> None:
    """Ctrl-C in the middle, with engines up: exit code 130, and nothing is left."""
    with demo.begin("demo", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        while "cold admit" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert leaves_nothing(demo)


def test_a_demo_that_goes_wrong_says_so(demo: Cli) -> None:
    """Where no server can come up, a message and exit code 1; nothing is left."""
    (demo.directory / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if 'serve' in sys.orig_argv:\n"
        "    os.write(2, b'no server today\\n')\n"
        "    os._exit(1)\n"
    )
    demo.env["PYTHONPATH"] = os.pathsep.join([str(demo.directory), demo.env["PYTHONPATH"]])
    done = demo.run("demo", exits=1)
    assert "The demo failed: the server did not come up" in done.stderr
    assert "no server today" in done.stderr
    assert leaves_nothing(demo)


@pytest.mark.parametrize("broken", [False, True])
def test_engines_end_with_the_demo_even_if_its_server_does_not_live(
    broken: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that died comes back to destroy them; if it cannot, they are ended one by one."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    sandbox = Sandbox()
    sandbox.start()
    body = {"slug": "demo", "display_name": "The demo"}
    key = sandbox.admin().call("POST", "/products/register", body)["platform_api_key"]
    gate = Gate(sandbox.url, {"X-Platform-Key": key})
    assert gate.call("POST", "/engines/zoe/admit", {"auto_provision": True})["admitted"]
    sandbox.kill()
    assert len(remains(tmp_path)) == 1
    if broken:
        (sandbox.directory / "config.toml").write_text("nonsense")
    sandbox.close()
    assert remains(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_a_kept_demo_serves_until_it_is_stopped_as_told(demo: Cli) -> None:
    """It says where it is, with which keys, and the line that stops it without a trace."""
    told = demo.run("demo", "--keep").stdout
    exports = dict(re.findall(r"^  export (\w+)=(\S+)$", told, re.MULTILINE))
    assert httpx.get(f"{exports['ENGINEGATE_URL']}/health").json()["status"] == "ok"
    kept = Cli(demo.directory, **exports)
    assert kept.json("engines", "list")["total"] == 2
    stop = told.splitlines()[-1].split("&&")
    delete, kill, remove = (shlex.split(part) for part in stop)
    assert delete[0] == "enginegate"
    kept.run(*delete[1:])
    assert kill[0] == "kill"
    pid = int(kill[1])
    assert pid in remains(Path(demo.env["TMPDIR"]))
    os.kill(pid, signal.SIGTERM)
    assert remove[:2] == ["rm", "-r"]
    eventually(lambda: not remains(Path(demo.env["TMPDIR"])), "the server has ended")
    subprocess.run(remove, check=True)
    assert leaves_nothing(demo)
