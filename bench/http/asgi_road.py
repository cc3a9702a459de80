"""enginegate as any other ASGI server would serve it: uvicorn's own protocol, and no lane."""

from enginegate.cli import main
from enginegate.edge import versions

if __name__ == "__main__":
    # What a uvicorn that was not tested gets, with the one that was: the same on both sides.
    versions.is_tested = lambda version: version == ""
    main()
