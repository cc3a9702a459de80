"""Builds the image that Docker tests run, without a registry: some seconds, then cached.

A file system with nothing but Python and the sample engine, put together from the
distribution's own packages. Run as a script it builds the images and prints their tags.
"""

import hashlib
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

ENGINE = Path(__file__).parents[2] / "enginegate" / "sample_engine.py"
REPOSITORY = "enginegate-test"
IMAGE, OTHER_IMAGE, USER_IMAGE = (f"{REPOSITORY}:{tag}" for tag in ("1", "2", "user"))

PYTHON_PACKAGES = [
    "python3.11-minimal",
    "libpython3.11-minimal",
    "libpython3.11-stdlib",
    "libc6",
    "libexpat1",
    "zlib1g",
    "libssl3",
    "libffi8",
    "libgcc-s1",
    "libbz2-1.0",
    "liblzma5",
    "libsqlite3-0",
    "libuuid1",
]
_COMMAND = '["/usr/bin/python3.11", "/engine.py"]'
_CACHE = Path(tempfile.gettempdir()) / f"enginegate-test-packages-{os.getuid()}"


def build(engine: Path = ENGINE) -> str:
    """Make the images if they are not there yet, and return the name of the first."""
    recipe = "\0".join([engine.read_text(), _COMMAND, *PYTHON_PACKAGES, Path(__file__).read_text()])
    content = f"{REPOSITORY}:{hashlib.sha256(recipe.encode()).hexdigest()[:16]}"
    if not _exists(content):
        with tempfile.TemporaryDirectory() as folder:
            _import(_file_system(Path(folder), engine), content)
    for tag in (IMAGE, OTHER_IMAGE):
        _docker("tag", content, tag)
    _with_user(content)
    return IMAGE


def _with_user(content: str) -> None:
    tag = f"{content}-user"
    if not _exists(tag):
        container = _docker("create", content).decode().strip()
        try:
            _docker("commit", "--change", "USER 1000:1000", container, tag)
        finally:
            _docker("rm", container)
    _docker("tag", tag, USER_IMAGE)


def _exists(image: str) -> bool:
    found = subprocess.run(["docker", "image", "inspect", image], capture_output=True, check=False)
    return found.returncode == 0


def _import(root: Path, tag: str) -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.add(root, arcname=".", filter=_owned)
    _docker("import", "--change", f"CMD {_COMMAND}", "-", tag, stdin=archive.getvalue())


def _owned(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Give the data directory to the user of the third image, and the rest to root."""
    owner = 1000 if member.name == "./data" else 0
    member.uid = member.gid = owner
    member.uname = member.gname = ""
    return member


def _file_system(folder: Path, engine: Path) -> Path:
    unpack(PYTHON_PACKAGES, folder)
    shutil.copyfile(engine, folder / "engine.py")
    return folder


def unpack(packages: list[str], folder: Path) -> None:
    """Unpack the distribution's packages and what every root file system has."""
    for package in _downloaded(packages):
        subprocess.run(["dpkg", "-x", str(package), str(folder)], check=True)
    for unneeded in ("usr/share", "usr/lib/x86_64-linux-gnu/gconv"):
        shutil.rmtree(folder / unneeded, ignore_errors=True)
    for name in ("data", "tmp", "run", "etc"):
        (folder / name).mkdir(exist_ok=True)
    (folder / "tmp").chmod(0o1777)


def _downloaded(packages: list[str]) -> list[Path]:
    """Return the packages' files, downloaded once per machine."""
    _CACHE.mkdir(mode=0o700, exist_ok=True)
    missing = [name for name in packages if not list(_CACHE.glob(f"{name}_*.deb"))]
    if missing:
        with tempfile.TemporaryDirectory(dir=_CACHE) as folder:
            Path(folder).chmod(0o755)
            subprocess.run(
                ["apt-get", "download", *missing], cwd=folder, check=True, capture_output=True
            )
            for package in Path(folder).glob("*.deb"):
                package.replace(_CACHE / package.name)
    return [next(_CACHE.glob(f"{name}_*.deb")) for name in packages]


def _docker(*arguments: str, stdin: bytes | None = None) -> bytes:
    done = subprocess.run(
        ["docker", *arguments], input=stdin, check=False, capture_output=True, timeout=120
    )
    assert done.returncode == 0, f"docker {arguments[0]}: {done.stderr.decode()}"
    return done.stdout


if __name__ == "__main__":
    build()
    print(IMAGE, OTHER_IMAGE, USER_IMAGE)
