"""How large a run is: that of every change, or the long one (`python -m tests.docker --long`)."""

import os

VARIABLE = "ENGINEGATE_DOCKER_LONG"
LONG = os.environ.get(VARIABLE) == "1"
