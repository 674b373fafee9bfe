"""Tasks as they are written on a command line."""

import pytest

from attar.errors import ConfigError
from attar.evaluation.suite import SUITES, Task, parse_tasks


def test_suites_are_taken_apart_and_each_task_comes_once():
    assert parse_tasks(["knn:DIR", "proteus12", "knn:DIR"]) == [Task("knn", "DIR"), *SUITES["proteus12"]]


@pytest.mark.parametrize("place", ["a,b", "C:/a", "s3://bucket/x,y", "a,b:c", "~nobody-at-all/a", "a" * 5000])
def test_a_comma_or_colon_in_a_name_is_part_of_it(place):
    assert parse_tasks([f"knn:{place}"]) == [Task("knn", place)]


@pytest.mark.parametrize("folder", ["DIR", "~nobody-at-all/DIR", "a" * 5000])
@pytest.mark.parametrize(("misspelt", "meant"), [("logistc", "logistic"), ("few-shot", "few_shot")])
def test_a_misspelt_task_behind_a_comma_is_no_folder(folder, misspelt, meant):
    with pytest.raises(ConfigError, match=f"'{misspelt}' in .* is no protocol. Did you mean '{meant}'"):
        parse_tasks([f"knn:{folder},{misspelt}:DIR"])


def test_a_folder_that_is_there_is_one_whatever_it_is_called(tmp_path):
    place = tmp_path / "a,line:b"
    place.mkdir()
    assert parse_tasks([f"knn:{place}"]) == [Task("knn", str(place))]
