"""Engine keys, tried one after the other beside the requests once a server listens.

A start opens none: the files' headers name the master key, and checksums vouch for the rest.
What is left is a file that was edited, and its engine alone is the worse for it.
"""

import logging
from typing import Final

from enginegate.keys import KeyUnsealError
from enginegate.registry.fleet import LiveEngine
from enginegate.registry.registry import Registry

log = logging.getLogger(__name__)

AT_ONCE: Final = 10  # less than 0.1 ms
PAUSE_S: Final = 0.005
TOLD_MAX: Final = 20


async def open_keys(registry: Registry) -> int:
    """Open every engine key that nobody has asked for yet; return how many do not open.

    The log names them: their admits are refused until the key is rotated.
    """
    met = failed = 0
    async for live in registry.index.walk():
        if (error := _unopened(live)) is not None:
            failed += 1
            if failed <= TOLD_MAX:
                log.error("%s: admits of it are refused; rotate its key, or destroy it", error)
        met += 1
        if met % AT_ONCE == 0:
            await registry.clock.sleep(PAUSE_S)
    if failed > TOLD_MAX:
        log.error("%d engine keys do not open", failed)
    return failed


def _unopened(live: LiveEngine) -> KeyUnsealError | None:
    try:
        _ = live.api_key
    except KeyUnsealError as error:
        return error
    return None
