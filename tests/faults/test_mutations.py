"""The planted bugs can still be planted; `python -m tests.faults mutations --long` plants them."""

from pathlib import Path

from tests.faults.mutations import MUTATIONS, copy_tree


def test_every_mutation_still_applies(tmp_path: Path) -> None:
    """What a mutation changes is in the code, and the result is code as well."""
    for number, mutation in enumerate(MUTATIONS):
        tree = copy_tree(tmp_path / str(number))
        for change in mutation.changes:
            change.apply(tree)
            file = tree / "enginegate" / change.path
            compile(file.read_text(), str(file), "exec")


def test_there_is_one_for_each_promise() -> None:
    """Twelve of them, none twice."""
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS) == 12
