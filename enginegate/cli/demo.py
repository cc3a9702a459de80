"""`demo`: the whole life of an engine on a real server, measured, and gone afterwards."""

import http.client
import signal
import sys
import time
from types import FrameType
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from enginegate.cli.failures import Failure
from enginegate.cli.streams import written

if TYPE_CHECKING:
    from enginegate.cli.sandbox import Sandbox
    from enginegate.cli.story import Story


def demo(
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the server running, and say how to stop it.")
    ] = False,
) -> None:
    """Show what enginegate does, with real engines; needs no Docker and no configuration."""
    from enginegate.cli.sandbox import Sandbox
    from enginegate.cli.story import Scene, Story

    begun = time.monotonic()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    sandbox = Sandbox()
    kept = False
    try:
        story = Story(sandbox, Scene())
        _tell(story)
        if keep:
            with written():  # nobody could stop a server that he was not told of
                _explain(sandbox, story)
            kept = True
    finally:
        if not kept:
            _close(sandbox)
    if not kept:
        seconds = time.monotonic() - begun
        print(f"Done in {seconds:.1f} s; engines, server and temporary directory are gone.")


def _tell(story: "Story") -> None:
    """Let the story run; whatever goes wrong ends as one message with the server's last words."""
    try:
        story.tell()
    except (Failure, OSError, LookupError, ValueError, http.client.HTTPException) as error:
        what = str(error) if isinstance(error, Failure) else f"{type(error).__name__}: {error}"
        if tail := story.sandbox.log_tail():
            print(f"The last lines of the server's log:\n{tail}", file=sys.stderr)
        raise Failure(f"The demo failed: {what}") from error


def _close(sandbox: "Sandbox") -> None:
    """Clean up to the end, whoever loses patience."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sandbox.close()


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _explain(sandbox: "Sandbox", story: "Story") -> None:
    print(
        f"\nIt keeps serving on {sandbox.url} (pid {sandbox.pid}, all in {sandbox.directory}).\n"
        "Talk to it from this shell with:\n"
        f"  export ENGINEGATE_URL={sandbox.url}\n"
        f"  export ENGINEGATE_ADMIN_KEY_FILE={sandbox.admin_key_file}\n"
        f"  export ENGINEGATE_PLATFORM_KEY={story.platform_key}\n"
        "Then, for example:\n"
        "  enginegate engines list\n"
        "Stop it, with its engines and all it has written:\n"
        f"  enginegate products delete {story.product_id} --yes"
        f" && kill {sandbox.pid} && rm -r {sandbox.directory}"
    )
