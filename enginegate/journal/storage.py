"""Every system call of the journal's files, behind one small protocol.

Nothing else in the package touches a file, so a test can fail, tear, delay or
forget any single operation. Paths are absolute or relative to the working
directory; sizes and offsets are bytes; every method raises OSError.
"""

import os
from pathlib import Path
from typing import Protocol


class Storage(Protocol):
    """What the journal needs of a file system."""

    def names(self, directory: Path) -> list[str]:
        """Return the names in a directory, in any order."""
        ...

    def make_directory(self, path: Path) -> None:
        """Make a directory that only we may enter; it may exist."""
        ...

    def create(self, path: Path) -> int:
        """Open a file for reading and writing, emptied if it exists, mode 0600."""
        ...

    def open(self, path: Path) -> int:
        """Open an existing file for reading; a symbolic link is refused."""
        ...

    def size(self, fd: int) -> int: ...

    def pread(self, fd: int, size: int, offset: int) -> bytes: ...

    def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        """Return how many bytes were taken, which may be fewer than given."""
        ...

    def allocate(self, fd: int, size: int) -> None:
        """Reserve room on the disk; the file then has this size and reads as zeros."""
        ...

    def free_bytes(self, directory: Path) -> int:
        """Return how much room is left there; 0 where no more files can be made."""
        ...

    def truncate(self, path: Path, size: int) -> None:
        """Give back what lies behind `size`."""
        ...

    def begin_write_back(self, fd: int, offset: int, size: int) -> None:
        """Have the disk begin with these bytes; promises nothing, the sync waits for less."""
        ...

    def fdatasync(self, fd: int) -> None: ...

    def fsync(self, fd: int) -> None: ...

    def drop_cache(self, fd: int, offset: int, size: int) -> None:
        """Make the next read of these bytes come from the disk, as far as the system allows.

        Linux keeps a page of which a part is dropped; a `size` of 0 reaches to the end.
        """
        ...

    def close(self, fd: int) -> None: ...

    def rename(self, old: Path, new: Path) -> None: ...

    def unlink(self, path: Path) -> None: ...

    def sync_directory(self, path: Path) -> None:
        """Make renames and removals in the directory durable."""
        ...


class OsStorage:
    """The file system of the machine. Modes do not depend on the umask."""

    def names(self, directory: Path) -> list[str]:
        return os.listdir(directory)  # noqa: PTH208 - names are wanted, not paths

    def make_directory(self, path: Path) -> None:
        path.mkdir(mode=0o700, exist_ok=True)
        path.chmod(0o700)

    def create(self, path: Path) -> int:
        fd = os.open(
            path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
        )
        os.fchmod(fd, 0o600)
        return fd

    def open(self, path: Path) -> int:
        # Without waiting: a pipe with that name would keep us for ever.
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)

    def size(self, fd: int) -> int:
        return os.fstat(fd).st_size

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        return os.pread(fd, size, offset)

    def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        return os.pwrite(fd, data, offset)

    def allocate(self, fd: int, size: int) -> None:
        os.posix_fallocate(fd, 0, size)

    def free_bytes(self, directory: Path) -> int:
        status = os.statvfs(directory)
        if status.f_files and not status.f_ffree:
            return 0  # no inode is left; a system that counts none says 0 of 0
        blocks = status.f_bavail if os.geteuid() else status.f_bfree
        return blocks * status.f_frsize

    def truncate(self, path: Path, size: int) -> None:
        os.truncate(path, size)

    def begin_write_back(self, fd: int, offset: int, size: int) -> None:
        # Linux writes what is dirty in the range before it forgets it, and does not wait.
        os.posix_fadvise(fd, offset, size, os.POSIX_FADV_DONTNEED)

    def fdatasync(self, fd: int) -> None:
        os.fdatasync(fd)

    def fsync(self, fd: int) -> None:
        os.fsync(fd)

    def drop_cache(self, fd: int, offset: int, size: int) -> None:
        os.posix_fadvise(fd, offset, size, os.POSIX_FADV_DONTNEED)

    def close(self, fd: int) -> None:
        os.close(fd)

    def rename(self, old: Path, new: Path) -> None:
        old.rename(new)

    def unlink(self, path: Path) -> None:
        path.unlink()

    def sync_directory(self, path: Path) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
