"""An engine with whims, for tests: what it does is in its version and in files of its data.

Version `lab:deaf` never opens its port, `lab:quits` exits at once, `lab:slow` takes its time to
say goodbye. Any other answers each
request but one to `/well` with the bytes of the file `whim`, where a test wrote one, and goes
on for ever with spaces where there is a file `endless`; else it is well. It says which paths
were asked.
"""

import os
import signal
import socketserver
import sys
import time
from pathlib import Path

DATA = Path(os.environ["ENGINE_DATA_DIR"])
GOODBYE_S = 2.0
WELL = b'HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{"status":"ok"}'


def say(line: str) -> None:
    os.write(2, line.encode() + b"\n")


class Answer(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        request = self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        path = request.split()[1].decode()
        say(f"asked {path}")
        whim = DATA / ("whim" if path != "/well" else "none")
        try:
            self.wfile.write(whim.read_bytes() if whim.exists() else WELL)
            while (DATA / "endless").exists():
                self.wfile.write(b" " * 1000)
                time.sleep(0.01)
        except OSError:
            pass  # whoever asked had enough


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


def goodbye(*_: object) -> None:
    time.sleep(GOODBYE_S)
    os._exit(0)


def main() -> int:
    version = os.environ["ENGINE_VERSION"]
    for number in range(60):
        say(f"{version} says {number}")
    if version == "lab:quits":
        return 3
    if version == "lab:deaf":
        time.sleep(600)
    if version == "lab:slow":
        signal.signal(signal.SIGTERM, goodbye)
    Server(("127.0.0.1", int(os.environ["PORT"])), Answer).serve_forever()
    return 0


sys.exit(main())
