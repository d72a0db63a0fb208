"""The runs inside a run, as a report needs them: looked up by name, read with care, what is missing kept as notes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from noisyteacher.errors import FileFormatError
from noisyteacher.report.study import Curve, Details
from noisyteacher.runs import Run
from noisyteacher.store import LogitStore

BINS = 15


class Children:
    """The runs directly inside one. Names come from result files, so they are looked up and never joined to a path."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.named = {child.path.name: child for child in run.children()}
        self.notes: list[str] = []
        self._told: set[str] = set()

    def note(self, text: str) -> None:
        """Keep a sentence for the reader, once."""
        if text not in self._told:
            self._told.add(text)
            self.notes.append(text)

    def config(self, name: str) -> Mapping[str, Any]:
        """A child's config; empty where there is none to read."""
        return self._safe(name, lambda child: child.config) or {}

    def info(self, name: str) -> Mapping[str, Any]:
        """A child's run.json; empty where there is none to read."""
        return self._safe(name, lambda child: child.info) or {}

    def result(self, name: str) -> Mapping[str, Any]:
        """A child's result; empty where there is none to read."""
        return self._safe(name, lambda child: child.result()) or {}

    def curves(self, names: Iterable[str]) -> tuple[Curve, ...]:
        """The epochs of each of these children that has some."""
        found = []
        for name in names:
            epochs = self._safe(name, lambda child: child.metrics()) or []
            if epochs:
                found.append(Curve(self.info(name).get("seed"), tuple(epochs)))
        return tuple(found)

    def details(self, names: Sequence[str]) -> dict[str, Details]:
        """Confusion and reliability by role, counts summed over these children; {} unless all have them."""
        results = [self.result(name).get("details") for name in names]
        if not results or not all(isinstance(one, dict) for one in results):
            return {}
        shared = set.intersection(*(set(one) for one in results if one is not None))
        found, classes = {}, self.classes(names)
        for role in sorted(shared):
            try:
                one_split = summed([one[role] for one in results if one is not None])
                found[role] = replace(one_split, classes=classes)
            except (KeyError, TypeError, ValueError, IndexError, AttributeError):
                self.note(f"{', '.join(names)}: the details of {role} cannot be understood and are left out.")
        return found

    def model(self, name: str) -> str | None:
        """The network's name: from the child's config, or, of a given teacher, from the store of its logits."""
        config = self.config(name)
        if config.get("model"):
            return str(config["model"])
        for path in self.stores() if config.get("weights") else ():
            try:
                store = LogitStore.open(path, verify=False)
            except FileFormatError:
                continue
            if store.fingerprints["teacher"] == config["weights"] and isinstance(store.meta.get("teacher"), dict):
                return str(store.meta["teacher"].get("name"))
        return str(config["given"]) if config.get("given") else None

    def classes(self, names: Iterable[str]) -> tuple[str, ...]:
        """The classes' names, from the first child that knows them."""
        for name in names:
            data = self.config(name).get("data")
            found = data.get("classes") if isinstance(data, dict) else None
            if isinstance(found, list) and found:
                return tuple(map(str, found))
        return ()

    def counts(self, name: str) -> dict[str, int]:
        """How many images each split has that the child was scored on."""
        return sizes(self.result(name).get("scores"))

    def scores(self, names: Sequence[str], key: str) -> dict[str, list[float | None]]:
        """Of one score (`error`, `nll`, `ece`, `agreement`), by role: a value per child, None where it has none."""
        found: dict[str, list[float | None]] = {}
        for place, name in enumerate(names):
            scores = self.result(name).get("scores")
            for role, values in (scores if isinstance(scores, dict) else {}).items():
                one = values.get(key) if isinstance(values, dict) else None
                if isinstance(one, dict) and isinstance(one.get("value"), (int, float)):
                    found.setdefault(role, [None] * len(names))[place] = float(one["value"])
        return found

    def stores(self) -> tuple[Path, ...]:
        """The folders of logits inside the run."""
        folder = self.run.path / "logits"
        try:
            return tuple(sorted(one for one in folder.iterdir() if (one / "store.json").is_file()))
        except OSError:
            return ()

    def _safe(self, name: str, read: Any) -> Any:
        """What `read` finds in the child; None, with a note, where the child is not there or damaged."""
        child = self.named.get(name)
        if child is None:
            self.note(f"{name}: this part of {self.run.id} is not there any more.")
            return None
        try:
            return read(child)
        except FileFormatError as error:
            self.note(f"{error}: left out.")
            return None


def sizes(scores: object) -> dict[str, int]:
    """Images by role, from a run's scores."""
    found = {}
    for role, values in (scores if isinstance(scores, dict) else {}).items():
        for one in values.values() if isinstance(values, dict) else ():
            if isinstance(one, dict) and isinstance(one.get("n"), int):
                found[str(role)] = int(one["n"])
    return found


def summed(details: Sequence[Mapping[str, Any]]) -> Details:
    """The counts of several runs on one split, added up; bins are averaged by their rows.

    Raises KeyError, TypeError, ValueError or IndexError where they are not what docs/formats.md says.
    """
    matrices = [one["confusion"] for one in details if one.get("confusion") is not None]
    confusion = None
    if len(matrices) == len(details):
        size = len(matrices[0])
        if any(len(matrix) != size or any(len(row) != size for row in matrix) for matrix in matrices):
            raise ValueError("confusions are not square or differ in size")
        confusion = tuple(
            tuple(sum(int(matrix[row][column]) for matrix in matrices) for column in range(size)) for row in range(size)
        )
    bins = []
    for place in range(BINS):
        rows, confidence, accuracy = 0, 0.0, 0.0
        for one in details:
            found = one.get("reliability")
            if found is None:
                return Details(confusion, (), len(details))
            count = int(found["count"][place])
            if count:
                rows += count
                confidence += count * float(found["confidence_%"][place])
                accuracy += count * float(found["accuracy_%"][place])
        if rows:
            bins.append((rows, confidence / rows, accuracy / rows))
    return Details(confusion, tuple(bins), len(details))
