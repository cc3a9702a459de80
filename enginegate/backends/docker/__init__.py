"""Engines as containers of a Docker Engine.

`backend` has the verbs, `supplies` what an engine needs before it can run; `daemon` speaks
with the Engine, and alone knows aiodocker; `container` and `answers` are what goes out and
comes in; `events` are hints, `peers` who is connected, `budget` bounds calls in flight.
"""

from enginegate.backends.docker.backend import DockerBackend

__all__ = ["DockerBackend"]
