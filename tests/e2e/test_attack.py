"""The running server attacked from its own OpenAPI document."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
)
SECONDS_MAX = 120


def test_generated_requests_meet_nothing_that_is_not_documented(
    own_server: Any, tmp_path: Path
) -> None:
    """No 500, no undocumented status or shape, for valid and invalid requests alike."""
    made = own_server.cli.json("products", "register", "target", "--max-engines", "3")
    command = shutil.which("schemathesis", path=os.fspath(Path(sys.executable).parent))
    assert command is not None
    attack = subprocess.run(
        [
            command,
            "run",
            f"{own_server.url}/openapi.json",
            *("-H", f"X-Platform-Key: {made['platform_api_key']}"),
            *("-H", f"X-Admin-Key: {own_server.admin_key}"),
            *("--exclude-path", "/events"),  # a stream without an end
            *("--checks", ",".join(CHECKS)),
            *("--phases", "examples,coverage,fuzzing"),
            *("--max-examples", "15"),
            *("--seed", "7"),
            *("--generation-database", "none"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )
    assert attack.returncode == 0, attack.stdout[-4000:]
    assert own_server.process.poll() is None
