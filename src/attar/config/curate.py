"""Settings of `attar curate`."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from attar.config.base import Config
from attar.errors import ConfigError

Strategy = Literal["query_balanced", "class_balanced", "best_match", "text", "mixed", "random"]


class CurateConfig(Config):
    """A transfer set: images of a pool that are like the images, or the names, of a task."""

    pool: str = Field(description="--out of attar embed")
    queries: str | None = Field(
        None,
        description="the labelled images; where they lie in train and val or test, train asks and the others guard",
    )
    class_names: tuple[str, ...] = Field(
        (), description="text, mixed: names that ask in place of those of the labelled images"
    )
    strategy: Strategy = Field("query_balanced", description="who gets how many of which")
    budget: int = Field(ge=1, description="images in the set, the labelled ones among them if they are included")
    include_queries: bool = Field(True, description="the labelled images are part of the set (unlabelled, as all are)")
    exclude: tuple[str, ...] = Field(
        (), description="images that nothing in the set may be close to, or text files with an id or address a line"
    )
    leak_threshold: float | None = Field(
        0.94,
        gt=0,
        le=1,
        description="similarity to a val, test or excluded image from which one is a copy; none: no guard",
    )
    suspect_threshold: float | None = Field(
        0.8,
        gt=0,
        le=1,
        description="similarity from which pixels tell whether one is a part of the other; none: nobody looks",
    )
    duplicate_threshold: float | None = Field(
        0.94, gt=0, le=1, description="similarity from which two images are one; none: keep both"
    )
    text_share: float = Field(0.5, gt=0, lt=1, description="mixed: share, or weight, of the class names")
    mix: Literal["share", "sum"] = Field(
        "share", description="mixed: images and names ask apart, or each image together with its class's name"
    )
    templates: str = Field("a photo of a {}.", description="sentence for a class name, or a file with one a line")
    balance_sources: bool = Field(False, description="random: as many from each place of the pool")
    weights: str | None = Field(None, description="the pool's weight file, where it lies elsewhere by now")
    trust_torchscript: bool = Field(
        False, description="read the pool's weight file where it is a TorchScript archive, which can run code"
    )
    out: str = Field(description="folder for the set")
    seed: int = Field(0, ge=0, description="of a random set")
    workers: int | None = Field(None, ge=0, description="loader processes; by default one for each core but one")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")

    @field_validator("exclude", "class_names", mode="before")
    @classmethod
    def _one_is_a_list_of_one(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _somebody_asks(self) -> Self:
        if self.class_names and self.strategy not in ("text", "mixed"):
            raise ConfigError(
                f"class_names {' '.join(self.class_names)} ask nobody in strategy {self.strategy}."
                " Choose text or mixed, or leave them out."
            )
        if self.queries is None and self.strategy != "random" and not (self.class_names and self.strategy == "text"):
            raise ConfigError(
                f"strategy {self.strategy} needs --queries DIR, the labelled images"
                + (", or --class-names." if self.strategy == "text" else ".")
            )
        return self
