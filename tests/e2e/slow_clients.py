"""Clients that hold connections and ask nothing whole; run as a program by a test.

`slow_clients.py PORT COUNT`: a third says nothing, a third sends half a head, a third
sends a byte a second. Prints a line when all are connected, and at the end, as JSON,
how each kind fared: how many were cut, when the first and the last (s), and what they
were told.
"""

import asyncio
import json
import resource
import sys
import time
from typing import Any

KINDS = ("silent", "half", "trickle")
HALF = b"POST /engines/ann/admit HTTP/1.1\r\nHost: x\r\nX-Half: "
GIVE_UP_S = 60.0


async def slow(kind: str, port: int, connected: asyncio.Semaphore) -> tuple[float, bytes]:
    """Connect and be slow; return after how many seconds it was cut, and what was said."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    began = time.monotonic()
    connected.release()
    if kind == "half":
        writer.write(HALF)
    trickling = asyncio.create_task(trickle(writer)) if kind == "trickle" else None
    try:
        async with asyncio.timeout(GIVE_UP_S):
            said = await reader.read()
    except ConnectionError:
        said = b""
    took = time.monotonic() - began
    if trickling:
        trickling.cancel()
    writer.close()
    return took, said.split(b"\r\n")[0]


async def trickle(writer: asyncio.StreamWriter) -> None:
    for byte in HALF:
        writer.write(bytes([byte]))
        await asyncio.sleep(1)


async def main(port: int, count: int) -> None:
    connected = asyncio.Semaphore(0)
    attacks: dict[str, list[asyncio.Task[tuple[float, bytes]]]] = {kind: [] for kind in KINDS}
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        attacks[kind].append(asyncio.create_task(slow(kind, port, connected)))
        await connected.acquire()
    print("connected", flush=True)
    fared: dict[str, Any] = {}
    for kind, tasks in attacks.items():
        found = await asyncio.gather(*tasks)
        fared[kind] = {
            "cut": len(found),
            "first_s": min(took for took, _ in found),
            "last_s": max(took for took, _ in found),
            "told": sorted({said.decode() for _, said in found}),
        }
    print(json.dumps(fared), flush=True)


if __name__ == "__main__":
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
