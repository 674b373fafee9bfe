"""Settings of `attar distill`: one model is the schema for Python, YAML and flags; its descriptions are the help."""

from __future__ import annotations

import re
from typing import Literal, Self

from pydantic import Field, model_validator

from attar.config.base import Config, Places
from attar.errors import ConfigError


class ProteusConfig(Config):
    """Objectives of Proteus. Set a weight to 0 to leave that term, and its work, out."""

    token_weight: float = Field(1.0, ge=0, description="weight of the class-token term")
    feature_weight: float = Field(1.0, ge=0, description="weight of the term on all tokens of the clean view")
    patch_weight: float = Field(1.0, ge=0, description="weight of the term on masked patches")
    mask_probability: float = Field(0.5, ge=0, le=1, description="share of images with hidden patches")
    mask_ratio: float = Field(0.5, gt=0, lt=1, description="share of patches hidden in such an image")
    mask_rule: Literal["random", "paper"] = Field(
        "random", description="which images are masked: a random share, or the first ones of the batch as released"
    )
    criterion: Literal["mse", "cosine"] = Field("mse", description="distance between a student and a teacher token")
    standardise_targets: bool = Field(
        False, description="bring every teacher channel to mean 0 and std 1, measured before the first step"
    )
    resample_tokens: bool = Field(
        False, description="allow different patch grids: teacher tokens are interpolated to the student's grid"
    )
    small_size: int | None = Field(
        None,
        ge=8,
        description="height and width at which both models see the views of the first steps, in pixels; none: img_size"
        " in all steps",
    )
    small_share: float = Field(0.5, gt=0, lt=1, description="share of the steps in which views are so small")


class LogitsConfig(Config):
    """Logit distillation, a baseline: (1 - teacher_weight) * labels + teacher_weight * softened teacher classes."""

    teacher_weight: float = Field(
        0.5, gt=0, lt=1, description="share of the teacher's classes, the rest is labels (method logits)"
    )
    temperature: float = Field(
        1.0, gt=0, description="softens the classes of teacher and student (methods logits and soft_logits)"
    )


class ParallelConfig(Config):
    """How a run uses several ranks (torchrun). Nothing here changes what is learned."""

    engine: Literal["ddp", "fsdp2"] = Field(
        "ddp", description="a whole copy of what learns on each rank, or its weights and optimizer sharded"
    )
    shard_teacher: bool = Field(False, description="shard a teacher that does not fit on one GPU (FSDP2)")
    timeout_s: float = Field(1800.0, gt=0, description="seconds a rank waits for the others before it gives up")


class ViewsConfig(Config):
    """How an image becomes a view (the DeiT recipe by default)."""

    crop_scale: tuple[float, float] = Field((0.08, 1.0), description="area of the random crop, as a share")
    crop_ratio: tuple[float, float] = Field((3 / 4, 4 / 3), description="width over height of the random crop")
    flip: float = Field(0.5, ge=0, le=1, description="probability of a horizontal flip")
    randaugment: bool = Field(True, description="RandAugment rand-m9-mstd0.5-inc1")
    erase: float = Field(0.25, ge=0, le=1, description="probability of random erasing")
    repeats: int = Field(3, ge=1, description="views of each image per epoch (repeated augmentation), from 256 images")

    @model_validator(mode="after")
    def _intervals(self) -> Self:
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ConfigError(f"views.crop_scale is {self.crop_scale}: it must be two numbers 0 < low <= high <= 1.")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise ConfigError(f"views.crop_ratio is {self.crop_ratio}: it must be two numbers 0 < low <= high.")
        return self


class PlainViewsConfig(ViewsConfig):
    """How an image becomes a view where its colours stay: a random crop, flipped half of the time."""

    randaugment: bool = Field(False, description="RandAugment rand-m9-mstd0.5-inc1")
    erase: float = Field(0.0, ge=0, le=1, description="probability of random erasing")
    repeats: int = Field(1, ge=1, description="views of each image per epoch (repeated augmentation), from 256 images")


class OptimConfig(Config):
    """AdamW or Muon with linear warm-up, cosine decay and a moving average of the student."""

    algorithm: Literal["adamw", "muon"] = Field(
        "adamw",
        description="adamw, or muon for weight matrices (its steps as large as AdamW's, at the same lr) and adamw for"
        " the rest",
    )
    lr: float | None = Field(None, gt=0, description="peak learning rate; by default lr_per_512 * batch_size / 512")
    lr_per_512: float = Field(5e-4, gt=0, description="learning rate per 512 views in a batch")
    min_lr: float = Field(1e-5, ge=0, description="learning rate at the end of the cosine")
    warmup_lr: float = Field(1e-6, ge=0, description="learning rate at the first step")
    warmup_epochs: float = Field(5.0, ge=0, description="length of the linear warm-up, at most a tenth of the run")
    schedule: Literal["step", "paper"] = Field(
        "step", description="learning rate by step, or by finished epoch as released (off by one)"
    )
    weight_decay: float = Field(0.05, ge=0, description="decay of tensors with two or more dimensions")
    betas: tuple[float, float] = Field((0.9, 0.999), description="momentum terms of AdamW")
    clip_norm: float | None = Field(None, gt=0, description="clip the gradient's global norm; off by default")
    accumulate: int = Field(1, ge=1, description="micro-batches a batch is split into, to fit in memory")
    recompute: bool = Field(
        False, description="compute what happens within the student's blocks twice, in place of keeping it in memory"
    )
    ema_decay: float = Field(0.99996, ge=0, lt=1, description="decay of the moving average of the student; 0 is off")
    ema_warmup: bool = Field(True, description="let the average follow faster in the first steps")

    @model_validator(mode="after")
    def _shares(self) -> Self:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"optim.betas is {self.betas}: it must be two numbers 0 <= beta < 1. Try 0.9 0.999.")
        return self

    @model_validator(mode="after")
    def _one_rate(self) -> Self:
        if self.lr is not None and self.lr_per_512 != OptimConfig.model_fields["lr_per_512"].default:
            raise ConfigError(
                f"optim.lr is {self.lr:g} and optim.lr_per_512 is {self.lr_per_512:g}: lr holds for any batch, and"
                " lr_per_512 would do nothing. Keep one; --optim.lr none takes back that of a recipe."
            )
        return self


class MonitorConfig(Config):
    """The k-NN check during and after the run."""

    every: int | None = Field(None, ge=1, description="steps between checks; by default ten in a run")
    limit: int = Field(5000, ge=20, description="labelled images used at most")
    k: int = Field(10, ge=1, description="neighbours that vote")
    crop_pct: float = Field(0.875, gt=0, le=1, description="share of the resized image kept by the centre crop")


class CheckpointConfig(Config):
    """What is saved so that a run can go on after any interruption."""

    every: int | None = Field(
        None,
        ge=1,
        description="steps between checkpoints; by default one per epoch or hundred steps, ten a run at least",
    )
    keep: int = Field(2, ge=1, description="checkpoints to keep")


class CacheConfig(Config):
    """How the teacher's answers are kept where views come again (`cached_views`)."""

    format: str = Field(
        "float32",
        description="float32, bit for bit; float16; int8, with a scale for each token; or pca:N, the N strongest"
        " components of patch tokens",
    )
    folder: str | None = Field(
        None,
        min_length=1,
        description="folder of the answers, which runs with the same teacher, images and views may share; by default"
        " in out",
    )
    beforehand: bool = Field(
        False, description="ask about all views before the first step, not as they come; ranks share the work"
    )

    @model_validator(mode="after")
    def _known_format(self) -> Self:
        if not re.fullmatch(r"float32|float16|int8|pca:[1-9][0-9]*", self.format):
            raise ConfigError(
                f"cache.format is '{self.format}'. Give float32, float16, int8, or pca:N with the number of components,"
                " such as pca:256."
            )
        return self

    @property
    def components(self) -> int | None:
        """N of `pca:N`."""
        kind, _, count = self.format.partition(":")
        return int(count) if kind == "pca" else None


_METHODS_OF = {"proteus": ("proteus",), "logits": ("logits", "soft_logits")}  # which methods read a section


class DistillConfig(Config):
    """Distil a vision foundation model into a small backbone with unlabelled images (Proteus, ICLR 2025)."""

    teacher: str = Field(min_length=1, description="model reference of the teacher, such as vit_base_patch14_dinov2")
    student: str = Field(min_length=1, description="model reference of the student, such as vit_small_patch14_dinov2")
    data: Places = Field(
        min_length=1,
        description="images, one place or several: folder, tar, Parquet, URL, playground:SEED (see docs/data.md)",
    )
    out: str = Field(min_length=1, description="run directory; the same command in the same directory resumes")
    teacher_weights: str = Field("pretrained", min_length=1, description="pretrained, random, or a weight file")
    student_weights: str = Field(
        "random",
        min_length=1,
        description="random, pretrained, a weight file, or teacher: a part of the teacher's, both being timm's",
    )
    student_layers: Literal["first", "uniform"] = Field(
        "first", description="the teacher's layers a student with its weights starts from: the first, or evenly spaced"
    )
    normalisation: Literal["own", "imagenet"] = Field(
        "own", description="each model's images by the statistics of its weights, or ImageNet's for all as released"
    )
    method: Literal["proteus", "labels", "logits", "soft_logits", "hint"] = Field(
        "proteus",
        description="how the student learns; the others are baselines, and with labels the teacher is only measured",
    )
    teacher_classifier: str | None = Field(
        None, min_length=1, description="file of the teacher's linear classifier, for logits and soft_logits"
    )
    recipe: str | None = Field(None, description="named starting point; see attar distill --list-recipes")
    img_size: int = Field(224, ge=8, description="height and width of the student's input, in pixels")
    teacher_img_size: int | None = Field(None, ge=8, description="input of the teacher; by default img_size")
    batch_size: int = Field(256, ge=1, description="views per optimizer step over all ranks")
    epochs: float | None = Field(None, gt=0, description="passes over the data (300 when max_steps is not given)")
    max_steps: int | None = Field(None, ge=1, description="optimizer steps, in place of epochs")
    cached_views: int | None = Field(
        None, ge=1, description="views of an image, which the teacher is asked about once; none: ever new ones"
    )
    monitor: str | None = Field(None, min_length=1, description="labelled images to measure k-NN on while training")
    seed: int = Field(0, ge=0, description="names every random stream of the run")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1 ...")
    precision: Literal["auto", "bf16", "fp32"] = Field(
        "auto", description="bf16 autocast where the GPU has it, else fp32"
    )
    compile: Literal["auto", "on", "off"] = Field(
        "auto", description="compile the transformer blocks of teacher and student; auto: on a GPU, from 300 steps"
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
        None, ge=1, description="steps between log lines; by default about a hundred in a run"
    )
    tensorboard: bool = Field(False, description="write TensorBoard events too (extra: tb)")
    reindex: bool = Field(False, description="list the image folder anew instead of trusting the cached index")
    resume_anyway: bool = Field(False, description="go on with a run that had other settings, data or teacher")
    proteus: ProteusConfig = ProteusConfig()
    logits: LogitsConfig = LogitsConfig()
    cache: CacheConfig = CacheConfig()
    parallel: ParallelConfig = ParallelConfig()
    views: ViewsConfig = ViewsConfig()
    optim: OptimConfig = OptimConfig()
    monitoring: MonitorConfig = MonitorConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.epochs is not None and self.max_steps is not None:
            raise ConfigError(f"epochs and max_steps are both set ({self.epochs:g}, {self.max_steps}). Keep one.")
        return self

    @model_validator(mode="after")
    def _logits_need_a_classifier(self) -> Self:
        learns_classes = self.method in ("logits", "soft_logits")
        if learns_classes and self.teacher_classifier is None:
            raise ConfigError(
                f"method {self.method} learns the teacher's classes, and teacher_classifier is not set."
                " Try --teacher-classifier FILE."
            )
        if not learns_classes and self.teacher_classifier is not None:
            raise ConfigError(
                f"teacher_classifier is {self.teacher_classifier}, and method {self.method} has no use for it."
                " Try --method logits or soft_logits, or leave it out."
            )
        return self

    @model_validator(mode="after")
    def _settings_are_of_use(self) -> Self:
        if self.student_layers != "first" and self.student_weights != "teacher":
            raise ConfigError(
                f"student_layers is {self.student_layers}, and the student does not start from its teacher."
                " Try --student-weights teacher, or leave it out."
            )
        for section, methods in _METHODS_OF.items():
            if self.method not in methods and getattr(self, section) != type(self).model_fields[section].default:
                raise ConfigError(
                    f"settings of {section} are given, and method {self.method} has no use for them."
                    f" Try --method {' or '.join(methods)}, or leave them out."
                )
        return self

    @model_validator(mode="after")
    def _small_views_are_smaller(self) -> Self:
        size, share = self.proteus.small_size, self.proteus.small_share
        if size is None:
            if share != ProteusConfig().small_share:
                raise ConfigError(
                    f"proteus.small_share is {share:g}, and proteus.small_size is not set: all views have one size. Try"
                    f" --proteus.small-size {self.img_size // 2}, or leave it out."
                )
            return self
        if size >= self.img_size:
            raise ConfigError(
                f"proteus.small_size is {size}, no smaller than img_size {self.img_size}. Try"
                f" --proteus.small-size {self.img_size // 2}."
            )
        if self.cached_views is not None:
            raise ConfigError(
                f"proteus.small_size is {size}, and cached_views is {self.cached_views}: what is kept of a view is kept"
                " at one size. Leave one of the two out."
            )
        return self

    @model_validator(mode="after")
    def _answers_can_be_kept(self) -> Self:
        if self.cached_views is None:
            if self.cache != CacheConfig():
                raise ConfigError(
                    "settings of cache are given, and cached_views is not set: views never come again. Try"
                    " --cached-views 4, or leave them out."
                )
            return self
        if self.method == "labels":
            raise ConfigError(f"cached_views is {self.cached_views}, and method labels asks no teacher. Leave it out.")
        if self.parallel.shard_teacher:
            raise ConfigError(
                f"cached_views is {self.cached_views}, and parallel.shard_teacher is set: ranks ask a sharded teacher"
                " together, and each about the views that it lacks. Leave one of the two out."
            )
        if self.cache.components is not None and not self.learns_patches:
            raise ConfigError(
                f"cache.format is {self.cache.format}, and no patch tokens are learned from: what is kept is one vector"
                " an image. Try --cache.format float16."
            )
        return self

    @property
    def learns_patches(self) -> bool:
        """Whether the student learns from the teacher's patch tokens, not from one vector an image alone."""
        terms = self.proteus
        return self.method == "proteus" and bool(terms.feature_weight or terms.patch_weight * terms.mask_probability)

    @model_validator(mode="after")
    def _something_to_learn(self) -> Self:
        terms = self.proteus
        if self.method == "proteus" and not (terms.token_weight or self.learns_patches):
            raise ConfigError(
                "nothing to learn: proteus.token_weight and feature_weight are 0, and so is patch_weight or"
                " mask_probability. Give one term a weight."
            )
        return self


VOLATILE = frozenset(
    {
        *("out", "device", "workers", "log_every", "tensorboard", "reindex", "resume_anyway", "recipe"),
        *(
            "max_bad_share",
            "checkpoint",
            "compile",
            "parallel",
            "features",
            "timeout_s",
            "cache.folder",
            "cache.beforehand",
            *(f"{section}optim.recompute" for section in ("", "adapt.", "transfer.", "finetune.")),
        ),
    }
)
"""Settings that may differ between a run and its resumption: they do not change what is learned."""
