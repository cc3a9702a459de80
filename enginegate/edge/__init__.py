"""The HTTP edge: uvicorn's protocol with limits on what a client may send, hold and take.

uvicorn alone waits for ever for a client that says nothing, takes headers of any size,
and lets idle connections crowd out the others. What is here bounds time, bytes and
connections before a request reaches the application, and ends the service without
losing one.
"""

from enginegate.edge.doors import Doors, Limits
from enginegate.edge.http_server import HttpServer

__all__ = ["Doors", "HttpServer", "Limits"]
