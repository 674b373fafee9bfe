"""What messages guess."""

from attar.errors import did_you_mean, meant_beside


def test_the_closest_word_is_guessed_and_nothing_far_away():
    assert did_you_mean("distil", ["transfer", "distill"]) == " Did you mean 'distill'?"
    assert did_you_mean("x", ["transfer", "distill"]) == ""


def test_a_path_is_guessed_from_what_lies_beside_it(tmp_path):
    (tmp_path / "photos").mkdir()
    assert meant_beside(tmp_path / "photo") == " Did you mean 'photos'?"
    assert meant_beside(tmp_path / "photos") == ""  # it is there, and something else is wrong with it
    assert meant_beside(tmp_path / "labels") == ""
    assert meant_beside(tmp_path / "nowhere/photo") == ""
