"""The socket that is listened on: passed on by who started us, or bound here."""

import os
import socket

SYSTEMD_FIRST_FD = 3
UNSENT_MAX_BYTES = 128 * 1024  # beyond what is on its way


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


def impatient(listener: socket.socket, timeout_s: float) -> socket.socket:
    """Return it, set so that the kernel, too, ends who does not take what is sent.

    What the kernel has taken from us is out of our sight: megabytes of answers for each
    connection that reads none. So it keeps little that cannot be sent yet, and drops a
    connection whose client has taken nothing for so long. Connections inherit both from
    the socket; a system that does not know one does without.
    """
    options = {"TCP_USER_TIMEOUT": round(timeout_s * 1000), "TCP_NOTSENT_LOWAT": UNSENT_MAX_BYTES}
    for name, value in options.items():
        option = getattr(socket, name, None)
        if option is not None and listener.family in (socket.AF_INET, socket.AF_INET6):
            listener.setsockopt(socket.IPPROTO_TCP, option, value)
    return listener
