"""The real server over a large fleet that was there before it: some of it runs, most is stopped."""

import argparse
import asyncio
from pathlib import Path
from typing import Any

import uvloop
from msgspec.structs import replace

from bench.fleet import engine, product
from bench.http.still_backend import StillBackend
from enginegate.config import Config, Health, Idle, Secrets
from enginegate.config.settings import Server as ServerSettings
from enginegate.journal import Journal
from enginegate.keys import Keyring, new_admin_key, new_engine_key, new_master_key
from enginegate.model import Status
from enginegate.server import Server

NOT_A_PORT = 100_000  # of stopped engines: more than there are ports to give out


class LargeServer(Server):
    """Writes a snapshot every `snapshot_every_s`, as a server with much to write would."""

    snapshot_every_s = 0.0

    async def _serve(self, ground: Any, journal: Any, committer: Any, *rest: Any) -> None:
        async def snapshots() -> None:
            while True:
                await asyncio.sleep(self.snapshot_every_s)
                await committer.compact()

        task = asyncio.create_task(snapshots()) if self.snapshot_every_s else None
        await super()._serve(ground, journal, committer, *rest)
        if task is not None:
            task.cancel()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    for name in ("port", "farm", "running", "rows"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--key", required=True)
    parser.add_argument("--admin-key", default=new_admin_key())
    parser.add_argument("--sweep-every-s", type=float, required=True)
    parser.add_argument("--snapshot-every-s", type=float, default=0.0)
    asked = parser.parse_args()
    master_key = new_master_key()
    config = Config(
        data_dir=str(asked.directory),
        server=ServerSettings(port=asked.port),
        health=Health(interval_s=asked.sweep_every_s),
        idle=Idle(sleep_after_s=0),
    )
    running, stopped = _write(config, asked, master_key)
    backend = StillBackend(running=running, stopped=stopped)
    secrets = Secrets(admin_key=asked.admin_key, master_keys=(master_key,))
    server = LargeServer(config, secrets, backend=lambda *_: backend)
    server.snapshot_every_s = asked.snapshot_every_s
    uvloop.run(server.run(lambda _: None))


def _write(config: Config, asked: Any, master_key: str) -> tuple[list[str], list[str]]:
    """Write the fleet into a journal, and return who runs and who is stopped."""
    keyring = Keyring([master_key])
    rows = []
    for number in range(asked.rows):
        row = engine(number, "p0", sealed_key=keyring.seal(f"e{number}", new_engine_key()))
        runs = number < asked.running
        port = asked.farm + number if runs else NOT_A_PORT + number
        status = Status.RUNNING if runs else Status.STOPPED
        rows.append(replace(row, port=port, status=status))
    journal = Journal.open(config.data_path, key_id=keyring.key_id)
    journal.begin([product(0, asked.key), *rows])
    journal.close()
    ids = [row.engine_id for row in rows]
    return ids[: asked.running], ids[asked.running :]


if __name__ == "__main__":
    main()
