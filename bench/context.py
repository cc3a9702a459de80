"""What a benchmark is given: how long it may take, where it may write, whom it tells."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Context:
    """`smoke` asks for the shortest run that still shows that everything works."""

    smoke: bool
    directory: Path
    progress: Callable[[str], None]

    def pick(self, full: int, smoke: int) -> int:
        """Return the size of a full run or that of a smoke run."""
        return smoke if self.smoke else full
