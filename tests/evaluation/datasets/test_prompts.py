"""Class names and templates."""

from __future__ import annotations

import pytest

from attar.errors import DataError
from attar.evaluation.datasets import DATASETS, datasets_of, find_dataset, prompt_names, prompt_templates
from attar.evaluation.datasets.layouts import imagenet_wnids
from attar.evaluation.datasets.prompts import _HERE
from miniatures import MINIATURES

# Spec evaluation §3.1, counted in ELEVATER.
TEMPLATES = {
    "caltech101": 34, "caltech101_elevater": 34, "cifar10": 18, "cifar100": 18, "resisc45": 18, "dtd": 8, "cars": 8,
    "fer2013": 6, "country211": 5, "eurosat": 3, "gtsrb": 3, "aircraft": 2, "food101": 1, "flowers102": 1, "pets": 1,
    "mnist": 1, "voc2007": 1, "hateful_memes": 1, "kitti_distance": 1, "pcam": 1, "sst2": 1, "imagenet": 80,
    "imagenetv2": 80, "imagenet-a": 80, "imagenet-r": 80, "imagenet-sketch": 80, "objectnet": 80,
}  # fmt: skip


def test_as_many_templates_as_in_elevater() -> None:
    assert {name: len(prompt_templates(DATASETS[name].templates or "")) for name in TEMPLATES} == TEMPLATES
    assert {row.name for suite in ("elevater20", "robustness5") for row in datasets_of(suite)} <= set(TEMPLATES)
    assert len(prompt_templates("imagenet7")) == 7
    assert set(prompt_templates("imagenet7")) <= set(prompt_templates("imagenet80"))


@pytest.mark.parametrize("kind", ["names", "templates"])
def test_each_file_begins_with_its_source_and_licence(kind: str) -> None:
    files = sorted((_HERE / kind).glob("*.txt"))
    assert files
    for path in files:
        head, *lines = path.read_text(encoding="utf-8").splitlines()
        assert head.startswith("# ")
        assert "(MIT" in head
        assert all(line == line.strip("\n ") and line for line in lines)
        assert kind == "names" or all(line.count("{}") == 1 for line in lines)
        assert len(set(lines)) == len(lines) or path.stem in ("caltech101", "imagenet80")


@pytest.mark.parametrize(
    ("name", "count"),
    [("imagenet", 1000), ("caltech101", 102), ("flowers102", 102), ("gtsrb", 43), ("country211", 211)],
)
def test_a_file_of_names_has_every_class(name: str, count: int) -> None:
    assert len((_HERE / "names" / f"{name}.txt").read_text().splitlines()) == count + 1


@pytest.mark.parametrize("name", [name for name in MINIATURES if name != "country211"])
def test_every_row_has_a_name_for_each_class_of_its_reader(name: str) -> None:
    classes = MINIATURES[name].classes
    known = {"caltech101": "Leopards"}.get(find_dataset(name).names)
    found = prompt_names(find_dataset(name), [known if known and each == "ant" else each for each in classes])
    assert len(set(found)) >= 0.99 * len(classes)  # two of ImageNet's names stand twice
    assert not any("_" in each for each in found)


def test_names_follow_the_key_and_not_the_place() -> None:
    assert prompt_names(find_dataset("flowers102"), ["102", "1"]) == ("blackberry lily", "pink primrose")
    assert prompt_names(find_dataset("caltech101"), ["ant", "Faces"]) == ("ant", "off-center face")
    assert prompt_names(find_dataset("imagenet-a"), ["n12267677", "n01498041"]) == ("acorn", "stingray")
    assert prompt_names(find_dataset("imagenet"), imagenet_wnids())[:2] == ("tench", "goldfish")


def test_names_are_made_readable_by_the_rows_rule() -> None:
    assert prompt_names(find_dataset("sun397"), ["a/apse/indoor", "b/bus_depot/outdoor"]) == (
        "apse indoor",
        "bus depot outdoor",
    )
    assert prompt_names(find_dataset("cars"), ["Ram C/V Cargo Van Minivan 2012"]) == ("Ram C/V Cargo Van Minivan 2012",)
    assert prompt_names(find_dataset("cub200"), ["001.Black_footed_Albatross"]) == ("Black footed Albatross",)
    assert prompt_names(find_dataset("food101"), ["baby_back_ribs"]) == ("baby back ribs",)
    assert prompt_names(find_dataset("dtd"), ["polka-dotted"]) == ("polka-dotted",)
    assert prompt_names(find_dataset("objectnet"), ["Alarm clock"]) == ("alarm clock",)


def test_a_mirrors_names_stay_and_a_file_without_keys_stands_in_the_order_of_labels() -> None:
    assert prompt_names(find_dataset("flowers102"), ["pink primrose", "daffodil"]) == ("pink primrose", "daffodil")
    codes = [f"{number:03}" for number in range(211)]
    assert prompt_names(find_dataset("country211"), codes)[:2] == ("Andorra", "United Arab Emirates")
    assert prompt_names(find_dataset("country211"), ["Andorra"]) == ("Andorra",)


def test_a_class_that_has_no_name_is_an_error() -> None:
    with pytest.raises(DataError, match=r"class '0', which names/flowers102\.txt does not know"):
        prompt_names(find_dataset("flowers102"), ["0", "1"])
    with pytest.raises(DataError, match="class 'AD'"):
        prompt_names(find_dataset("country211"), ["AD", "AE"])
    with pytest.raises(DataError, match="there are no templates 'imagenet8'"):
        prompt_templates("imagenet8")
