"""An ImageNet head on the sets that shift ImageNet: trained and chosen as in `linear:imagenet`, judged elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attar.config.evaluate import EvaluateConfig
from attar.data.labelled import Labelled
from attar.evaluation.corruptions import score_corruptions
from attar.evaluation.datasets import find_dataset, imagenet_indices
from attar.evaluation.judged import Judged
from attar.evaluation.linear_protocol import OUTPUTS, Linear, probe_features
from attar.evaluation.protocols import Need, Score, scored
from attar.evaluation.robustness import merge_classes, select_classes
from attar.evaluation.splits import Splits
from attar.evaluation.store import Features
from attar.evaluation.task_data import centre_view, data_root_for, open_learned, open_tests

_HEAD_OF = "imagenet"


@dataclass(frozen=True)
class Shift:
    """A shifted test set, and the images that the head is from.

    Attributes:
        place: Name of the set.
        imagenet: What the head learns from, is chosen by, and is reported on elsewhere.
        tests: `test`, or the splits of ImageNet-C.
        groups: For each class of the set, by label, the head's classes that it stands for.
        metric: Name of what is reported.
    """

    place: str
    imagenet: Splits
    tests: Mapping[str, Labelled]
    groups: tuple[tuple[int, ...], ...]
    metric: str

    @property
    def parts(self) -> dict[str, Labelled]:
        """Those of ImageNet, and those of the set under its name."""
        return self.imagenet.parts | {f"{self.place} {name}": images for name, images in self.tests.items()}

    @property
    def origin(self) -> str:
        """For the record."""
        return f"a head of ImageNet's {len(self.imagenet.train.class_names)} classes on {len(self.groups)} of them"


class LinearOnShift:
    """The head of `linear:imagenet` on a set that shifts ImageNet (spec evaluation §1.7).

    The prediction is one of the set's own classes; where one of these stands for several of ImageNet's, as in
    ObjectNet, the largest logit counts.
    """

    def __init__(self, config: EvaluateConfig) -> None:
        self.config, self.linear = config, Linear(config)

    def open(self, place: str) -> Shift:
        """The set, and ImageNet."""
        tests = open_tests(place, self.config)
        groups = imagenet_indices(place, data_root_for(place, self.config))
        return Shift(place, open_learned(_HEAD_OF, self.config), tests, groups, find_dataset(place).metric)

    def needs(self, data: Shift, img_size: int) -> dict[str, Need]:
        """What `linear:imagenet` needs, and the same of the set."""
        view = centre_view(data.place, img_size, self.config.linear.crop_pct)
        return self.linear.needs(data.imagenet, img_size) | {
            f"{data.place} {name}": Need(images, view, OUTPUTS, name=f"{data.place} images")
            for name, images in data.tests.items()
        }

    def judge(self, features: Mapping[str, Features], data: Shift, model: Judged) -> Score:
        """The set's metric, of the chosen head."""
        found = self.linear.trained(features, data.imagenet, model)
        shifted = {name: features[f"{data.place} {name}"] for name in data.tests}
        protocol = self.linear.record(found, features) | {"head_of": f"linear:{_HEAD_OF}"}

        def logits(images: Features) -> Tensor:
            return among_classes(found.head.logits(probe_features(images)), data.groups)

        if data.metric == "mce":
            protocol |= {"crop_pct": 1.0, "unconfirmed": "how DINOv2 crops these images"}
            return score_corruptions(shifted, logits, protocol, seed=self.config.seed)
        return scored(data, logits(shifted["test"]), shifted["test"], protocol, seed=self.config.seed)


def among_classes(logits: Tensor, groups: Sequence[Sequence[int]]) -> Tensor:
    """(n, C) logits of the data's classes from (n, 1000): one each, or the largest of several."""
    if all(len(group) == 1 for group in groups):
        return select_classes(logits, torch.tensor([group[0] for group in groups]))
    return merge_classes(logits, groups)
