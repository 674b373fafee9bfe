"""What the teacher of `attar distill` says of views, kept on disk and read where views come again (`cached_views`)."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from attar.config import CacheConfig
from attar.curation.feature_store import FRESH
from attar.data.loader import Item, ListedViews, ViewDataset, training_batches
from attar.data.views import TRAINING_VIEWS
from attar.errors import DataError, RunDirectoryError, WeightsError
from attar.methods.answer_formats import PLAIN_FORMATS, AnswerFormat, Components, strongest_components
from attar.methods.base import Taught
from attar.methods.teacher_cache import Answers, TeacherCache
from attar.recipes.asked_anew import ImageTeacher, kept_views
from attar.recipes.assembly import Assembly
from attar.recipes.planning.parts import free_at, size_in_words
from attar.types import BadFile
from attar.utils.distributed import PATIENCE_S, from_main, gather, is_main, rank, uses_bf16, world_size
from attar.utils.io import given_by, new_file, sha256_file, sha256_text
from attar.utils.locks import alone_at
from attar.utils.progress import track
from attar.utils.run_directory import flat_changes, refuse_changes

_SAMPLE = 256  # views whose patch tokens the components are fitted to
_ROUNDING = {"fp32": 2e-3, "bf16": 4e-2}  # relative; what another batch, device or kernel may add to a format's own


@dataclass(frozen=True)
class Loss:
    """How near answers that are read come to the teacher's.

    Attributes:
        relative: Root mean square of the error, as a share of the answers'.
        explained: Share of their variance over views and tokens that is left.
        views: That were compared.
    """

    relative: float
    explained: float
    views: int

    def __str__(self) -> str:
        """In words."""
        return (
            f"keep {100 * self.explained:.5g} % of their variance, relative error {100 * self.relative:.2g} %"
            f", measured on {self.views} views"
        )


@dataclass(frozen=True)
class KeptAnswers:
    """A cache that is ready, and what is known of it.

    Attributes:
        cache: To be read and filled.
        bytes_per_view: On disk.
        views: Different ones that the run will show, about; all of them, where they are asked about beforehand.
        before: Answers that were there already.
        losses: By name of an answer, how near what is read comes to what the teacher says.
    """

    cache: TeacherCache
    bytes_per_view: int
    views: float
    before: int
    losses: dict[str, Loss]

    @property
    def bytes(self) -> int:
        """On disk, once all of these views are answered."""
        return round(self.bytes_per_view * max(self.views, self.before))

    def __str__(self) -> str:
        """Lines for the log and the run's records."""
        cache = self.cache
        asked, are = ("one view", "is") if cache.num_views == 1 else (f"{cache.num_views:,} views", "are")
        return "\n".join(
            [
                f"{asked} of each of {cache.num_samples:,} images {are} asked about once, kept as"
                f" {cache.identity['format']}: {size_in_words(self.bytes_per_view)} a view,"
                f" {size_in_words(self.bytes)} in all ({self.before:,} answers were there before)",
                *(f"{name} {loss}" for name, loss in self.losses.items()),
            ]
        )


def keep_answers(built: Assembly, stream: ViewDataset, folder: Path) -> KeptAnswers:
    """Let the method ask its teacher once for each view; ranks call together.

    Some of what is kept already is compared with what the teacher says now. Where nothing is, the teacher is asked
    about some views to tell what the format loses.

    Args:
        built: The run's parts, with a method that asks a teacher.
        stream: Its views, which come again.
        folder: Of the answers, where `cache.folder` names none.

    Raises:
        WeightsError: If a given folder holds answers of another teacher or other views, or answers are not what the
            teacher says now.
        RunDirectoryError: If the folder cannot be written.
    """
    given = built.config.cache.folder
    place = folder if given is None else Path(given).expanduser().absolute()
    asker = _Asker.of(built, stream)
    identity = _identity(built, asker)
    assert stream.order.cycle is not None
    cache = TeacherCache(place, len(stream.source), stream.order.cycle, identity)
    with given_by("--out" if given is None else "--cache.folder", place):
        if given is not None:
            from_main(lambda: _check_same(cache))
        answer_format, basis = from_main(
            lambda: _format(built.config.cache, asker, place, identity), patience_s=PATIENCE_S
        )
        cache = TeacherCache(
            place, cache.num_samples, cache.num_views, identity | basis, answer_format.on(built.device)
        )
        shapes, before, losses = from_main(lambda: _compared(asker, cache), patience_s=PATIENCE_S)
    asker.method.cache = cache
    shown = stream.order.distinct(built.total_steps * built.config.batch_size)
    views = float(cache.num_samples * cache.num_views) if built.config.cache.beforehand else shown
    return KeptAnswers(cache, cache.bytes_per_view(shapes), views, before, losses)


def check_room(kept: KeptAnswers) -> None:
    """Refuse a run whose answers do not fit on the disk: it would end in the middle.

    Raises:
        RunDirectoryError: With what is needed and what is free.
    """
    needed, free = kept.bytes - kept.before * kept.bytes_per_view, free_at(str(kept.cache.folder))
    if needed > free:
        raise RunDirectoryError(
            f"the teacher's answers will take {size_in_words(needed)} more in {kept.cache.folder}, and"
            f" {size_in_words(free)} are free there. Try a smaller --cache.format (float16, int8, pca:256), fewer"
            " --cached-views, or a --cache.folder on another disk."
        )


def ask_beforehand(
    built: Assembly,
    stream: ViewDataset,
    cache: TeacherCache,
    bad_files: Callable[[Sequence[BadFile]], None],
    *,
    most: int | None = None,
) -> None:
    """Ask the teacher about all views that nothing is known of; ranks call together, and share them.

    A view of an image that cannot be read stays unanswered: another image stands for it, as in training.

    Args:
        built: The run's parts.
        stream: Its views.
        cache: Of the answers, in one folder for all ranks.
        bad_files: Told of images that cannot be read, on the main rank.
        most: Batches after which it is enough.

    Raises:
        DataError: If too many images cannot be read.
        Interrupted: If SIGINT or SIGTERM came; what was answered stays.
    """
    packed = from_main(lambda: np.packbits(cache.are_kept()).tobytes(), patience_s=PATIENCE_S)
    total = cache.num_samples * cache.num_views
    missing = np.flatnonzero(np.unpackbits(np.frombuffer(packed, np.uint8), count=total) == 0)
    size = built.config.batch_size // built.config.optim.accumulate
    steps = min(math.ceil(len(missing) / size), total if most is None else most)
    batches = training_batches(
        ListedViews(stream, missing, cache.num_views),
        batch_size=size,
        start_step=0,
        num_steps=steps,
        rank=rank(),
        world_size=world_size(),
        workers=built.workers,
    )
    asker = _Asker.of(built, stream)
    for batch in track(batches, "asking the teacher", total=steps, unit="batches"):
        with asker.teacher.asking():
            cache(batch.to(built.device), asker.method.ask)
        found = [bad for own in gather(batch.bad_files) for bad in own]  # which keeps the ranks in step, too
        if is_main():
            bad_files(found)


@dataclass(frozen=True)
class _Asker:
    """A method's teacher, asked about single views as it will be in training."""

    method: Taught
    teacher: ImageTeacher
    stream: ViewDataset

    @classmethod
    def of(cls, built: Assembly, stream: ViewDataset) -> _Asker:
        assert isinstance(built.method, Taught), f"{built.method.title} asks no teacher"
        bf16 = uses_bf16(built.config.precision, built.device)
        return cls(built.method, ImageTeacher(built.teacher, bf16, built.workers), stream)

    def __call__(self, items: Sequence[Item]) -> Answers:
        """Answers (m, ...), on the CPU."""
        device = self.teacher.teacher.mean.device
        with self.teacher.asking():
            found = [self.method.ask(item.view.values()[None].to(device)) for item in items]
        return tuple(torch.cat(parts).float().cpu() for parts in zip(*found, strict=True))

    def views(self, start: int, count: int) -> list[Item]:
        """Of the stream, from a place on."""
        found: list[Item] = []
        for place in range(start, start + count):
            item = self.stream[place]
            if isinstance(item, DataError):
                raise item
            found.append(item)
        return found


def _identity(built: Assembly, asker: _Asker) -> dict[str, Any]:
    """What answers depend on; of the components those that are there."""
    config, stream = built.config, asker.stream
    identity = asker.teacher.identity | {
        "answers": list(asker.method.answer_names),
        "images": stream.source.fingerprint,
        "view": {
            "img_size": stream.img_size,
            "implementation": TRAINING_VIEWS,
            "settings": stream.config.model_dump(mode="json", exclude={"repeats"}),
            "seed": stream.order.seed,
        },
        "format": config.cache.format,
    }
    if config.teacher_classifier is not None:
        identity["classifier"] = sha256_file(Path(config.teacher_classifier).expanduser())
    return identity


def _check_same(cache: TeacherCache) -> None:
    """Refuse a shared folder with other answers, which would be lost."""
    before = {key: value for key, value in (cache.kept_identity() or {}).items() if key != "components"}
    if before:
        refuse_changes(
            flat_changes(before, dict(cache.identity)),
            f"the teacher's answers in {cache.folder} were made otherwise",
            remedy="Give another --cache.folder, or the teacher and data of before; or remove that folder.",
            error=WeightsError,
        )


def _format(
    config: CacheConfig, asker: _Asker, folder: Path, identity: Mapping[str, Any]
) -> tuple[AnswerFormat, dict[str, str]]:
    """(how answers stand in the file, what it adds to their identity); components that are there are taken."""
    if config.components is None:
        return PLAIN_FORMATS[config.format], {}
    path = folder / f"components-{sha256_text(json.dumps(identity))[:16]}.safetensors"
    with alone_at(folder / ".lock"):  # or two runs would fit two, and each begin the other's answers anew
        if not path.is_file():
            (tokens,) = (answer for answer in asker(asker.views(0, _SAMPLE)) if answer.dim() > 2)
            found = strongest_components(tokens.flatten(0, 1), config.components)
            with new_file(path) as temporary:
                save_file({"mean": found.mean, "basis": found.basis}, temporary)
    kept = load_file(path)
    return Components(kept["mean"], kept["basis"]), {"components": sha256_file(path)}


def _compared(asker: _Asker, cache: TeacherCache) -> tuple[list[list[int]], int, dict[str, Loss]]:
    """(shapes of an answer's tensors, how many answers are there, what the format loses)."""
    before = cache.num_kept()
    kept = kept_views(cache, asker.stream) if before else []
    count = 1 if cache.format.is_exact else FRESH
    items = [item for item, _ in kept] or asker.views(_SAMPLE, count)  # not those that components were fitted to
    fresh = asker(items)
    shapes = [list(answer.shape[1:]) for answer in fresh]
    read = again = cache.decoded(cache.encoded(fresh), shapes)
    if kept:
        read = tuple(map(torch.cat, zip(*(answers for _, answers in kept), strict=True)))
        _check_read(read, again, fresh, [f"view {item.view_id} of {item.name}" for item in items], asker, cache)
    names = () if cache.format.is_exact else asker.method.answer_names
    losses = {name: _loss(one, other) for name, one, other in zip(names, read, fresh, strict=False)}
    return shapes, before, losses


def _check_read(
    read: Answers, again: Answers, fresh: Answers, views: Sequence[str], asker: _Asker, cache: TeacherCache
) -> None:
    """Refuse answers that stand otherwise in the file than they would if they were written now.

    Raises:
        WeightsError: If one is further off than precision and format explain.
    """
    rounding = _ROUNDING[asker.teacher.identity["precision"]]
    for name, old, new, said in zip(asker.method.answer_names, read, again, fresh, strict=True):
        size, own, off = (tensor.flatten(1).norm(dim=1) for tensor in (said, new - said, old - new))
        limit = rounding + own / size
        worst = int((off / size - limit).argmax())
        found, most = float(off[worst] / size[worst]), float(limit[worst])
        if not found <= most:
            raise WeightsError(
                f"the teacher's answers in {cache.folder} are not what it says today: its {name} of {views[worst]} are"
                f" {100 * found:.2g} % off, {100 * most:.2g} % is the most that {cache.identity['format']} explains."
                " They were made by other software. Remove that folder, or give another --cache.folder."
            )


def _loss(read: Tensor, fresh: Tensor) -> Loss:
    error = (read - fresh).double().square().sum()
    rows = fresh.double().flatten(0, -2)
    variance = (rows - rows.mean(0)).square().sum()
    relative = (error / rows.square().sum()).sqrt()
    return Loss(float(relative), float(1 - error / variance), len(fresh))
