"""Data sets of the papers' suites: where they lie, what is in them, how they are split. Nothing is downloaded."""

from attar.evaluation.datasets.catalogue import DATASETS, SUITES, datasets_of, find_dataset
from attar.evaluation.datasets.dataset import Count, Dataset
from attar.evaluation.datasets.imagenet import CORRUPTIONS, EXTRA_CORRUPTIONS
from attar.evaluation.datasets.listing import Listing, list_datasets
from attar.evaluation.datasets.opening import (
    OpenedPairs,
    OpenedSplit,
    imagenet_indices,
    open_dataset,
    open_pairs,
    open_training,
)
from attar.evaluation.datasets.prompts import listed_names, prompt_names, prompt_templates
from attar.evaluation.datasets.splits import first_fifth_of_each_class, shuffled_fifth

__all__ = [
    "CORRUPTIONS",
    "DATASETS",
    "EXTRA_CORRUPTIONS",
    "SUITES",
    "Count",
    "Dataset",
    "Listing",
    "OpenedPairs",
    "OpenedSplit",
    "datasets_of",
    "find_dataset",
    "first_fifth_of_each_class",
    "imagenet_indices",
    "list_datasets",
    "listed_names",
    "open_dataset",
    "open_pairs",
    "open_training",
    "prompt_names",
    "prompt_templates",
    "shuffled_fifth",
]
