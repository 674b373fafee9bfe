"""The table itself, its listing and its page."""

from __future__ import annotations

from pathlib import Path

import pytest

from attar.errors import ConfigError
from attar.evaluation.datasets import DATASETS, SUITES, datasets_of, list_datasets
from attar.evaluation.datasets.listing import markdown_table
from miniatures import MINIATURES

PAGE = Path(__file__).parents[3] / "docs" / "datasets.md"


def test_suites_have_as_many_rows_as_their_names_say() -> None:
    for suite, names in SUITES.items():
        digits = "".join(character for character in suite if character.isdigit())
        assert len(set(names)) == len(names) == int(digits or 3)
        assert [row.name for row in datasets_of(suite)] == list(names)
    assert set(SUITES["proteus12"]) < set(SUITES["proteus19"])
    with pytest.raises(ConfigError, match="no suite 'proteus13'"):
        datasets_of("proteus13")


def test_metrics_are_those_of_the_papers() -> None:
    # spec §2.1 and §2.2: the mean per class for four, top-1 for the rest, but VOC and the memes
    assert {name for name in (*SUITES["proteus12"], *SUITES["elevater20"]) if DATASETS[name].metric != "top1"} == {
        *("aircraft", "caltech101", "caltech101_elevater", "flowers102", "pets", "voc2007", "hateful_memes")
    }
    assert DATASETS["voc2007"].metrics == ("map11",)
    assert DATASETS["hateful_memes"].metrics == ("roc_auc",)
    assert DATASETS["ham10k_apple"].metrics == ("top1", "mean_per_class")
    assert [name for name, row in DATASETS.items() if row.is_multi_label] == ["imagenet-real", "voc2007"]


def test_the_papers_val_is_used_where_the_specification_says() -> None:
    used = {name for name in (*SUITES["proteus12"], *SUITES["elevater20"]) if DATASETS[name].has_paper_val}
    assert used == {"aircraft", "dtd", "flowers102", "voc2007", "country211"}


def test_a_figure_of_general_knowledge_alone_is_soft() -> None:
    soft = {name for name, row in DATASETS.items() if any(count.is_soft for count in row.splits.values())}
    assert soft == {
        *("sun397", "cub200", "imagenet-real", "imagenet-a", "imagenet-sketch", "objectnet", "nyuv2", "camvid")
    }
    assert all("[GK]" in " ".join(DATASETS[name].sources) for name in soft)


def test_the_listing_tells_what_is_there_and_why_the_rest_is_not(tmp_path: Path) -> None:
    MINIATURES["dtd"].make(tmp_path, MINIATURES["dtd"])
    listed = {entry.dataset.name: entry for entry in list_datasets(tmp_path)}
    assert list(listed) == list(DATASETS)
    assert listed["dtd"].folder == tmp_path / "dtd"
    assert listed["dtd"].suites == ("proteus12", "proteus19", "elevater20")
    assert listed["pets"].folder is None
    assert listed["pets"].expected.startswith("oxford-iiit-pet. Unpack images.tar.gz")


def test_the_page_holds_the_table() -> None:
    assert markdown_table() in PAGE.read_text(encoding="utf-8")


def test_every_row_of_the_table_has_as_many_cells() -> None:
    assert {line.replace("\\|", "").count("|") for line in markdown_table().splitlines()} == {9}
