"""How files of data sets lie on disk: one reader for each official layout."""

from attar.evaluation.datasets.layouts.caltech import CaltechDraws
from attar.evaluation.datasets.layouts.folders import ClassFolders
from attar.evaluation.datasets.layouts.lists import Lists
from attar.evaluation.datasets.layouts.matlab import CarsAnnotations, FlowersAnnotations
from attar.evaluation.datasets.layouts.mirrors import Parquet, WebDataset
from attar.evaluation.datasets.layouts.pairs import Pairs
from attar.evaluation.datasets.layouts.pcam import PcamArrays
from attar.evaluation.datasets.layouts.records import CifarRecords, MnistRecords
from attar.evaluation.datasets.layouts.shifts import ObjectNet, ReaL, imagenet_wnids
from attar.evaluation.datasets.layouts.tables import CubTables, GtsrbFolders, JsonLines
from attar.evaluation.datasets.layouts.voc import VocLists

__all__ = [
    "CaltechDraws",
    "CarsAnnotations",
    "CifarRecords",
    "ClassFolders",
    "CubTables",
    "FlowersAnnotations",
    "GtsrbFolders",
    "JsonLines",
    "Lists",
    "MnistRecords",
    "ObjectNet",
    "Pairs",
    "Parquet",
    "PcamArrays",
    "ReaL",
    "VocLists",
    "WebDataset",
    "imagenet_wnids",
]
