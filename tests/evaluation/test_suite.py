"""Tasks as they are written on a command line."""

import pytest

from attar.errors import ConfigError
from attar.evaluation.suite import SUITES, Task, parse_tasks


def test_suites_are_taken_apart_and_each_task_comes_once():
    assert parse_tasks(["knn:DIR", "proteus12", "knn:DIR"]) == [Task("knn", "DIR"), *SUITES["proteus12"]]


@pytest.mark.parametrize("place", ["a,b", "C:/a", "s3://bucket/x,y", "a,b:c"])
def test_a_comma_or_colon_in_a_name_is_part_of_it(place):
    assert parse_tasks([f"knn:{place}"]) == [Task("knn", place)]


def test_a_misspelt_task_behind_a_comma_is_no_folder():
    with pytest.raises(
        ConfigError, match=r"'logistc' in 'knn:DIR,logistc:DIR' is no protocol\. Did you mean 'logistic'"
    ):
        parse_tasks(["knn:DIR,logistc:DIR"])
