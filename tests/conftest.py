"""What all tests stand on."""

import signal


def pytest_configure() -> None:
    """Take SIGINT again where a shell had a background job ignore it.

    What is ignored is inherited through exec: the commands that tests interrupt would not hear.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
