"""What looks at a gate all day: dashboards that read the audit trail, a monitor that scrapes.

It says so once it has been answered. It stands for other machines, so it takes
no processor that the measured ones want.
"""

import asyncio
import os
import sys

import httpx

AUDITS_PER_S = 10
SCRAPES_PER_S = 1
QUERIES = ("limit=100", "action=health_check&limit=50", "user_id=user7", "actor=system")


async def main(url: str, admin_key: str) -> None:
    async with httpx.AsyncClient(
        base_url=url, headers={"X-Admin-Key": admin_key}, timeout=30
    ) as http:

        async def audits() -> None:
            turn = 0
            while True:
                turn += 1
                (await http.get(f"/audit?{QUERIES[turn % len(QUERIES)]}")).raise_for_status()
                await asyncio.sleep(1 / AUDITS_PER_S)

        async def scrapes() -> None:
            while True:
                page = await http.get("/metrics", headers={"accept": "text/plain"})
                page.raise_for_status()
                await asyncio.sleep(1 / SCRAPES_PER_S)

        (await http.get("/audit?limit=1")).raise_for_status()
        print("looking", flush=True)
        await asyncio.gather(audits(), scrapes())


if __name__ == "__main__":
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    asyncio.run(main(sys.argv[1], sys.argv[2]))
