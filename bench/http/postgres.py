"""A PostgreSQL of our own in a temporary directory, filled like a fleet of engines."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

MISSING = "PostgreSQL is not installed (Debian: apt-get install postgresql)"
ENGINES = 1_000
PATIENCE_S = 30.0


def programs() -> Path | None:
    """Return the directory of the newest server's programs."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    found = debian[-1] if debian else shutil.which("initdb")
    return Path(found).resolve().parent if found else None


def _user() -> str | None:
    """PostgreSQL refuses to run as root; then its package has made a user for it."""
    return "postgres" if os.geteuid() == 0 else None


@contextmanager
def serve(directory: Path, key: str, user_id: str) -> Iterator[str]:
    """Yield the address of a database that knows the product of `key` and its engines."""
    where = programs()
    assert where is not None, MISSING
    home = directory / "postgres"
    home.mkdir()
    directory.chmod(0o755)  # for that user to get through
    if user := _user():
        shutil.chown(home, user)
    data = home / "data"
    _run([where / "initdb", "-D", data, "-A", "trust", "-U", "bench", "--no-sync"])
    command = [where / "postgres", "-D", data, "-k", home, "-c", "listen_addresses="]
    address: list[Path | str] = ["-h", home, "-U", "bench", "-d", "postgres"]
    with (directory / "postgres.log").open("wb") as log:
        running = subprocess.Popen(
            [str(part) for part in command], stdout=log, stderr=log, user=_user()
        )
    try:
        _until_ready(where, home)
        once = ["-v", "ON_ERROR_STOP=1", "-c", _content(key, user_id)]
        _run([where / "psql", *address, *once])
        yield f"postgresql://bench@/postgres?host={home}"
    finally:
        running.terminate()
        running.wait(PATIENCE_S)


def _run(command: list[Path | str]) -> None:
    parts = [str(part) for part in command]
    subprocess.run(parts, check=True, capture_output=True, user=_user(), cwd="/")


def _until_ready(where: Path, home: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    command = [str(where / "pg_isready"), "-h", str(home), "-q"]
    while subprocess.run(command, check=False).returncode != 0:
        assert time.monotonic() < deadline, "PostgreSQL does not come up"
        time.sleep(0.1)


def _content(key: str, user_id: str) -> str:
    from bench.http.fastapi_postgres import SCHEMA

    key_hash = sha256(key.encode()).hexdigest()
    return f"""{SCHEMA}
    INSERT INTO products VALUES (gen_random_uuid(), 'bench', '{key_hash}');
    INSERT INTO engines SELECT gen_random_uuid(), product_id,
      CASE n WHEN 1 THEN '{user_id}' ELSE 'other-' || n END, 'running',
      'http://127.0.0.1:' || (9000 + n), 'sk-eg-' || repeat('x', 43), 'my-engine:2.3.0',
      now(), now()
      FROM products, generate_series(1, {ENGINES}) AS n;
    ANALYZE;"""  # noqa: S608 - our own words, into a database of our own
