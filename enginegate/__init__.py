"""The gate in front of a fleet of private per-user engines."""

__version__ = "0.1.0"
