"""Zero-shot on labelled images while a student trains: half of them to select by, half to report on."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from attar.data.labelled import Labelled
from attar.errors import ConfigError, DataError
from attar.evaluation.datasets import find_dataset, prompt_names
from attar.evaluation.embedding import MonitorViews, seen
from attar.evaluation.zero_shot import check_prompts, text_classifier, zero_shot_logits
from attar.models import Backbone, TextTower
from attar.utils.io import sha256_text
from attar.utils.seeding import numpy_generator

_WORDNET = re.compile(r"n\d{8}")


class ZeroShotMonitor:
    """Judges image towers by the class names that a text tower puts beside them.

    Args:
        images: Labelled, none of which is trained on.
        templates: Sentences with a place for a class name.
        limit: Images used at most.
        seed: Names the choice of images and halves.
        crop_pct: Share of the resized image that the centre crop keeps.
        workers: Loader processes.

    Raises:
        ConfigError: If a template has no place for the name, or classes are called by numbers.
        DataError: If there are fewer than two images.
    """

    kind = "zero_shot"

    def __init__(
        self, images: Labelled, templates: Sequence[str], *, limit: int, seed: int, crop_pct: float, workers: int
    ) -> None:
        self.names = _in_words(images.class_names)
        self.templates, self.crop_pct = list(templates), crop_pct
        check_prompts(self.names, self.templates)
        if len(images) < 2:
            raise DataError(f"the monitor has {len(images)} image; it needs a handful for each class.")
        chosen = images.take(numpy_generator(seed, "monitor", "zero-shot").permutation(len(images))[:limit])
        middle = len(chosen) // 2
        self.report = chosen.take(np.arange(middle, len(chosen)))
        parts = {"select": chosen.take(np.arange(middle)), "report": self.report}
        self.views = MonitorViews(parts, crop_pct=crop_pct, workers=workers)

    def beside(self, text: TextTower) -> ZeroShotOf:
        """The evaluator of image towers that share the space of this text tower, as it is when it judges."""
        return ZeroShotOf(self, lambda: text_classifier(text.encode, self.names, self.templates))

    def logits(self, backbone: Backbone, part: str, classifier: Tensor) -> tuple[Tensor, Tensor]:
        """((n, K) logits, (n,) labels) of the readable images of a part."""
        batches = self.views.batches(part, backbone.img_size)
        features, labels = seen(backbone.embed, self.views.parts[part], batches, name="monitor images")
        return zero_shot_logits(features, classifier), labels

    @property
    def protocol(self) -> dict[str, Any]:
        """Settings that shape the figures."""
        sizes = {name: len(part) for name, part in self.views.parts.items()}
        prompts = sha256_text("\n".join([*self.names, "", *self.templates]))[:16]
        return {
            "classes": len(self.names),
            "templates": len(self.templates),
            "prompts": prompts,
            "images": sha256_text(" ".join(part.fingerprint for part in self.views.parts.values()))[:16],
            "crop_pct": self.crop_pct,
            **sizes,
        }

    def describe(self) -> dict[str, Any]:
        """Which rows of which images are selection and report: the split, to be written down."""
        return {
            name: {"images": part.source.fingerprint, "rows": sorted(part.rows.tolist())}
            for name, part in self.views.parts.items()
        }


def _in_words(names: Sequence[str]) -> list[str]:
    """What a sentence can call the classes; ImageNet's folders have numbers of WordNet for names."""
    if all(_WORDNET.fullmatch(name) for name in names):
        return list(prompt_names(find_dataset("imagenet"), names))
    if all(name.isdigit() for name in names):
        raise ConfigError(
            f"the monitor's classes are called {', '.join(names[:3])}, which says nothing to a text tower."
            " Name the folders by what the images show."
        )
    return [name.replace("_", " ") for name in names]


class ZeroShotOf:
    """A monitor and the class vectors of a text tower, made anew for each judgement: the tower may learn meanwhile."""

    def __init__(self, monitor: ZeroShotMonitor, classifier: Callable[[], Tensor]) -> None:
        self.monitor, self.classifier = monitor, classifier

    def run(self, backbone: Any) -> Iterator[tuple[str, float]]:
        """Yield top-1 shares `zero_shot_select` and `zero_shot_report`, and `zero_shot_images`, the number behind."""
        classifier = self.classifier()
        for part in ("select", "report"):
            logits, labels = self.monitor.logits(backbone, part, classifier)
            yield f"zero_shot_{part}", (logits.argmax(1) == labels).double().mean().item()
        yield "zero_shot_images", len(labels)
