"""DINOv2's linear probe as a protocol; its head is kept, so that shifted test sets are judged by the same one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from typing import Any

from attar.config.evaluate import EvaluateConfig
from attar.data.views import EvaluationView
from attar.evaluation.judged import Judged
from attar.evaluation.kept_probe import keep_probe, kept_probe
from attar.evaluation.linear_probe import ProbeResult, linear_probe
from attar.evaluation.outputs import Output
from attar.evaluation.probe_features import ProbeFeatures
from attar.evaluation.protocols import Need, Score, chosen_on, one_class_each, scored
from attar.evaluation.splits import Splits, images_hash
from attar.evaluation.store import Features
from attar.evaluation.task_data import open_learned
from attar.utils.io import sha256_text

OUTPUTS: tuple[Output, ...] = ("last4", "mean_patch")
"""What the heads read."""

_PAPER_VIEWS = _PAPER_EPOCHS = 10
_FIRST_VIEW = "train, view 0"
_LEAST_STEPS = 2000  # of a linear probe on few images, whose ten epochs would be over in no time


class Linear:
    """DINOv2's linear probe, 52 heads at once, the best chosen on `val`; in paper mode on what is reported.

    In paper mode heads learn from 10 random views for 10 epochs, as Proteus' do (spec evaluation §1.1).
    """

    def __init__(self, config: EvaluateConfig) -> None:
        self.config, self.settings, self.mode = config, config.linear, config.mode
        is_paper = config.mode == "paper"
        self.views = (_PAPER_VIEWS if is_paper else 0) if self.settings.views is None else self.settings.views

    def open(self, place: str) -> Splits:
        """Images to learn from, to choose by and to report."""
        return one_class_each(open_learned(place, self.config), place)

    def needs(self, splits: Splits, img_size: int) -> dict[str, Need]:
        """Class tokens of the last blocks and the mean patch, of random views of `train` and centre views of all."""
        centre = EvaluationView(img_size, self.settings.crop_pct)
        train = splits.train if self.mode == "honest" else splits.official_train
        numbers = range(self.views)
        views = [EvaluationView(img_size, number=number, seed=self.config.seed) for number in numbers] or [centre]
        found = {part: Need(splits.parts[part], centre, OUTPUTS, name=f"{part} images") for part in ("val", "test")}
        return found | {
            f"train, view {number}": Need(train, view, OUTPUTS, name=f"training images, view {number + 1}")
            for number, view in enumerate(views)
        }

    def judge(self, features: Mapping[str, Features], splits: Splits, model: Judged) -> Score:
        """Share of `test` that the chosen head gets right."""
        found = self.trained(features, splits, model)
        logits = found.head.logits(probe_features(features["test"]))
        details = {"by_head": dict(found.scores)}
        return scored(splits, logits, features["test"], self.record(found, features), details, seed=self.config.seed)

    def trained(self, features: Mapping[str, Features], splits: Splits, model: Judged) -> ProbeResult:
        """The chosen head: the one that is kept, or a new one; a training that was interrupted goes on."""
        place = model.folder / f"linear-{self._key(splits)}"
        if (kept := kept_probe(place)) is not None:
            return kept
        views = [features[f"train, view {number}"] for number in range(max(1, self.views))]
        state = place.with_name(f"{place.name}-unfinished")
        found = linear_probe(
            probe_features(*views),
            probe_features(features["test"]),
            mode=self.mode,
            val=probe_features(features["val"]),
            batch_size=self.settings.batch_size,
            epochs=self._epochs(len(views[0])),
            seed=self.config.seed,
            device=model.device,
            state=state,
        )
        keep_probe(place, found)
        shutil.rmtree(state, ignore_errors=True)
        return found

    def record(self, found: ProbeResult, features: Mapping[str, Features]) -> dict[str, Any]:
        """Settings that shape the figure."""
        settings = {
            "head": found.chosen,
            "heads": len(found.scores),
            "views": self.views,
            "epochs": self._epochs(len(features[_FIRST_VIEW])),
            "steps": found.steps,
            "batch_size": found.batch_size,
            "crop_pct": self.settings.crop_pct,
            **({"without": [str(layout) for layout in found.absent]} if found.absent else {}),
        }
        return settings | chosen_on(self.mode)

    def _key(self, splits: Splits) -> str:
        """Names a head, for one model: what it learned from, what it was chosen by, and how."""
        about = {
            "images": {part: images_hash(images) for part, images in splits.parts.items()},
            "settings": self.settings.model_dump(mode="json"),
            "mode": self.mode,
            "seed": self.config.seed,
        }
        return sha256_text(json.dumps(about, sort_keys=True))[:16]

    def _epochs(self, images: int) -> int:
        if self.settings.epochs is not None:
            return self.settings.epochs
        if self.mode == "paper":
            return _PAPER_EPOCHS
        steps = max(1, images // min(self.settings.batch_size, images))
        return max(_PAPER_EPOCHS, -(-_LEAST_STEPS // steps))


def probe_features(*views: Features) -> ProbeFeatures:
    """What heads read, of one or several views of the same images."""
    cls, patch = ([view[name] for view in views] for name in OUTPUTS)
    return ProbeFeatures(cls, patch, views[0].labels)
