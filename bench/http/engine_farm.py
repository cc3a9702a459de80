"""Hundreds of engines in one process: each a port that says it is well.

It takes no processor that the measured ones want, as engines on other machines would not.
"""

import asyncio
import os
import sys
from typing import Any

import uvloop

ANSWER = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 15\r\n"
    b'connection: close\r\n\r\n{"status":"ok"}'
)


class Engine(asyncio.Protocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, _: bytes) -> None:
        self.transport.write(ANSWER)
        self.transport.close()


async def main(first: int, count: int) -> None:
    loop = asyncio.get_running_loop()
    servers = [
        await loop.create_server(Engine, "127.0.0.1", port) for port in range(first, first + count)
    ]
    await asyncio.gather(*(server.serve_forever() for server in servers))


if __name__ == "__main__":
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    uvloop.run(main(int(sys.argv[1]), int(sys.argv[2])))
