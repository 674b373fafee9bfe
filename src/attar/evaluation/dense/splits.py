"""Annotated images in the three parts that an honest figure needs, from a folder of one's own or the playground."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl

import torch
from pydantic import Field

from attar.config import Config
from attar.data.pairs import VOID, Pair, Scene, holds_depth, open_annotated
from attar.data.playground import CLASS_NAMES
from attar.data.sources import PlaygroundSource
from attar.errors import ConfigError, DataError
from attar.evaluation.depth import NYU_RANGE
from attar.utils.progress import track
from attar.utils.seeding import numpy_generator

_ONE_IN = 5  # images of the training part that settings are chosen by, where nobody has set some apart
_FARTHEST = 1.25  # metres; no pixel of the playground is farther than 1


class _Options(Config):
    """What may follow a folder's name after `?`."""

    classes: int | None = Field(None, ge=2, le=255, description="number of classes; by default read from annotations")
    max_depth: float = Field(NYU_RANGE[1], gt=0, description="metres beyond which depth does not count")


@dataclass(frozen=True)
class DenseSplits:
    """Images with annotations in three parts.

    Attributes:
        train: To learn from.
        val: To choose settings by.
        test: To report.
        num_classes: K; 0 where the annotations are depth alone.
        first_class: Number of the first class in annotations; what is below, K or more above, or 255 is void.
        origin: Who made the parts, for the record.
        max_depth: Metres beyond which depth does not count.
        eigen: Whether depth is judged inside the Eigen crop (NYUv2).
    """

    train: Sequence[Pair]
    val: Sequence[Pair]
    test: Sequence[Pair]
    num_classes: int
    first_class: int
    origin: str
    max_depth: float = NYU_RANGE[1]
    eigen: bool = False


@dataclass(frozen=True)
class DenseParts:
    """Annotated images in the parts that a place has.

    Attributes:
        train: To learn from.
        val: To choose settings by; empty where the place has none.
        test: To report; likewise.
        class_names: Names of classes, or their numbers; empty where the annotations are depth alone.
        origin: Who made the parts, for the record.
        max_depth: Metres beyond which depth does not count.
    """

    train: Sequence[Pair]
    val: Sequence[Pair]
    test: Sequence[Pair]
    class_names: tuple[str, ...]
    origin: str
    max_depth: float = NYU_RANGE[1]


def open_dense(reference: str, *, seed: int) -> DenseSplits:
    """The parts of a user's folder `images/SPLIT` and `annotations/SPLIT`, or of the playground.

    Splits are `train`, `val` and `test`. Without `val` a fifth of `train` is set apart by seed; without `test`, `val`
    is reported. Annotations are PNG files: class numbers in 8 bits, or depth in millimetres in 16 bits. After `?` may
    follow `classes=N` (numbers from N on are void, as is 255) and `max_depth=METRES`; `classes.txt` names them.

    `playground:SEED` (with `?n=COUNT&variety=SHARE`) has masks and depth of scenes; the first three fifths of the
    stream are learned from, a fifth chosen by, and the last reported.

    Raises:
        DataError: If a part is missing or an annotation cannot be read.

    Example:
        >>> splits = open_dense("playground:1?n=50", seed=0)
        >>> len(splits.train), len(splits.val), len(splits.test), splits.num_classes
        (30, 10, 10, 15)
    """
    parts = open_dense_parts(reference, alone=False)
    train, val, test, origin = parts.train, parts.val, parts.test, parts.origin
    if not (val and test):
        given, test = ("test", test) if test else ("val", val)
        train, val = hold_out(train, seed=seed)
        origin = f"train and {given} as given; val: a fifth of train by seed {seed}"
    return DenseSplits(train, val, test, len(parts.class_names), 0, origin, parts.max_depth)


def open_dense_parts(reference: str, *, alone: bool = True) -> DenseParts:
    """The parts as `open_dense` finds them, none made up.

    A file `classes.txt` in the folder names the classes, one a line, in the order of their numbers.

    Args:
        reference: Of the place.
        alone: Whether `train` may be all there is.

    Raises:
        DataError: If there is no `train`, a part is incomplete, or an annotation cannot be read.
    """
    if reference == "playground" or reference.startswith("playground:"):
        return _playground(reference)
    place, options = _split_reference(reference)
    folder = Path(place).expanduser()
    found = {part: open_annotated(folder, part) for part in ("train", "val", "test") if _is_part(folder, part)}
    if "train" not in found or (len(found) == 1 and not alone):
        raise _incomplete(folder)
    train, val, test = (found.get(part, []) for part in ("train", "val", "test"))
    *others, last = found
    origin = f"{', '.join(others)} and {last}" if others else last
    names = () if holds_depth(found["train"][0].annotation) else _class_names(folder, train, options.classes)
    return DenseParts(train, val, test, names, f"{origin} as given", options.max_depth)


def hold_out(pairs: Sequence[Pair], *, seed: int) -> tuple[list[Pair], list[Pair]]:
    """(four fifths, one fifth) of images, in their order.

    Raises:
        DataError: If there is only one.
    """
    if len(pairs) < 2:
        raise DataError(f"{pairs[0].name} is the only image to learn from; none is left to choose settings by.")
    count = max(1, round(len(pairs) / _ONE_IN))
    chosen = set(numpy_generator(seed, "hold out").permutation(len(pairs))[:count].tolist())
    rest = [pair for row, pair in enumerate(pairs) if row not in chosen]
    return rest, [pairs[row] for row in sorted(chosen)]


def _playground(reference: str) -> DenseParts:
    source = PlaygroundSource.parse(reference)
    fifth = source.count // _ONE_IN
    if fifth == 0:
        raise DataError(f"'{reference}' has {source.count} scenes; three parts need five at least. Try ?n=500.")
    scenes = [Scene(source.seed, index, source.variety) for index in range(source.count)]
    train, val, test = scenes[: -2 * fifth], scenes[-2 * fifth : -fifth], scenes[-fifth:]
    return DenseParts(
        train,
        val,
        test,
        ("background", *CLASS_NAMES),
        "playground: train, val and test are stretches of one sequence",
        _FARTHEST,
    )


def _split_reference(reference: str) -> tuple[str, _Options]:
    place, mark, query = reference.rpartition("?")
    if not mark or Path(reference).expanduser().exists():
        return reference, _Options()
    try:
        return place, _Options.build(dict(parse_qsl(query, keep_blank_values=True)))
    except ConfigError as error:
        raise DataError(f"'{reference}': {error}") from None


def _is_part(folder: Path, part: str) -> bool:
    return (folder / "images" / part).is_dir()


def _incomplete(folder: Path) -> DataError:
    return DataError(
        f"{folder} has no images/train, or neither images/val nor images/test beside it. Dense data has"
        " images/SPLIT and annotations/SPLIT with train, test and, to choose settings by, val."
    )


def _class_names(folder: Path, train: Sequence[Pair], count: int | None) -> tuple[str, ...]:
    """Those of `classes.txt`, else numbers, as many as are said or found in the annotations."""
    file = folder / "classes.txt"
    if not file.is_file():
        return tuple(str(number) for number in range(count or _count_classes(train)))
    names = tuple(line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip())
    if len(names) < 2 or count not in (None, len(names)):
        said = "" if count is None else f", and ?classes={count} asks for {count}"
        raise DataError(f"{file} names {len(names)} classes{said}. Write one name a line, two at least.")
    return names


def _count_classes(pairs: Sequence[Pair]) -> int:
    """The highest class number in the annotations, and one."""
    highest = 0
    for pair in track(pairs, "counting classes", total=len(pairs), unit="annotations"):
        numbers = pair.classes()
        highest = max([highest, *torch.unique(numbers[numbers != VOID]).tolist()])
    if highest == 0:
        raise DataError(f"the annotations of {pairs[0].place} hold class 0 alone. Give each class a number from 0.")
    return highest + 1
