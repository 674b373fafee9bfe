"""Settings of `attar data pack`."""

from __future__ import annotations

from pydantic import Field

from attar.config.base import Config, Places


class PackConfig(Config):
    """Pack images small: scaled down once, in tar shards that are quick to copy, to list and to decode."""

    data: Places = Field(
        min_length=1,
        description="images, one place or several: folder, tar, Parquet, URL, playground:SEED (see docs/data.md)",
    )
    out: str = Field(min_length=1, description="folder of the shards; the same command in the same folder goes on")
    short_side: int = Field(
        256, ge=16, description="pixels of the shorter side at most; smaller images are copied as they are"
    )
    quality: int = Field(95, ge=50, le=100, description="of the JPEG that a larger image becomes")
    shard_size: int = Field(10_000, ge=1, description="images in a shard: what an interruption costs at most")
    workers: int | None = Field(None, ge=0, description="processes; by default cores - 1, at most 8")
    max_bad_share: float = Field(0.01, ge=0, le=1, description="share of unreadable or lost images that stops it")
    reindex: bool = Field(False, description="list image folders anew instead of trusting the cached index")
