"""What looks at a gate all day: dashboards that read the audit trail, a monitor that scrapes.

It says so once it has been answered. It stands for other machines, so it takes no
processor that the measured ones want: little by itself, and that with the lowest priority,
which alone would not do. Whoever has waited long enough is given a whole turn all the same.
"""

import os
import sys
import time
from http import HTTPStatus
from http.client import HTTPConnection
from itertools import count
from urllib.parse import urlsplit

AUDITS_PER_S = 10
SCRAPES_PER_S = 1
QUERIES = ("limit=100", "action=health_check&limit=50", "user_id=user7", "actor=system")


def main(url: str, admin_key: str) -> None:
    address = urlsplit(url)
    gate = HTTPConnection(address.hostname or "", address.port, timeout=30)

    def ask(path: str, *, accept: str = "*/*") -> None:
        gate.request("GET", path, headers={"X-Admin-Key": admin_key, "Accept": accept})
        answer = gate.getresponse()
        answer.read()
        assert answer.status == HTTPStatus.OK, f"{path}: {answer.status}"

    ask("/audit?limit=1")
    print("looking", flush=True)
    began = time.monotonic()
    for turn in count():
        ask(f"/audit?{QUERIES[turn % len(QUERIES)]}")
        if turn % (AUDITS_PER_S // SCRAPES_PER_S) == 0:
            ask("/metrics", accept="text/plain")
        time.sleep(max(began + (turn + 1) / AUDITS_PER_S - time.monotonic(), 0))


if __name__ == "__main__":
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    main(sys.argv[1], sys.argv[2])
