"""Admits without pause, from a process of its own, until its standard input ends.

`hammer.py HOST PORT PLATFORM_KEY USER...` prints one JSON array of [monotonic seconds,
milliseconds, whether it was a 200 that admits] for each admit.
"""

import http.client
import json
import select
import sys
import time

PAUSE_S = 0.002


def main() -> None:
    host, port, key, *users = sys.argv[1:]
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    headers = {"X-Platform-Key": key, "Content-Type": "application/json"}
    seen = []
    number = 0
    while not select.select([sys.stdin], [], [], PAUSE_S)[0]:
        user = users[number % len(users)]
        number += 1
        began = time.monotonic()
        try:
            connection.request("POST", f"/engines/{user}/admit", b"{}", headers)
            answer = connection.getresponse()
            ok = answer.status == 200 and b'"admitted":true' in answer.read()
        except (OSError, http.client.HTTPException):
            connection.close()
            ok = False
        seen.append((began, (time.monotonic() - began) * 1000, ok))
    json.dump(seen, sys.stdout)


if __name__ == "__main__":
    main()
