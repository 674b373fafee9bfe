"""Settings of `attar curate --sentences`."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from attar.config.base import Config, Places
from attar.errors import ConfigError


class SentencesConfig(Config):
    """Sentences that could be seen in images: chosen from text by the images that find them similar."""

    sentences: Places = Field(
        min_length=1,
        description="text, one place or several: .txt with a sentence a line, .jsonl, .parquet, folder, URL",
    )
    images: Places = Field(min_length=1, description="images that ask, unlabelled; or the --out of attar embed")
    teacher: str = Field(min_length=1, description="reference of a model with two towers, such as open_clip:ViT-B-32")
    out: str = Field(min_length=1, description="folder of the choice; the same command in the same folder goes on")
    teacher_weights: str = Field("pretrained", min_length=1, description="pretrained, random, or a weight file")
    strategy: Literal["topk_union", "assignment_greedy", "facility_location"] = Field(
        "topk_union",
        description="the nearest of every image; each image its own; or those that serve all images (approximate)",
    )
    per_image: int = Field(
        10, ge=1, description="sentences of an image; topk_union with a budget goes beyond if it must"
    )
    budget: int | None = Field(None, ge=1, description="sentences in all; none: as many as come")
    candidates: int = Field(
        100, ge=1, description="assignment_greedy, facility_location: nearest sentences that an image may get"
    )
    column: str = Field("text", min_length=1, description="key of JSONL, or column of Parquet, with the sentences")
    lowercase: bool = Field(True, description="sentences that differ in case are one, in lower case as CLIP reads them")
    min_words: int = Field(3, ge=1, description="fewest words of a sentence")
    max_words: int = Field(77, ge=1, description="most words of a sentence")
    min_chars: int = Field(1, ge=1, description="fewest characters of a sentence")
    max_chars: int = Field(400, ge=1, description="most characters of a sentence")
    exclude_names: Places = Field(
        (),
        description="leave out what contains a class name: data sets such as imagenet, or text files, a phrase a line",
    )
    exclude_prompts: Places = Field(
        (),
        description="leave out what contains an evaluation prompt: data sets, each name in each template; or files",
    )
    batch_size: int = Field(64, ge=1, description="images in a forward pass")
    text_batch_size: int = Field(256, ge=1, description="sentences in a forward pass")
    shard_size: int = Field(16384, ge=1, description="sentences in a file: what an interruption costs at most")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="bf16 autocast where the GPU has it, else fp32"
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1 ...")
    workers: int | None = Field(None, ge=0, description="data loader processes; by default cores - 1, at most 8")
    trust_torchscript: bool = Field(
        False, description="read weight files that are TorchScript archives (OpenAI's CLIP), which can run code"
    )
    seed: int = Field(0, ge=0, description="names the weights where they are random")

    @model_validator(mode="after")
    def _bounds_leave_something(self) -> Self:
        for unit in ("words", "chars"):
            least, most = getattr(self, f"min_{unit}"), getattr(self, f"max_{unit}")
            if least > most:
                raise ConfigError(f"min_{unit} is {least}, more than max_{unit}, {most}: no sentence is left.")
        if self.strategy == "facility_location" and self.budget is None:
            raise ConfigError("strategy facility_location chooses a number of sentences. Give --budget.")
        if self.strategy == "assignment_greedy" and self.candidates < self.per_image:
            raise ConfigError(
                f"candidates is {self.candidates}, less than per_image, {self.per_image}: an image cannot get more"
                " sentences than it may. Raise candidates."
            )
        return self
