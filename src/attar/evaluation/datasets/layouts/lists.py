"""Text files of one image a line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from attar.data.labelled import Labelled
from attar.errors import DataError
from attar.evaluation.datasets.layouts.reading import existing, from_one, lines_of, listed


@dataclass(frozen=True)
class Lists:
    """A list of images for each split, a line an image.

    Attributes:
        lists: The list of each split.
        line: Pattern of a whole line with the groups `path`, `label` (its class by name) and perhaps `number` (by
            number from 1, which then orders the classes).
        image: Path of the image, made of the groups; by split where they differ.
        classes: File of class names in the order of labels; without it the names in the lists, sorted.
    """

    lists: Mapping[str, str]
    line: str
    image: str | Mapping[str, str] = "{path}"
    classes: str | None = None

    def read(self, folder: Path, split: str) -> Labelled:
        """The images of the split's list, in its order."""
        path = folder / self.lists[split]
        entries = list(self._entries(path))
        names = self._class_names(folder, split)
        ranks = {name: label for label, name in enumerate(names)}
        strange = next((entry["label"] for entry in entries if entry["label"] not in ranks), None)
        if strange is not None:
            raise DataError(
                f"{path} names the class '{strange}', which {self.classes} does not. Both must be official."
            )
        image = self.image if isinstance(self.image, str) else self.image[split]
        images = [image.format(**entry) for entry in entries]
        return listed(folder, images, [ranks[entry["label"]] for entry in entries], names, where=path)

    def _entries(self, path: Path) -> Iterator[dict[str, str]]:
        pattern = re.compile(self.line)
        for number, line in enumerate(lines_of(path), 1):
            match = pattern.fullmatch(line.strip())
            if match is None:
                raise DataError(f"{path}, line {number}: '{line.strip()[:60]}' is not as in the official list.")
            yield match.groupdict()

    def _class_names(self, folder: Path, split: str) -> Sequence[str]:
        if self.classes is not None:
            return [line.strip().removeprefix("/") for line in lines_of(existing(folder / self.classes))]
        both = dict.fromkeys((self.lists[split], self.lists["test"]))  # each has every class; all lists would be slow
        paths = [folder / name for name in both if (folder / name).is_file()]
        entries = [entry for path in paths for entry in self._entries(path)]
        numbers = {entry["label"]: int(entry["number"]) for entry in entries if "number" in entry}
        if not numbers:
            return sorted({entry["label"] for entry in entries})
        from_one(sorted(numbers.values()), len(numbers), where=paths[0])
        return sorted(numbers, key=numbers.__getitem__)
