"""Dense protocols as tasks of `attar evaluate`: they ask the backbone itself, not features that are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from attar.config.evaluate import EvaluateConfig
from attar.data.labelled import Labelled
from attar.data.pairs import Pair
from attar.evaluation.datasets import find_dataset, open_pairs
from attar.evaluation.dense.protocol import DenseProtocol
from attar.evaluation.dense.splits import DenseSplits, hold_out, open_dense
from attar.evaluation.judged import Judged
from attar.evaluation.protocols import Need, Score
from attar.evaluation.store import Features
from attar.evaluation.task_data import data_root_for, is_benchmark
from attar.utils.io import sha256_text


@dataclass(frozen=True)
class DenseData:
    """Images with annotations, as the recipe looks at a task's data.

    Attributes:
        splits: The images.
        metric: Name of what is reported.
        parts: Nothing that could be embedded once for all.
    """

    splits: DenseSplits
    metric: str
    parts: Mapping[str, Labelled] = field(default_factory=dict)

    @property
    def origin(self) -> str:
        """Who made the parts, and which images are in them."""
        parts = (self.splits.train, self.splits.val, self.splits.test)
        names = sha256_text("\n".join(pair.name for part in parts for pair in part))
        return f"{self.splits.origin}; images {names[:16]}"


class DenseTask:
    """A dense protocol on a data set of the table, a folder `images/SPLIT` with `annotations/SPLIT`, or the playground.

    Args:
        config: Settings.
        probe: The protocol.
    """

    def __init__(self, config: EvaluateConfig, probe: DenseProtocol) -> None:
        self.config, self.probe = config, probe

    def open(self, place: str) -> DenseData:
        """Images to learn from, to choose by and to report. Errors as of `open_learned`."""
        if not is_benchmark(place):
            splits = open_dense(place, seed=self.config.seed)
            return DenseData(splits, "miou" if splits.num_classes else "rmse")
        root, dataset = data_root_for(place, self.config), find_dataset(place)
        train: Sequence[Pair]
        train, test = (open_pairs(dataset, root, part).pairs for part in ("train", "test"))
        val: list[Pair] = [*open_pairs(dataset, root, "val").pairs] if dataset.has_paper_val else []
        origin = "as the papers split it"
        if not val:
            train, val = hold_out(train, seed=self.config.seed)
            origin = f"{origin}; val: a fifth of train by seed {self.config.seed}"
        splits = DenseSplits(
            train, val, test, dataset.num_classes, dataset.first_class, origin, eigen=dataset.kind == "depth"
        )
        return DenseData(splits, dataset.metric)

    def needs(self, data: DenseData, img_size: int) -> dict[str, Need]:
        """Nothing: windows of large images are not kept."""
        return {}

    def judge(self, features: Mapping[str, Features], data: DenseData, model: Judged) -> Score:
        """The score of the backbone, loaded at the size that the protocol wants; an interrupted training goes on."""
        backbone = model.backbone_at(lambda own: self.probe.img_size(own.img_size, patch_size=own.patch_size))
        about = sha256_text(f"{type(self.probe).__name__} {data.origin} {self.config.mode} {self.config.seed}")
        state = model.folder / f"dense-{about[:16]}-unfinished"
        return self.probe.judge(backbone, data.splits, device=model.device, workers=0, state=state)
