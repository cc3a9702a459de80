"""The socket that is listened on: passed on by who started us, or bound here."""

import os
import socket

SYSTEMD_FIRST_FD = 3


def inherited() -> socket.socket | None:
    """Return the listening socket that systemd, or who does as it does, has passed on."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or os.environ.get("LISTEN_FDS") != "1":
        return None
    listener = socket.socket(fileno=SYSTEMD_FIRST_FD)
    listener.set_inheritable(False)
    return listener


def bound(host: str, port: int) -> socket.socket:
    """Return a socket bound to the address.

    Bound early, so that a taken address is known before anything else is touched; it
    listens only once the server starts, so nobody is accepted too soon.

    Raises:
        OSError: the address is taken or not ours; it says which one.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"cannot listen on {host}:{port}: {error.strerror}") from error
    return listener
