"""Settings of `attar distill-vl`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from attar.config.base import Config, Places
from attar.config.dime_fm import DimeFmConfig
from attar.config.distill import CheckpointConfig, OptimConfig, PlainViewsConfig
from attar.errors import ConfigError


class TextTowerConfig(Config):
    """The text tower that learns (dime_fm.text_mode small_student): fewer and narrower layers than its teacher's."""

    depth: int = Field(6, ge=1, description="blocks of the small text tower")
    width: int = Field(384, ge=1, description="channels of its tokens")
    num_heads: int | None = Field(None, ge=1, description="its heads; by default one for 64 channels")
    layers: Literal["first", "uniform"] | None = Field(
        None, description="start from the teacher's first layers, or evenly spaced ones; none: from random weights"
    )


class VlOptimConfig(OptimConfig):
    """AdamW with linear warm-up and cosine decay, as released; no moving average."""

    lr: float | None = Field(8e-4, gt=0, description="peak learning rate; none: lr_per_512 * batch_size / 512")
    min_lr: float = Field(4e-5, ge=0, description="learning rate at the end of the cosine")
    warmup_lr: float = Field(4e-6, ge=0, description="learning rate at the first step")
    warmup_epochs: float = Field(4.0, ge=0, description="length of the linear warm-up, at most a tenth of the run")
    ema_decay: float = Field(0.0, ge=0, lt=1, description="decay of the moving average of the image tower; 0 is off")


class ZeroShotMonitorConfig(Config):
    """The zero-shot check during and after the run."""

    every: int | None = Field(None, ge=1, description="steps between checks; by default ten in a run")
    limit: int = Field(5000, ge=20, description="labelled images used at most, half to select by, half to report on")
    crop_pct: float = Field(1.0, gt=0, le=1, description="share of the resized image kept by the centre crop")
    templates: str = Field("a photo of a {}.", description="sentence for a class name, or a file with one a line")


class DistillVlConfig(Config):
    """Distil a model of images and sentences into a small one, from images and sentences that are no pairs (DIME-FM).

    Defaults are those of the released code where it has them.
    """

    elsewhere: ClassVar[Mapping[str, str]] = {"data": "images"}

    teacher: str = Field(
        min_length=1, description="reference of a model with two towers, such as open_clip:ViT-L-14?pretrained=openai"
    )
    student: str = Field(
        min_length=1, description="reference of the student's image tower in timm, such as vit_base_patch32_224"
    )
    images: Places = Field(
        min_length=1,
        description="images, one place or several: folder, tar, Parquet, URL, playground:SEED (see docs/data.md)",
    )
    sentences: Places = Field(
        min_length=1,
        description="text: .txt, .jsonl, .parquet, a folder of these; or the --out of attar curate --sentences",
    )
    out: str = Field(min_length=1, description="run directory; the same command in the same directory resumes")
    teacher_weights: str = Field("pretrained", min_length=1, description="pretrained, random, or a weight file")
    student_weights: str = Field("random", min_length=1, description="random, pretrained, or a weight file")
    captions: str | None = Field(
        None,
        min_length=1,
        description="captions of the images (.tsv: image, caption; or .jsonl: image, text), for the contrastive term",
    )
    column: str = Field("text", min_length=1, description="key of JSONL, or column of Parquet, with the sentences")
    features: str | None = Field(
        None,
        min_length=1,
        description="folder of what the teacher says of images and sentences, which runs may share; by default in out",
    )
    teacher_views: Literal["fixed", "matched"] = Field(
        "fixed",
        description="the teacher sees each image once, whole, as released; or the very view that the student sees",
    )
    cached_views: int | None = Field(
        None, ge=1, description="matched: views of an image, which the teacher is asked about once; none: ever new ones"
    )
    recipe: str | None = Field(None, description="named starting point; see attar distill-vl --list-recipes")
    img_size: int = Field(224, ge=8, description="height and width of the student's input, in pixels")
    batch_size: int = Field(640, ge=1, description="images per optimizer step over all ranks")
    text_batch_size: int | None = Field(
        None, ge=1, description="sentences per optimizer step over all ranks; by default as many as images"
    )
    epochs: float | None = Field(None, gt=0, description="passes over the images (100 when max_steps is not given)")
    max_steps: int | None = Field(None, ge=1, description="optimizer steps, in place of epochs")
    monitor: str | None = Field(None, min_length=1, description="labelled images to measure zero-shot on meanwhile")
    seed: int = Field(0, ge=0, description="names every random stream of the run")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1 ...")
    precision: Literal["auto", "bf16", "fp32"] = Field(
        "auto", description="bf16 autocast where the GPU has it, else fp32"
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
    timeout_s: float = Field(1800.0, gt=0, description="seconds a rank waits for the others before it gives up")
    reindex: bool = Field(False, description="list the image folder anew instead of trusting the cached index")
    resume_anyway: bool = Field(False, description="go on with a run that had other settings, data or teacher")
    dime_fm: DimeFmConfig = DimeFmConfig()
    text: TextTowerConfig = TextTowerConfig()
    views: PlainViewsConfig = PlainViewsConfig()
    optim: VlOptimConfig = VlOptimConfig()
    monitoring: ZeroShotMonitorConfig = ZeroShotMonitorConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.epochs is not None and self.max_steps is not None:
            raise ConfigError(f"epochs and max_steps are both set ({self.epochs:g}, {self.max_steps}). Keep one.")
        return self

    @model_validator(mode="after")
    def _settings_are_of_use(self) -> Self:
        if self.cached_views is not None and self.teacher_views == "fixed":
            raise ConfigError(
                f"cached_views is {self.cached_views}, and with fixed teacher_views there is one answer an image."
                " Try --teacher-views matched, or leave it out."
            )
        if bool(self.dime_fm.contrastive_weight) != (self.captions is not None):
            given = f"captions is {self.captions}" if self.captions else "captions is not set"
            raise ConfigError(
                f"{given}, and dime_fm.contrastive_weight is {self.dime_fm.contrastive_weight:g}. The two go together."
            )
        for name in ("batch_size", "text_batch_size"):
            if getattr(self, name) == 1 and self.dime_fm.compares:
                raise ConfigError(
                    f"{name} is 1: a step's scores are shares of its images and sentences, and of one there is nothing"
                    f" to learn. Give --{name.replace('_', '-')} 2 or more."
                )
        learns_text = self.dime_fm.text_mode == "small_student"
        if not learns_text and self.text != type(self).model_fields["text"].default:
            raise ConfigError(
                "settings of text are given, and the teacher's text tower is kept as it is."
                " Try --dime-fm.text-mode small_student, or leave them out."
            )
        if learns_text and self.optim.ema_decay:
            raise ConfigError(
                f"optim.ema_decay is {self.optim.ema_decay:g}, and the average follows the image tower alone: with a"
                " text tower that learns beside it the two would not belong together. Set it to 0."
            )
        return self
