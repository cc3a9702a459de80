"""`python -m tests.docker [--long] [PART...]`: the tests against a real Docker Engine, alone.

`--long` runs them at the size that a release is judged by: 50 pairs, 20 outages, 300 engines.
A part is a word in a file's name (`outage`, `scale`, `pairs` …); without one all are run.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from tests.docker.size import VARIABLE

NICE = 5


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.docker", description=__doc__)
    parser.add_argument("--long", action="store_true", help="the long sizes: some twenty minutes")
    parser.add_argument("parts", nargs="*", metavar="part")
    options = parser.parse_args()
    folder = Path(__file__).parent
    files = sorted(folder.glob("test_*.py"))
    chosen = [
        str(file)
        for file in files
        if not options.parts or any(part in file.name for part in options.parts)
    ]
    # In a process of its own: the sizes are read when their module is, which was just now.
    sizes = {"ENGINEGATE_REQUIRE_DOCKER": "1", VARIABLE: "1" if options.long else "0"}
    command = [sys.executable, "-m", "pytest", "-q", "--durations=10", *chosen]
    os.nice(NICE)
    return subprocess.run(command, env=os.environ | sizes, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
