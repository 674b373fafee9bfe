"""What may be wrong with a run before it has begun, each check a function that says nothing where all is well."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from attar.config import DistillConfig, DistillVlConfig, OptimConfig, TransferConfig
from attar.data.sources import share_a_place
from attar.models import Backbone, terms_of
from attar.models.backbone import Provenance
from attar.recipes.describe import low_rate as told_low_rate
from attar.recipes.describe import millions, short
from attar.recipes.judging import Watched
from attar.recipes.planning.parts import Concern, Part
from attar.utils.run_directory import run_there

FEW_IMAGES = 1000
"""To learn from without labels; so many taught a small student as much as five times more did (notes/proxy_data.md)."""
CHECKS = "checks by the monitor"
"""What a plan calls the part in which a run judges its student while it trains."""
FEW_TO_JUDGE = 100
"""Of so many images a figure's 95 % interval is up to 20 points wide."""
_HARDLY_AGAIN = 0.9


def of_the_directory(config: DistillConfig | DistillVlConfig | TransferConfig) -> Iterator[Concern]:
    """What stands in `--out` already."""
    if told := run_there(Path(config.out), config, resume_anyway=config.resume_anyway):
        yield Concern("directory", f"{told} The figures here are of a whole run.")


def too_few_images(count: int, flag: str, *, least: int = FEW_IMAGES) -> Iterator[Concern]:
    """Too few images to learn from."""
    if count < least:
        yield Concern(
            "few images",
            f"--{flag} holds {count:,} images, fewer than {least:,}: the student sees the same ones again and again,"
            " and learns what a teacher says of these alone. Give more images; they need no labels.",
        )


def low_rate(optim: OptimConfig, batch_size: int, *, flag: str = "optim") -> Iterator[Concern]:
    """A learning rate that nobody gave, of a small batch."""
    if told := told_low_rate(optim, batch_size, flag=flag):
        yield Concern("learning rate", f"{told}.")


def too_few_to_judge(count: int, flag: str) -> Iterator[Concern]:
    """Too few images to report on."""
    if count < FEW_TO_JUDGE:
        yield Concern(
            "few images to judge",
            f"{count:,} images of --{flag} are reported on, fewer than {FEW_TO_JUDGE}: the figures' intervals will be"
            " wider than most differences. Give more labelled images.",
        )


def nobody_judges(flag: str) -> Iterator[Concern]:
    """No monitor."""
    yield Concern(
        "no monitor",
        f"--{flag} is not given: nobody will know whether it helped, and the last student ships, not the best."
        " Give labelled images that are not trained on.",
    )


def test_images_in(flag: str, judge_flag: str) -> Concern:
    """Images that judge lie among those that are learned from."""
    return Concern(
        "test images in training data",
        f"images of --{judge_flag} lie in a place of --{flag}: what a student learned from says nothing of how good it"
        " is. Give them from a place of their own, or take them out of the training data.",
    )


def of_the_judge(built: Watched, flag: str) -> Iterator[Concern]:
    """What is wrong with a run's monitor, beside the images of a flag that it learns from."""
    if built.monitor is None:
        yield from nobody_judges("monitor")
        return
    judging = built.monitor.report
    yield from too_few_to_judge(len(judging), "monitor")
    if share_a_place(built.source, judging.source):
        yield test_images_in(flag, "monitor")


def much_judging(parts: Sequence[Part]) -> Iterator[Concern]:
    """The monitor's checks take more time than all else that a run does."""
    share = sum(part.total for part in parts if part.what == CHECKS) / sum(part.total for part in parts)
    if share > 0.5:
        yield Concern(
            "time for the monitor",
            f"its checks take {share:.0%} of the time, more than the training. Look more seldom, --monitoring.every N"
            " steps, or at fewer images, --monitoring.limit N.",
        )


def unequal_models(teacher: Backbone, student: Backbone) -> Iterator[Concern]:
    """A teacher that is smaller than its student."""
    ours, theirs = student.num_parameters, teacher.num_parameters
    if theirs < ours:
        yield Concern(
            "teacher smaller than student",
            f"teacher {short(teacher.source.name)} has {millions(theirs)} parameters, student"
            f" {short(student.source.name)} {millions(ours)}: it will cost more than it can learn. Take a larger"
            " teacher, or a smaller student.",
        )
    elif teacher.embed_dim < student.embed_dim:
        yield Concern(
            "student wider than teacher",
            f"the student has {student.embed_dim} channels, its teacher {teacher.embed_dim}: it will cost more than it"
            " can learn. Take a wider teacher, or a narrower student.",
        )


def unequal_grids(teacher: Backbone, student: Backbone) -> Iterator[Concern]:
    """Token grids that do not match, where the method compares tokens place by place."""
    if teacher.grid != student.grid:
        (high, wide), (rows, columns) = teacher.grid, student.grid
        fitting = rows * teacher.patch_size
        yield Concern(
            "grids do not match",
            f"the teacher has {high}x{wide} tokens at {teacher.img_size} px, the student {rows}x{columns} at"
            f" {student.img_size} px: the teacher's are interpolated, which blurs what is learned from patches."
            f" Try --teacher-img-size {fitting}, or another --img-size.",
        )


def untrained_teacher(teacher: Backbone) -> Iterator[Concern]:
    """A teacher that knows nothing."""
    if teacher.source.weights == "random":
        yield Concern(
            "random teacher",
            f"the weights of {short(teacher.source.name)} are random: fine for a trial of the machinery, worthless as a"
            " teacher. Give --teacher-weights pretrained, or a file.",
        )


def licence(*sources: Provenance) -> Iterator[Concern]:
    """What the licence or gate of weights may keep a student from; a run says the same when it begins."""
    for source in sources:
        terms = terms_of(source)
        if terms is not None and terms.is_told_at_start:
            whose = f"the weights of {short(source.name)}"
            yield Concern("licence", f"{terms.in_sentences(whose)} The student is made from them.")


def too_little_room(disk: Mapping[str, int], free: int, out: str, *, flag: str = "out") -> Iterator[Concern]:
    """More to be written than there is room for."""
    if (needed := sum(disk.values())) > free:
        smaller = "keep fewer checkpoints" if flag == "out" else "take a smaller --cache.format or fewer --cached-views"
        yield Concern(
            "disk",
            f"{needed / 1e9:,.1f} GB are needed at --{flag} {out}, and {free / 1e9:,.1f} GB are free there."
            f" Free some space, {smaller}, or choose another --{flag}.",
        )


def hardly_read_again(views: float, shown: int) -> Iterator[Concern]:
    """A cache that is filled and not read: of what a run shows, most are views that it has not shown before."""
    if views > _HARDLY_AGAIN * shown:
        yield Concern(
            "answers are not read again",
            f"about {views:,.0f} of the {shown:,} views that the run shows are different ones: to keep the teacher's"
            " answers saves next to nothing in this run. Take fewer --cached-views, more --epochs, or leave it out.",
        )
