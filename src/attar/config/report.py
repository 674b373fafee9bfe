"""Settings of `attar report`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator

from attar.config.base import Config, Places


class ReportConfig(Config):
    """One self-contained page of a run, or of several side by side, with pictures of what teacher and student see."""

    runs: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        min_length=1, max_length=8, description="directories of runs, of attar curate and of attar evaluate"
    )
    out: str | None = Field(
        None, min_length=1, description="file of the page; by default report.html in the run, of several in this folder"
    )
    images: Places = Field(
        (),
        description="images to show, one place or several; by default the run's monitor, else its training images",
    )
    pictures: bool = Field(True, description="load teacher and student; without, the page is made from files alone")
    published: str | None = Field(
        None, min_length=1, description="models whose reported figures stand beside, as 'Proteus-S/14, DINOv2-S/14'"
    )
    price_per_hour: float | None = Field(None, ge=0, description="of the machine, for the cost of training")
    limit: int = Field(2000, ge=20, description="images looked at, at most")
    maps: int = Field(8, ge=0, le=24, description="images whose patch tokens are shown")
    rows: int = Field(6, ge=0, le=24, description="images whose neighbours are shown")
    seed: int = Field(0, ge=0, description="names the choice of images")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1 ...")
    workers: int | None = Field(None, ge=0, description="data loader processes; by default cores - 1, at most 8")

    @field_validator("runs", mode="before")
    @classmethod
    def _one_is_a_list_of_one(cls, runs: Any) -> Any:
        return (runs,) if isinstance(runs, str) else runs
