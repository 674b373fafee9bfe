"""Zero-shot classification as a protocol: image embeddings against the class names of the same model's text tower."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from attar.config.evaluate import EvaluateConfig
from attar.evaluation.corruptions import score_corruptions
from attar.evaluation.judged import Judged
from attar.evaluation.prompted import Prompted, metric_in, open_prompted
from attar.evaluation.protocols import Need, Score, scored
from attar.evaluation.store import Features
from attar.evaluation.task_data import centre_view
from attar.evaluation.zero_shot import LOGIT_SCALE, zero_shot_logits

_CROP = 1.0


class ZeroShot:
    """Class names in sentences classify; only for models with a text tower (CLIP; spec evaluation §3).

    In paper mode average precision and AUC judge shares after a softmax, as ELEVATER does. Of a shifted ImageNet only
    its own classes are built.
    """

    def __init__(self, config: EvaluateConfig) -> None:
        self.config, self.mode = config, config.mode

    def open(self, place: str) -> Prompted:
        """Test images with names and templates."""
        return open_prompted(place, self.config)

    def needs(self, data: Prompted, img_size: int) -> dict[str, Need]:
        """Projected embeddings of what is reported."""
        view = centre_view(data.place, img_size, _CROP)
        return {part: Need(images, view, ("embed",), name=f"{part} images") for part, images in data.parts.items()}

    def judge(self, features: Mapping[str, Features], data: Prompted, model: Judged) -> Score:
        """The data set's metric of cosines times 100."""
        classifier = model.classifier(data.prompts.names, data.prompts.templates)
        protocol: dict[str, Any] = {
            "classes": len(data.prompts.names),
            "templates": len(data.prompts.templates),
            "logit_scale": LOGIT_SCALE,
            "crop_pct": _CROP,
        }

        def logits(images: Features) -> Tensor:
            return zero_shot_logits(images["embed"], classifier)

        if data.metric == "mce":
            return score_corruptions(features, logits, protocol, seed=self.config.seed)
        judged = replace(data, metric=metric_in(self.mode, data.metric))
        return scored(judged, logits(features["test"]), features["test"], protocol, seed=self.config.seed)
