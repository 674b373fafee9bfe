"""Settings of `attar embed`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from attar.config.base import Config, Places


class RayConfig(Config):
    """How Ray Data spreads the work; RAY_ADDRESS names a cluster, else one is started on this machine."""

    actors: int | None = Field(None, ge=1, description="processes that hold a model; by default as many as fit")
    cpus: float = Field(1.0, gt=0, description="cores that an actor takes")
    gpus: float | None = Field(None, ge=0, description="GPUs that an actor takes; by default 1 where there are any")


class EmbedConfig(Config):
    """Embed images: a pool that sets for training are chosen from."""

    model: str = Field(min_length=1, description="model reference, such as vit_small_patch14_dinov2")
    data: Places = Field(
        min_length=1,
        description="images, one place or several: folder, tar, Parquet, URL, playground:SEED (see docs/data.md)",
    )
    out: str = Field(min_length=1, description="folder of the pool; the same command in the same folder goes on")
    weights: str = Field("pretrained", min_length=1, description="pretrained, random, or a weight file")
    img_size: int | None = Field(None, ge=8, description="input in pixels; by default the model's own")
    crop_pct: float = Field(1.0, gt=0, le=1, description="share of the resized image kept by the centre crop")
    batch_size: int = Field(64, ge=1, description="images in a forward pass")
    shard_size: int = Field(4096, ge=1, description="images in a file: what an interruption costs at most")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="bf16 autocast where the GPU has it, else fp32"
    )
    engine: Literal["local", "ray"] = Field(
        "local", description="this process, or those that torchrun started; or Ray Data, for several machines"
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1 ...")
    workers: int | None = Field(None, ge=0, description="data loader processes; by default cores - 1, at most 8")
    pos_embed: Literal["official", "timm"] = Field(
        "official", description="how position tables of DINOv2 files are resampled to the input size"
    )
    trust_torchscript: bool = Field(
        False, description="read weight files that are TorchScript archives (OpenAI's CLIP), which can run code"
    )
    seed: int = Field(0, ge=0, description="names the weights where they are random")
    max_bad_share: float = Field(0.01, ge=0, le=1, description="share of unreadable or lost images that stops the run")
    timeout_s: float = Field(43200.0, gt=0, description="seconds a rank waits for a shard of another")
    reindex: bool = Field(False, description="list image folders anew instead of trusting the cached index")
    ray: RayConfig = RayConfig()
