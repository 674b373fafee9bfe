"""Image-text retrieval as a protocol."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from attar.config.evaluate import EvaluateConfig
from attar.data.views import EvaluationView
from attar.evaluation.captions import Captioned, open_captioned
from attar.evaluation.intervals import bootstrap_interval
from attar.evaluation.judged import Judged
from attar.evaluation.protocols import Need, Score
from attar.evaluation.retrieval import retrieval_ranks
from attar.evaluation.store import Features

_KS = (1, 5, 10)
_BATCH = 256  # captions encoded at a time


class Retrieval:
    """Recall at 1, 5 and 10 between images and captions, in both directions; only for models with a text tower.

    The figure is that from caption to image at 1; the others stand beside it. The same in both modes: nothing is
    chosen.
    """

    def __init__(self, config: EvaluateConfig) -> None:
        self.config = config

    def open(self, place: str) -> Captioned:
        """Images with their captions."""
        return open_captioned(place)

    def needs(self, data: Captioned, img_size: int) -> dict[str, Need]:
        """Projected embeddings of the images."""
        return {"test": Need(data.images, EvaluationView(img_size), ("embed",), name="images")}

    def judge(self, features: Mapping[str, Features], data: Captioned, model: Judged) -> Score:
        """Recall among the images that can be read, and their captions."""
        images = features["test"]
        captions = [data.captions[place] for place in images.labels.tolist()]
        texts = [text for some in captions for text in some]
        owners = torch.repeat_interleave(torch.arange(len(captions)), torch.tensor([len(some) for some in captions]))
        encoded = [model.text.encode(texts[start : start + _BATCH]).cpu() for start in range(0, len(texts), _BATCH)]
        of_images, of_texts = retrieval_ranks(images["embed"], torch.cat(encoded), owners)
        recalls = {f"image_to_text@{k}": _share(of_images < k) for k in _KS}
        recalls |= {f"text_to_image@{k}": _share(of_texts < k) for k in _KS}
        interval = _interval(of_texts < 1, owners, seed=self.config.seed)
        protocol = {"captions": len(texts), "crop_pct": 1.0}
        return Score(data.metric, recalls[data.metric], interval, len(captions), protocol, recalls)


def _share(hits: Tensor) -> float:
    return hits.double().mean().item()


def _interval(hits: Tensor, owners: Tensor, *, seed: int) -> tuple[float, float]:
    """Of the share of captions; images are drawn, each with all its captions, which are no independent ones."""
    counts = torch.bincount(owners).double()
    found = torch.bincount(owners, weights=hits.double())
    return bootstrap_interval(lambda right, all_: (right.sum() / all_.sum()).item(), found, counts, seed=seed)
