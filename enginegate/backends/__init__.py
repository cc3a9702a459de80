"""Where engines run. The protocol is owned by the core; `server` picks the class."""
