"""Apple's lists: filename,label, read as they are."""

import pytest

from attar.data.lists import is_list, open_list
from attar.errors import DataError
from small_runs import picture, write_pictures


def test_images_lie_beside_or_in_a_folder_of_their_class(tmp_path):
    for name in ("Forest", "River"):
        write_pictures(tmp_path / "2750" / name, 2)
    picture(7).save(tmp_path / "a.png")
    nested, flat = tmp_path / "train.txt", tmp_path / "flat.csv"
    nested.write_text("001.png,River\n000.png,Forest\n")
    flat.write_text("filename,label\na.png,Forest\n")
    assert is_list(str(nested))
    assert not is_list(str(tmp_path))
    found = open_list(nested, tmp_path / "2750")
    assert found.class_names == ("Forest", "River")
    assert found.labels.tolist() == [1, 0]
    assert found.source.name(0) == "River/001.png"
    other = open_list(flat, tmp_path, class_names=found.class_names)
    assert (other.labels.tolist(), len(other.source.read(0)) > 0) == ([0], True)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("000.png;cat\n", "line 1: '000.png;cat' is not filename,label"),
        ("\n", "names no images"),
        ("nowhere.png,cat\n", "neither nowhere.png nor cat/nowhere.png is there"),
        ("000.png,dog\n", "names the class 'dog', which the labelled images do not have"),
    ],
)
def test_a_list_that_cannot_be_right_says_where(text, said, tmp_path):
    write_pictures(tmp_path / "images", 1)
    path = tmp_path / "list.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=said):
        open_list(path, tmp_path / "images", class_names=("cat",))
