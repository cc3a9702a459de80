"""Builds the image of the tiny engine: one static binary, compiled here, without a registry."""

import hashlib
import io
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import pytest

from tests.docker.engine import docker

SOURCE = Path(__file__).with_name("tiny.c")
REPOSITORY = "enginegate-tiny"
IMAGE = f"{REPOSITORY}:1"
_COMMAND = '["/engine"]'


def build(host: str | None = None) -> str:
    """Make the image on that Engine if it is not there yet, and return its name."""
    recipe = SOURCE.read_bytes() + Path(__file__).read_bytes()
    content = f"{REPOSITORY}:{hashlib.sha256(recipe).hexdigest()[:16]}"
    listed = docker("images", "-q", content, host=host)
    if not listed:
        docker("import", "--change", f"CMD {_COMMAND}", "-", content, stdin=_archive(), host=host)
    docker("tag", content, IMAGE, host=host)
    return IMAGE


def _archive() -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name in ("data", "tmp", "run", "etc"):
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(folder)
        binary = _compiled()
        engine = tarfile.TarInfo("engine")
        engine.size, engine.mode = len(binary), 0o755
        tar.addfile(engine, io.BytesIO(binary))
    return packed.getvalue()


def _compiled() -> bytes:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.fail("a C compiler is needed to build the tiny engine (gcc and libc6-dev)")
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / "engine"
        options = ["-static", "-Os", "-s", "-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE"]
        subprocess.run([compiler, *options, "-o", binary, SOURCE], check=True, timeout=60)
        return binary.read_bytes()
