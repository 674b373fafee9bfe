"""Protocols on annotated images: segmentation and depth."""

from attar.data.pairs import Annotated, Pair, open_annotated
from attar.evaluation.dense.depth import DepthProbe, DptProbe
from attar.evaluation.dense.protocol import DenseProtocol
from attar.evaluation.dense.segmentation import DeepLabProbe, SegmentationProbe, UPerNetProbe
from attar.evaluation.dense.splits import DenseSplits, open_dense

__all__ = [
    "Annotated",
    "DeepLabProbe",
    "DenseProtocol",
    "DenseSplits",
    "DepthProbe",
    "DptProbe",
    "Pair",
    "SegmentationProbe",
    "UPerNetProbe",
    "open_annotated",
    "open_dense",
]
