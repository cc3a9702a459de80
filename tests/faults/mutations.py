"""Planted bugs: each of them must turn the tests red, or the tests are worth less than they look.

Every mutation is a few lines that take one promise away, and the quickest tests that should
notice. They are applied one by one to a copy of the tree. A mutation whose anchor is no
longer in the code fails loudly: it has to be written anew, not forgotten.
"""

import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.faults.campaign import Run, campaign

ROOT = Path(__file__).parents[2]
FOLDERS = ("enginegate", "tests")
LIMIT_S = 300.0
RED = re.compile(r"^(?:FAILED|ERROR) (\S+)|^failed: (\w+)", re.MULTILINE)


@dataclass(frozen=True)
class Change:
    """One place in one file: what stands there, and what the mutation makes of it."""

    path: str
    old: str
    new: str

    def apply(self, tree: Path) -> None:
        """Raise AssertionError unless the anchor is there exactly once."""
        file = tree / "enginegate" / self.path
        text = file.read_text()
        count = text.count(self.old)
        assert count == 1, f"{self.path}: the anchor stands there {count} times:\n{self.old}"
        file.write_text(text.replace(self.old, self.new))


@dataclass(frozen=True)
class Mutation:
    """A bug, and the tests that should see it: pytest's arguments, or a campaign's."""

    name: str
    changes: tuple[Change, ...]
    tests: tuple[str, ...]

    def command(self) -> list[str]:
        if self.tests[0] == "campaign":
            return [sys.executable, "-m", "tests.faults", *self.tests[1:]]
        options = ["-q", "-x", "-p", "no:cacheprovider", "--no-header"]
        return [sys.executable, "-m", "pytest", *options, *self.tests]


REOPENED = """

def _reopened(storage: Storage, last: "Inherited", at: Position) -> Segment:
    from enginegate.journal.archive import first_frame
    from enginegate.journal.files import read_start
    from enginegate.journal.frames import Link
    from enginegate.journal.payloads import decode_header

    first = first_frame(read_start(storage, last.path, last.size))
    header, link = decode_header(first.payload), Link(at.sequence, at.crc, first.crc)
    return Segment(storage, last.path, storage.open(last.path), header, end=last.end, link=link)
"""

POWER = ("campaign", "power", "--count", "400")

MUTATIONS = (
    Mutation(
        "answer before sync",
        (
            Change(
                "journal/committer.py",
                "        raws = [item.raw for item in batch]\n        try:\n",
                "        raws = [item.raw for item in batch]\n"
                "        for index, item in enumerate(batch):\n"
                "            if not item.future.done():\n"
                "                item.future.set_result(self._journal.next_number + index)\n"
                "        try:\n",
            ),
        ),
        ("tests/journal/test_journal_committer.py",),
    ),
    Mutation(
        "sync removed",
        (
            Change(
                "journal/segments.py",
                "            self._storage.fdatasync(self._fd)\n",
                "            pass\n",
            ),
        ),
        POWER,
    ),
    Mutation(
        "directory fsync removed",
        (
            Change(
                "journal/segments.py",
                "            storage.sync_directory(segment.path.parent)\n",
                "            pass\n",
            ),
            Change(
                "journal/snapshot.py",
                "        storage.sync_directory(path.parent)\n",
                "        pass\n",
            ),
        ),
        POWER,
    ),
    Mutation(
        "retry after failed sync",
        (
            Change(
                "journal/segments.py",
                "            self._storage.fdatasync(self._fd)\n",
                "            try:\n"
                "                self._storage.fdatasync(self._fd)\n"
                "            except OSError:\n"
                "                self._storage.fdatasync(self._fd)\n",
            ),
        ),
        ("tests/journal/test_journal_faults.py", "-k", "final"),
    ),
    Mutation(
        "header CRC ignored",
        (
            Change(
                "journal/frames.py",
                "    if magic != MAGIC or check != crc32(data[offset : offset + HEADER_BYTES - 4],"
                " seed):\n",
                "    if magic != MAGIC:\n",
            ),
        ),
        ("tests/journal/test_journal_damage.py",),
    ),
    Mutation(
        "forward scan removed",
        (
            Change(
                "journal/frames.py",
                "    spot = data.find(MAGIC, offset + 1)\n",
                "    spot = -1\n",
            ),
        ),
        ("tests/journal/test_journal_damage.py",),
    ),
    Mutation(
        "append to the old segment after recovery",
        (
            Change(
                "journal/journal.py",
                "            self._keep()\n"
                "            self._publish(self._new.segment(at, genesis=self.fresh and not"
                " state))\n",
                "            if self._last is None:\n"
                "                self._publish(self._new.segment(at, genesis=not state))\n"
                "            else:\n"
                "                self._segment = _reopened(self._storage, self._last, at)\n"
                "                self._ends = []\n",
            ),
            Change(
                "journal/journal.py",
                'log = logging.getLogger("enginegate.journal")\n',
                REOPENED + '\n\nlog = logging.getLogger("enginegate.journal")\n',
            ),
        ),
        POWER,
    ),
    Mutation(
        "unknown treated as absent",
        (
            Change(
                "health.py",
                "        except BackendError:\n"
                "            return  # unknown changes nothing; the next look decides\n",
                "        except BackendError:\n"
                "            from enginegate.backends.base import Observation\n\n"
                "            name = live.engine.engine_id\n"
                "            seen = Observation(engine_id=name, presence=Presence.ABSENT)\n",
            ),
        ),
        ("tests/service/test_health.py", "tests/service/test_recovery.py"),
    ),
    Mutation(
        "lock removed",
        (
            Change(
                "journal/files.py",
                "        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)\n",
                "        pass\n",
            ),
        ),
        ("tests/journal/test_journal_faults.py", "-k", "second_opener"),
    ),
    Mutation(
        "orphan guard removed",
        (
            Change(
                "orphans.py",
                "            self._alarm(len(due))\n            return\n",
                "            self._alarm(len(due))\n",
            ),
        ),
        ("tests/service/test_recovery.py", "-k", "grace"),
    ),
    Mutation(
        "reservation removed",
        (
            Change(
                "registry/registry.py",
                "                self.ports.lease(fact.port)\n"
                "                self.products[fact.product_id].promised[fact.user_id] ="
                " fact.engine_id\n",
                "                self.ports.lease(fact.port)\n",
            ),
        ),
        ("tests/service/test_admission.py",),
    ),
    Mutation(
        "== instead of compare_digest",
        (
            Change(
                "api/auth.py",
                "compare_digest(digest(key), self._admin)",
                "digest(key) == self._admin",
            ),
        ),
        ("tests/repo/test_secrets.py",),
    ),
)


def copy_tree(place: Path) -> Path:
    """Return a copy of what the tests need."""
    tree = place / "tree"
    leave_out = shutil.ignore_patterns("__pycache__")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, tree / folder, ignore=leave_out)
    for name in ("pyproject.toml", "config.toml", "README.md", "CHANGELOG.md"):
        shutil.copy(ROOT / name, tree / name)
    return tree


def caught_by(mutation: Mutation) -> str:
    """Apply the mutation to a copy, and return which test turned red; "" if none did."""
    with tempfile.TemporaryDirectory(prefix="enginegate-mutation-") as place:
        tree = copy_tree(Path(place))
        for change in mutation.changes:
            change.apply(tree)
        try:
            done = subprocess.run(
                mutation.command(),
                cwd=tree,
                env={"PYTHONPATH": str(tree), "PATH": "/usr/bin:/bin", "HOME": place},
                check=False,
                capture_output=True,
                text=True,
                timeout=LIMIT_S,
            )
        except subprocess.TimeoutExpired:
            return "time is over"
    found = RED.search(done.stdout)
    if done.returncode == 0 or found is None:
        assert done.returncode in (0, 1), done.stdout[-3000:] + done.stderr[-3000:]
        return ""
    return found[1] or f"campaign {found[2]}"


@campaign("mutations", "planted bugs turn the tests red", ci=0, long=len(MUTATIONS))
def plant(run: Run) -> str:
    """Print the table: mutation, the test that caught it, seconds. All must be caught."""
    missed = []
    assert caught_by(Mutation("none", (), POWER)) == "", "red without any mutation"
    for mutation in MUTATIONS:
        if run.over:
            break
        began = time.monotonic()
        red = caught_by(mutation)
        took_s = time.monotonic() - began
        print(f"  {mutation.name:42s} {red or 'NOT CAUGHT':75s} {took_s:5.1f} s", flush=True)
        missed += [] if red else [mutation.name]
        run.advance(1)
    assert not missed, f"not caught: {', '.join(missed)}"
    return f"{run.done} of {len(MUTATIONS)} caught"
