"""A reference is a place and options; a slip in an option is an error, not a folder that does not exist."""

import pytest

from attar.data.references import Options, lasting, shown, split_reference
from attar.errors import DataError


@pytest.mark.parametrize(
    ("reference", "place", "options"),
    [
        ("images", "images", {}),
        ("images?weight=2", "images", {"weight": 2.0}),
        ("a/x.parquet?subset_seed=3&weight=0.25", "a/x.parquet", {"weight": 0.25, "subset_seed": 3}),
        ("playground", "playground", {}),
        ("playground:1?n=5", "playground:1?n=5", {}),
        ("playground:1?weight=2", "playground:1", {"weight": 2.0}),
        ("playground:1?n=5&weight=2&variety=0", "playground:1?n=5&variety=0", {"weight": 2.0}),
        ("playground:1?", "playground:1?", {}),  # for the playground to complain about
        ("s3://bucket/x?images=0.5", "s3://bucket/x", {"images": 0.5}),
        ("https://host/x.tar?signature=a%2Fb&weight=2&e=1", "https://host/x.tar?signature=a%2Fb&e=1", {"weight": 2.0}),
    ],
)
def test_options_are_read_and_the_place_is_left(reference, place, options):
    assert split_reference(reference) == (place, Options(**options))


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("~/images", "~/images"),
        ("~/images?weight=2.0&classes=0.5", "~/images?classes=0.5&weight=2"),
        ("x.tar?subset_seed=12345678", "x.tar?subset_seed=12345678"),
        ("playground:1?n=50&weight=2", "playground:1?n=50?weight=2"),
        ("https://me:secret@host/x-{0..9}.tar?signature=secret&weight=2", "https://host/x-{0..9}.tar?weight=2"),
        ("s3://secret@bucket/x?images=0.25", "s3://bucket/x?images=0.25"),
    ],
)
def test_what_is_shown_of_a_reference_are_place_and_options_without_credentials(reference, says):
    assert shown(reference) == says


def test_a_folder_with_a_question_mark_in_its_name_stays_a_folder(tmp_path):
    folder = tmp_path / "what?weight=2"
    assert split_reference(str(folder)) == (str(tmp_path / "what"), Options(weight=2))
    folder.mkdir()
    assert split_reference(str(folder)) == (str(folder), Options())
    assert split_reference(f"{folder}?weight=3") == (str(folder), Options(weight=3))


def test_a_wrong_option_behind_a_signed_address_does_not_show_the_signature():
    with pytest.raises(DataError, match=r"'https://host/x\.tar\?weight=0'") as caught:
        split_reference("https://me:secret@host/x.tar?signature=secret&weight=0")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("images?weigth=2", "unknown setting 'weigth'. Did you mean 'weight'"),
        ("images?n=5", "unknown setting 'n'. Known here: classes, images"),
        ("images?weight=0", "'weight' is '0'.*greater than 0"),
        ("images?weight=-1", "'weight' is '-1'"),
        ("images?weight=nan", "'weight' is 'nan'"),
        ("images?weight=", "'weight' is ''"),
        ("images?weight", "'weight' is ''"),
        ("images?subset_seed=1.5", "'subset_seed' is '1.5'"),
        ("images?weight=2&weight=3", "an option twice"),
        ("playground:1?weight=x", "'weight' is 'x'"),
        ("images?crops=0", "'crops' is '0'"),
        ("images?classes=1.1", "'classes' is '1.1'"),
        ("images?image=2", "crops is not given"),
        ("s3://bucket/x?wieght=2", "Did you mean 'weight'"),
    ],
)
def test_a_wrong_option_is_an_error_that_shows_the_reference(reference, message):
    with pytest.raises(DataError, match=message) as caught:
        split_reference(reference)
    assert f"'{reference}'" in str(caught.value)


def test_a_lasting_reference_names_the_same_place_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    found = [lasting(reference) for reference in ("images?weight=2", "images", "x-{0..9}.tar")]
    assert found == [f"{tmp_path}/images?weight=2", f"{tmp_path}/images", f"{tmp_path}/x-{{0..9}}.tar"]
    assert lasting("playground:1?n=5") == "playground:1?n=5"
    assert lasting("s3://me:secret@bucket/x.tar?images=0.5") == "s3://bucket/x.tar?images=0.5"
