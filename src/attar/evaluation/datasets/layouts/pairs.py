"""Images and annotations of dense data sets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from attar.data.pairs import Annotated, open_annotated
from attar.errors import DataError
from attar.evaluation.datasets.layouts.reading import lines_of


@dataclass(frozen=True)
class Pairs:
    """`images/PLACE/NAME` and `annotations/PLACE/NAME.png`.

    Attributes:
        places: Folder of each split.
        lists: File of image names for splits that take some of their folder only.
    """

    places: Mapping[str, str]
    lists: Mapping[str, str] = field(default_factory=dict)

    def pairs(self, folder: Path, split: str) -> list[Annotated]:
        """Sorted by name, or in the order of the split's list."""
        found = open_annotated(folder, self.places[split])
        if split not in self.lists:
            return found
        path = folder / self.lists[split]
        by_name = {pair.image.name: pair for pair in found}
        wanted = [line.strip() for line in lines_of(path)]
        missing = next((name for name in wanted if name not in by_name), None)
        if missing is not None:
            raise DataError(f"{path} names {missing}, which is not in {folder / 'images' / self.places[split]}.")
        return [by_name[name] for name in wanted]
