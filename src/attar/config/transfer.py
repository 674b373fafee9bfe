"""Settings of `attar transfer` and `attar predict`.

The paper states neither its hyper-parameters nor how its teachers are adapted in words that could be read here: every
default is ours (spec task_transfer §1.7, DESIGN), none is the paper's.
"""

from __future__ import annotations

import functools
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from attar.config.base import Config, Places
from attar.config.distill import (
    CheckpointConfig,
    OptimConfig,
    ParallelConfig,
    PlainViewsConfig,
    ProteusConfig,
    ViewsConfig,
)
from attar.errors import ConfigError

TaskKind = Literal["classification", "segmentation"]
HeadKind = Literal["linear", "deeplabv3"]
Pretraining = Literal["task", "none", "contrastive", "cosine", "hint", "proteus"]


class LabelledViewsConfig(ViewsConfig):
    """How a labelled image becomes a view: gentler crops than those of unlabelled ones, no RandAugment."""

    crop_scale: tuple[float, float] = Field((0.5, 1.0), description="area of the random crop, as a share")
    randaugment: bool = Field(False, description="RandAugment rand-m9-mstd0.5-inc1")
    erase: float = Field(0.0, ge=0, le=1, description="probability of random erasing")
    repeats: int = Field(1, ge=1, description="views of each image per epoch (repeated augmentation), from 256 images")


class StageOptimConfig(OptimConfig):
    """AdamW with linear warm-up (a tenth of the run at most) and cosine decay; there is no moving average."""

    min_lr: float = Field(0.0, ge=0, description="learning rate at the end of the cosine")
    ema_decay: float = Field(0.0, ge=0, le=0, description="stays 0: what ships is what was validated")


class AdaptOptimConfig(StageOptimConfig):
    """As the other stages' optimizer; the rate depends on what learns."""

    lr: float | None = Field(
        None, gt=0, description="peak learning rate; by default 1e-3 with lora, 1e-5 for a backbone that learns whole"
    )


class FinetuneOptimConfig(StageOptimConfig):
    """As the other stages' optimizer, at one rate whatever the batch."""

    lr: float | None = Field(1e-4, gt=0, description="peak learning rate")


class DenseTaskConfig(Config):
    """Segmentation: how images larger than a model's input are looked at, and how labelled crops are made."""

    short_side: int | None = Field(
        None, ge=8, description="images are resized to it before windows and crops are cut; by default their own size"
    )
    stride: int | None = Field(
        None, ge=1, description="pixels from one window to the next; by default 2/3 of the input"
    )
    scales: tuple[float, float] = Field(
        (0.5, 2.0), description="least and greatest size of a labelled image, times its own"
    )

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if not 0 < self.scales[0] <= self.scales[1]:
            raise ConfigError(f"dense.scales are {self.scales}. Give two numbers above 0, the smaller one first.")
        return self


class AdaptConfig(Config):
    """Stage A: the teacher learns the task from the labels."""

    mode: Literal["head", "lora", "full", "head_then_full"] = Field(
        "head", description="what learns: a linear head on fixed features, low-rank additions, or the whole teacher"
    )
    head: HeadKind = Field(
        "linear", description="of the teacher; deeplabv3 for segmentation, with lora or full, which train it"
    )
    refit: bool = Field(
        False,
        description="fit the head on train and val together once its penalty is chosen (mode head); the student's"
        " figures on val are then no longer of images that nobody learned from",
    )
    lora_rank: int = Field(8, ge=1, description="rank of the additions to qkv, proj and fc layers")
    lora_alpha: float = Field(16.0, gt=0, description="the additions count alpha / rank")
    layer_decay: float = Field(0.75, gt=0, le=1, description="rate of a block as a share of the next one's (full)")
    head_lr: float = Field(1e-3, gt=0, description="peak learning rate of the head where the whole teacher learns")
    batch_size: int = Field(32, ge=1, description="views per optimizer step over all ranks")
    max_steps: int = Field(500, ge=1, description="optimizer steps at most")
    every: int | None = Field(None, ge=1, description="steps between validations; by default twenty in the stage")
    patience: int | None = Field(10, ge=1, description="validations without a better one that end the stage")
    views: LabelledViewsConfig = LabelledViewsConfig()
    optim: AdaptOptimConfig = AdaptOptimConfig()


class TransferStageConfig(Config):
    """Stage B: the student learns from the teacher on the pool; labels are never read."""

    temperature: float = Field(1.0, gt=0, description="softens the predictions of teacher and student")
    feature_weight: float = Field(0.0, ge=0, description="weight of a cosine term on features beside the predictions")
    contrastive_temperature: float = Field(0.07, gt=0, description="of InfoNCE (pretrain contrastive)")
    proteus: ProteusConfig = ProteusConfig()
    batch_size: int = Field(256, ge=1, description="views per optimizer step over all ranks")
    epochs: float | None = Field(None, gt=0, description="passes over the pool (100 when max_steps is not given)")
    max_steps: int | None = Field(None, ge=1, description="optimizer steps, in place of epochs")
    every: int | None = Field(None, ge=1, description="steps between validations; by default ten in the stage")
    cached_views: int | None = Field(
        None, ge=1, description="views of an image; then they come again, and the teacher's answers from disk"
    )
    views: PlainViewsConfig = PlainViewsConfig()
    optim: StageOptimConfig = StageOptimConfig()

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.epochs is not None and self.max_steps is not None:
            raise ConfigError(
                f"transfer.epochs and transfer.max_steps are both set ({self.epochs:g}, {self.max_steps}). Keep one."
            )
        return self


class FinetuneConfig(Config):
    """Stage C: the student learns from the labels."""

    batch_size: int = Field(32, ge=1, description="views per optimizer step over all ranks")
    max_steps: int = Field(1000, ge=1, description="optimizer steps at most")
    every: int | None = Field(None, ge=1, description="steps between validations; by default twenty in the stage")
    patience: int | None = Field(10, ge=1, description="validations without a better one that end the stage")
    views: LabelledViewsConfig = LabelledViewsConfig()
    optim: FinetuneOptimConfig = FinetuneOptimConfig()


class TransferConfig(Config):
    """A small model for your task, from few labels and a pool of images (task-oriented transfer, ICML 2024)."""

    student: str = Field(min_length=1, description="model reference of the student, such as fastvit_t8")
    labelled: str = Field(
        min_length=1,
        description="labelled images: a folder per class, train/ val/ test/ of such, Parquet, or a list filename,label;"
        " for segmentation images/SPLIT with annotations/SPLIT",
    )
    out: str = Field(min_length=1, description="run directory; the same command in the same directory resumes")
    task: TaskKind = Field("classification", description="a class for each image, or for each pixel")
    head: HeadKind = Field("linear", description="of the student; deeplabv3 for segmentation")
    teacher: str | None = Field(None, min_length=1, description="model reference of the teacher")
    pool: Places = Field(
        (), description="unlabelled images to transfer on, one place or several, such as a curated set"
    )
    val: str | None = Field(
        None, min_length=1, description="labelled images to choose by; by default a fifth of each labelled class"
    )
    test: str | None = Field(None, min_length=1, description="labelled images to report on, beside those to choose by")
    images_root: str | None = Field(None, min_length=1, description="folder of the images that lists name")
    labels_per_class: int | None = Field(
        None, ge=1, description="so many labelled images of each class, drawn by seed; those to choose by among them"
    )
    labels_share: float | None = Field(
        None,
        gt=0,
        le=1,
        description="segmentation: share of the annotated images, drawn by seed; those to choose by among them",
    )
    pretrain: Pretraining = Field(
        "task", description="what comes before finetuning: task-oriented transfer, nothing, or a task-agnostic baseline"
    )
    teacher_weights: str = Field("pretrained", min_length=1, description="pretrained, random, or a weight file")
    student_weights: str = Field("random", min_length=1, description="random, pretrained, or a weight file")
    img_size: int = Field(224, ge=8, description="height and width of the student's input, in pixels")
    teacher_img_size: int | None = Field(None, ge=8, description="input of the teacher; by default img_size")
    crop_pct: float = Field(1.0, gt=0, le=1, description="share of the resized image that is judged, at its centre")
    scratch: bool = Field(True, description="finetune the untaught student too, to tell whether the rest helped")
    seed: int = Field(0, ge=0, description="names every random stream of the run")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1 ...")
    precision: Literal["auto", "bf16", "fp32"] = Field(
        "auto", description="bf16 autocast where the GPU has it, else fp32"
    )
    pos_embed: Literal["official", "timm"] = Field(
        "official", description="how position tables of DINOv2 files are resampled to the input size"
    )
    trust_torchscript: bool = Field(
        False, description="read weight files that are TorchScript archives (OpenAI's CLIP), which can run code"
    )
    workers: int | None = Field(None, ge=0, description="data loader processes; by default cores - 1, at most 8")
    max_bad_share: float = Field(0.01, ge=0, le=1, description="share of unreadable or lost images that stops the run")
    log_every: int | None = Field(
        None, ge=1, description="steps between log lines; by default about a hundred in a stage"
    )
    tensorboard: bool = Field(False, description="write TensorBoard events too (extra: tb)")
    reindex: bool = Field(False, description="list image folders anew instead of trusting the cached index")
    resume_anyway: bool = Field(False, description="go on with a run that had other settings, data or teacher")
    dense: DenseTaskConfig = DenseTaskConfig()
    adapt: AdaptConfig = AdaptConfig()
    transfer: TransferStageConfig = TransferStageConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    parallel: ParallelConfig = ParallelConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

    @model_validator(mode="after")
    def _what_is_needed_is_there(self) -> Self:
        for name in ("teacher", "pool"):
            if self.pretrain != "none" and not getattr(self, name):
                raise ConfigError(
                    f"setting '{name}' is missing: pretrain {self.pretrain} needs it. Give --{name}, or --pretrain none"
                    " for a student that learns from labels alone."
                )
        return self

    @model_validator(mode="after")
    def _settings_fit_the_task(self) -> Self:
        strange = _OF_PIXELS if self.task == "classification" else _OF_IMAGES
        given = next((name for name, default in strange.items() if _value_of(self, name) != default), None)
        if given is not None:
            raise ConfigError(
                f"setting '{given}' is {_value_of(self, given)}, and the task is {self.task}, which does not use it."
                f" Leave it out{_INSTEAD.get(given, '')}."
            )
        if self.adapt.head != "linear" and self.adapt.mode in ("head", "head_then_full"):
            raise ConfigError(
                f"adapt.mode {self.adapt.mode} fits its head in closed form, and adapt.head is {self.adapt.head}."
                " Try --adapt.mode full or lora."
            )
        return self

    @model_validator(mode="after")
    def _settings_are_of_use(self) -> Self:
        if self.parallel.engine != "ddp" or self.parallel.shard_teacher:
            raise ConfigError("parallel.engine fsdp2 and shard_teacher are not for attar transfer. Leave them out.")
        if self.pretrain == "contrastive" and self.transfer.optim.accumulate > 1:
            raise ConfigError(
                f"transfer.optim.accumulate is {self.transfer.optim.accumulate}: pretrain contrastive compares the"
                " images of a batch with each other, which pieces do not allow. Lower --transfer.batch-size instead."
            )
        if self.pretrain != "task" and self.transfer.cached_views is not None:
            raise ConfigError(
                f"transfer.cached_views is {self.transfer.cached_views}, and pretrain is {self.pretrain}: what is kept"
                " are the predictions of an adapted teacher. Leave it out, or choose --pretrain task."
            )
        if self.pretrain != "proteus" and self.transfer.proteus != ProteusConfig():
            raise ConfigError(
                f"settings of transfer.proteus are given, and pretrain is {self.pretrain}. Leave them out."
            )
        if self.transfer.proteus.small_size is not None:
            raise ConfigError(
                f"transfer.proteus.small_size is {self.transfer.proteus.small_size}, and views of attar transfer have"
                " one size. Leave it out."
            )
        return self


_OF_PIXELS: dict[str, Any] = {
    "labels_share": None,
    "head": "linear",
    "adapt.head": "linear",
    "dense": DenseTaskConfig(),
}
_OF_IMAGES: dict[str, Any] = {
    "labels_per_class": None,
    "val": None,
    "test": None,
    "images_root": None,
    "crop_pct": 1.0,
    "adapt.views": LabelledViewsConfig(),
    "finetune.views": LabelledViewsConfig(),
}
_INSTEAD = {
    "head": ", or give --task segmentation",
    "adapt.head": ", or give --task segmentation",
    "labels_per_class": "; labels_share draws annotated images",
    "val": "; --labelled holds images/val and annotations/val",
    "test": "; --labelled holds images/test and annotations/test",
    "adapt.views": "; dense.scales says how labelled crops are made",
    "finetune.views": "; dense.scales says how labelled crops are made",
}
"""Settings that one of the tasks has no use for, with what they are by default, and what to take in their place."""


def _value_of(config: TransferConfig, name: str) -> Any:
    return functools.reduce(getattr, name.split("."), config)


class PredictConfig(Config):
    """Classify images, or their pixels, with what `attar transfer` made."""

    model: str = Field(min_length=1, description="run directory of attar transfer, or a student/ or teacher/ in it")
    data: str = Field(min_length=1, description="images: folder, tar, Parquet, URL")
    out: str = Field(
        min_length=1,
        description="CSV file to write: path, class, probability; for segmentation a folder of PNGs of class numbers",
    )
    reference: str | None = Field(
        None,
        min_length=1,
        description="of a backbone that its folder does not build by itself: module:package.mod:factory; its code runs",
    )
    top_k: int = Field(1, ge=1, description="classes told of each image (classification)")
    crop_pct: float = Field(1.0, gt=0, le=1, description="share of the resized image that is looked at")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1 ...")
    workers: int | None = Field(None, ge=0, description="data loader processes; by default cores - 1, at most 8")
