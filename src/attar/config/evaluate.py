"""Settings of `attar evaluate`."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from attar.config.base import Config

TASK_PROTOCOLS = (
    *("knn", "linear", "logistic", "few_shot", "zero_shot", "elevater", "retrieval"),
    *("segmentation", "upernet", "deeplab", "depth", "dpt"),
)
"""What a task may begin with; `attar.evaluation.suite` has what stands behind each."""

TASK_SUITES = ("proteus12", "proteus19", "elevater20", "robustness5", "apple5", "dense", "playground")
"""Names of several tasks together."""

_NEXT_TASK = re.compile(rf",(?=(?:{'|'.join(TASK_PROTOCOLS)}):|(?:{'|'.join(TASK_SUITES)})(?:,|$))")
"""A comma before a task; any other is part of a folder's name."""


class KnnProbeConfig(Config):
    """k-NN with DINO's votes."""

    k: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (10, 20, 100, 200), min_length=1, description="numbers of neighbours that are tried"
    )
    crop_pct: float = Field(0.875, gt=0, le=1, description="share of the resized image kept by the centre crop")

    @field_validator("k", mode="before")
    @classmethod
    def _one_is_a_list_of_one(cls, k: Any) -> Any:
        if isinstance(k, str):
            return tuple(k.split(","))
        return (k,) if isinstance(k, int) else k


class LinearProbeConfig(Config):
    """DINOv2's linear probe: 52 heads trained at once."""

    views: int | None = Field(
        None, ge=0, description="random views of each image to train on, 0 for its centre; 10 in paper mode, else 0"
    )
    epochs: int | None = Field(
        None,
        ge=1,
        description="passes through the images; 10 in paper mode, else as many as make 2,000 steps, at least 10",
    )
    batch_size: int = Field(512, ge=1, description="features in a step")
    crop_pct: float = Field(0.875, gt=0, le=1, description="share of the resized image kept by the test's centre crop")


class LogisticProbeConfig(Config):
    """Logistic regression for 45 penalties."""

    crop_pct: float = Field(1.0, gt=0, le=1, description="share of the resized image kept by the centre crop")
    standardise: bool = Field(True, description="bring every channel to mean 0 and std 1 (Proteus; DINOv2 does not)")


class ZeroShotConfig(Config):
    """Class names in sentences classify."""

    templates: str | None = Field(
        None,
        min_length=1,
        description="file with a sentence a line, {} for the name, or a set of the table such as imagenet7;"
        " by default the data set's own, else 'a photo of a {}.'",
    )


class ElevaterConfig(Config):
    """ELEVATER's linear probe."""

    epochs: int = Field(10, ge=1, description="passes of each training of the search")
    final_epochs: int = Field(50, ge=1, description="passes of the final training")
    batch_size: int = Field(64, ge=2, description="features in a step")


class FewShotConfig(Config):
    """Logistic regression on a few images of each class."""

    shots: int = Field(5, ge=1, description="images of each class")
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1, description="a draw each; their mean is reported")
    penalty: float = Field(1.0, gt=0, description="lambda, which is not chosen: so few images leave none to choose by")
    crop_pct: float = Field(1.0, gt=0, le=1, description="share of the resized image kept by the centre crop")

    @field_validator("seeds", mode="before")
    @classmethod
    def _one_is_a_list_of_one(cls, seeds: Any) -> Any:
        return (seeds,) if isinstance(seeds, int | str) else seeds


class DenseProbeConfig(Config):
    """Heads for segmentation and depth. What is not set is the protocol's own, and differs from one to the other."""

    crop: int | None = Field(
        None, ge=8, description="input in pixels, of training crops and test windows; the backbone is loaded at it"
    )
    stride: int | None = Field(None, ge=1, description="pixels from one test window to the next")
    short_side: int | None = Field(None, ge=8, description="pixels that the short side of images is resized to")
    layers: tuple[int, ...] | None = Field(None, min_length=1, description="blocks that the head looks at, from 0")
    steps: int | None = Field(
        None, ge=1, description="steps of the head; in honest mode 20 epochs, at least 1,000, at most the paper's"
    )
    batch_size: int | None = Field(None, ge=2, description="crops in a step")
    lr: float | None = Field(None, gt=0, description="highest learning rate")
    weight_decay: float | None = Field(None, ge=0, description="weight decay")
    warmup_steps: int | None = Field(None, ge=0, description="by default the paper's share of the steps")
    fine_tune: bool | None = Field(None, description="train the backbone too, as upernet and deeplab do in paper mode")
    moments: int = Field(5, ge=1, description="of a training, after which the head is judged where the best is chosen")
    save_every: int = Field(500, ge=1, description="steps after which a half-trained head is saved")

    @field_validator("layers", mode="before")
    @classmethod
    def _split_at_commas(cls, layers: Any) -> Any:
        if isinstance(layers, str):
            return tuple(layers.split(","))
        return (layers,) if isinstance(layers, int) else layers


class EvaluateConfig(Config):
    """Judge a frozen backbone, a run's student or any other model, by the papers' protocols."""

    model: str = Field(min_length=1, description="model reference, or the directory of a run")
    tasks: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        min_length=1, description="PROTOCOL:DATASET, PROTOCOL:DIR or a suite, separated by commas or spaces; see --list"
    )
    out: str = Field(min_length=1, description="where results go; what is there is not measured again")
    weights: str = Field("pretrained", min_length=1, description="pretrained, random, or a weight file")
    data_root: str | None = Field(None, min_length=1, description="folder that the benchmarks' data sets lie in")
    mode: Literal["honest", "paper"] = Field(
        "honest", description="settings chosen on validation images, or each paper's protocol with its quirks"
    )
    img_size: int | None = Field(
        None, ge=8, description="input in pixels; by default that of the run or of the model's folder, else 224"
    )
    roles: tuple[Literal["student", "teacher", "random", "model"], ...] | None = Field(
        None, description="whom to judge: of a run student, teacher and random by default, else the model alone"
    )
    seed: int = Field(0, ge=0, description="names every random choice: splits, batches, bootstrap")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1 ...")
    workers: int | None = Field(None, ge=0, description="data loader processes; by default cores - 1, at most 8")
    pos_embed: Literal["official", "timm"] = Field(
        "official", description="how position tables of DINOv2 files are resampled to the input size"
    )
    trust_torchscript: bool = Field(
        False, description="read weight files that are TorchScript archives (OpenAI's CLIP), which can run code"
    )
    timeout_s: float = Field(43200.0, gt=0, description="seconds a rank waits for the others before it gives up")
    max_bad_share: float = Field(0.01, ge=0, le=1, description="share of unreadable images that stops a task")
    reindex: bool = Field(False, description="list image folders anew instead of trusting the cached index")
    knn: KnnProbeConfig = KnnProbeConfig()
    linear: LinearProbeConfig = LinearProbeConfig()
    logistic: LogisticProbeConfig = LogisticProbeConfig()
    zero_shot: ZeroShotConfig = ZeroShotConfig()
    elevater: ElevaterConfig = ElevaterConfig()
    few_shot: FewShotConfig = FewShotConfig()
    dense: DenseProbeConfig = DenseProbeConfig()

    @field_validator("tasks", mode="before")
    @classmethod
    def _split_at_commas(cls, tasks: Any) -> Any:
        words = [tasks] if isinstance(tasks, str) else tasks
        if not isinstance(words, list | tuple) or not all(isinstance(word, str) for word in words):
            return tasks
        return tuple(task for word in words for task in _NEXT_TASK.split(word) if task)

    @field_validator("roles", mode="before")
    @classmethod
    def _one_role_is_a_list_of_one(cls, roles: Any) -> Any:
        return tuple(roles.split(",")) if isinstance(roles, str) else roles
