"""Objectives of DIME-FM, part of the settings of `attar distill-vl`."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from attar.config.base import Config
from attar.errors import ConfigError


class DimeFmConfig(Config):
    """Objectives of DIME-FM, as released. Set a weight to 0 to leave that term, and its work in a step, out.

    With a text tower that learns, the terms `pvl`, `udist` and `feature` count for sentences as they do for images.
    """

    vl_weight: float = Field(0.7, ge=0, description="weight of the scores of images with sentences, both ways")
    pvl_weight: float = Field(
        0.3, ge=0, description="weight of the scores with the teacher's images in place of sentences"
    )
    udist_weight: float = Field(0.0, ge=0, description="weight of the scores of images among themselves")
    feature_weight: float = Field(
        0.0,
        ge=0,
        description="weight of the squared difference of normalised features (CLIP-KD: 2000), not the paper's",
    )
    contrastive_weight: float = Field(
        0.0, ge=0, description="weight of the contrastive term on images with their own captions, not the paper's"
    )
    scale: float = Field(100.0, gt=0, description="multiplies cosines, the teacher's and the student's")
    vl_temperature: float = Field(1.0, gt=0, description="softens the scores of images with sentences")
    pvl_temperature: float = Field(3.0, gt=0, description="softens the scores with the teacher's images")
    udist_temperature: float = Field(7.0, gt=0, description="softens the scores of images among themselves")
    text_mode: Literal["frozen_teacher", "small_student"] = Field(
        "frozen_teacher", description="keep the teacher's text tower, or let a small one learn beside the images"
    )

    @property
    def asks_of_images(self) -> bool:
        """Whether a term needs what the teacher says of a step's images."""
        return bool(self.vl_weight or self._looks_at_one_kind)

    @property
    def asks_of_sentences(self) -> bool:
        """Whether a term needs a step's sentences."""
        return bool(self.vl_weight or (self.text_mode == "small_student" and self._looks_at_one_kind))

    @property
    def _looks_at_one_kind(self) -> bool:
        return any((self.pvl_weight, self.udist_weight, self.feature_weight))

    @property
    def compares(self) -> bool:
        """Whether a term looks at several images or sentences at once."""
        return any((self.vl_weight, self.pvl_weight, self.udist_weight, self.contrastive_weight))

    @model_validator(mode="after")
    def _something_to_learn(self) -> Self:
        weights = (self.vl_weight, self.pvl_weight, self.udist_weight, self.feature_weight, self.contrastive_weight)
        if not any(weights):
            raise ConfigError("nothing to learn: all weights of DIME-FM are 0. Give one term a weight.")
        return self


WITH_REGULARISER = DimeFmConfig(vl_weight=0.68, pvl_weight=0.22, udist_weight=0.10)
"""All three terms; the weights are those of a third-party implementation, as the release leaves the regulariser off."""
