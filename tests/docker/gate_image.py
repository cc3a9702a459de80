"""Builds deploy/Dockerfile as it stands, without a registry: only its base image is ours.

The base is what the Dockerfile expects of `python:…-slim`: Python, pip and a shell, from the
distribution's packages, with the wheels that pip will ask for in place of an index.
"""

import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from pathlib import Path

from tests.backends import image
from tests.docker.engine import docker

ROOT = Path(__file__).parents[2]
BASE = "enginegate-test-python"
IMAGE = "enginegate-test-gate:1"
_SHELL_PACKAGES = ["dash", "coreutils", "libacl1", "libattr1", "libgmp10", "libselinux1"]
_SHELL_PACKAGES += ["libpcre2-8-0"]
_WHEELS = "wheels"
_CHANGES = [
    "ENV PATH=/usr/local/bin:/usr/bin:/bin PIP_NO_INDEX=1 PIP_FIND_LINKS=/wheels",
    'CMD ["python"]',
]
_PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (17, 28, 34)] + ["manylinux2014_x86_64"]


def build() -> str:
    """Build the image of enginegate from deploy/Dockerfile and return its name."""
    environment = os.environ | {"DOCKER_BUILDKIT": "0"}
    words = ["docker", "build", "-q", "-f", "deploy/Dockerfile", "-t", IMAGE]
    words += ["--build-arg", f"PYTHON_IMAGE={_base()}", "."]
    done = subprocess.run(
        words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return IMAGE


def _base() -> str:
    lock = (ROOT / "requirements.lock").read_text() + (ROOT / "pyproject.toml").read_text()
    recipe = hashlib.sha256((lock + Path(__file__).read_text()).encode()).hexdigest()[:16]
    tag = f"{BASE}:{recipe}"
    if not docker("images", "-q", tag):
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            _fill(root)
            archive = io.BytesIO()
            with tarfile.open(fileobj=archive, mode="w") as tar:
                tar.add(root, arcname=".", filter=_owned_by_root)
            changes = [word for change in _CHANGES for word in ("--change", change)]
            docker("import", *changes, "-", tag, stdin=archive.getvalue())
    return tag


def _owned_by_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


def _fill(root: Path) -> None:
    image.unpack([*image.PYTHON_PACKAGES, *_SHELL_PACKAGES], root)
    commands = root / "usr/local/bin"
    commands.mkdir(parents=True)
    (commands / "python").symlink_to("/usr/bin/python3.11")
    (root / _WHEELS).mkdir()
    _download(root / _WHEELS)
    [pip] = (root / _WHEELS).glob("pip-*.whl")
    with zipfile.ZipFile(pip) as wheel:
        wheel.extractall(root / "usr/lib/python3/dist-packages")


def _download(folder: Path) -> None:
    """Download the wheels of all that enginegate needs, to run and to be built."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [*project["project"]["dependencies"], *project["build-system"]["requires"], "pip"]
    words = [sys.executable, "-m", "pip", "download", "-q", "-d", str(folder)]
    words += ["-c", str(ROOT / "requirements.lock"), "--only-binary=:all:"]
    words += ["--python-version=3.11", "--implementation=cp"]
    words += [f"--abi={abi}" for abi in ("cp311", "abi3", "none")]
    words += [f"--platform={platform}" for platform in _PLATFORMS]
    done = subprocess.run([*words, *wanted], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
