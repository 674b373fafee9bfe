"""Settings of `attar export`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from attar.config.base import Config, Places

Output = Literal["embedding", "patch_tokens", "logits"]


class ExportConfig(Config):
    """Write a model for other tools, and prove on images that it says the same there."""

    model: str = Field(min_length=1, description="directory of a run, folder of a student, or model reference")
    out: str = Field(min_length=1, description="folder to write: a new one, or one of an earlier export")
    to: Literal["onnx", "torch", "timm", "transformers"] = Field(
        "onnx", description="onnxruntime and whatever reads ONNX, torch.export, or a library's own folder"
    )
    weights: str = Field("pretrained", min_length=1, description="pretrained, random, or a weight file")
    reference: str | None = Field(
        None, min_length=1, description="of a task model on a module of your own, whose code runs"
    )
    img_size: int | None = Field(None, ge=8, description="input in pixels, fixed in the file; by default the model's")
    outputs: tuple[Output, ...] | None = Field(
        None, min_length=1, description="what the file gives; by default logits of a task model, else embedding"
    )
    preprocess: Literal["beside", "inside"] = Field(
        "beside", description="normalisation before the file, or in it: it then takes uint8 (B, H, W, 3)"
    )
    crop_pct: float | None = Field(
        None, gt=0, le=1, description="share of the resized image kept by the centre crop; by default the run's, else 1"
    )
    images: Places | None = Field(
        None, description="images to compare on; by default the run's, else scenes of the playground"
    )
    tolerance: float = Field(1e-4, gt=0, description="largest difference that passes, in units of the largest value")
    calibration: Places | None = Field(
        None, description="images that show the ranges of int8 (ONNX): a second file is written"
    )
    calibration_images: int = Field(128, ge=1, description="images of these that are looked at")
    knn: str | None = Field(
        None, min_length=1, description="labelled images to judge both files by; by default the run's monitor for int8"
    )
    knn_images: int = Field(2000, ge=4, description="images of these at most, half of them known")
    max_drop: float | None = Field(
        None, gt=0, le=100, description="points of k-NN that int8 may lose; more fails. By default any, told"
    )
    repeats: Annotated[int, Field(ge=0)] = Field(20, description="passes that are timed, 0 for none")
    pos_embed: Literal["official", "timm"] = Field(
        "official", description="how position tables of DINOv2 files are resampled to the input size"
    )
    trust_torchscript: bool = Field(
        False, description="read weight files that are TorchScript archives (OpenAI's CLIP), which can run code"
    )
    seed: int = Field(0, ge=0, description="names random weights and the choice of images")
    workers: int | None = Field(None, ge=0, description="data loader processes; by default cores - 1, at most 8")

    @field_validator("outputs", mode="before")
    @classmethod
    def _split_at_commas(cls, outputs: Any) -> Any:
        return tuple(outputs.split(",")) if isinstance(outputs, str) else outputs
