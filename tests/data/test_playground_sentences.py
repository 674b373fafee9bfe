import re

import pytest

from attar.data.arrangements import COMBINATIONS
from attar.data.playground import CLASS_NAMES
from attar.data.playground_sentences import UNGROUNDED, draw_sentence
from attar.data.shapes import COLOUR_NAMES

THING = re.compile(rf"\b({'|'.join(COLOUR_NAMES)}) ({'|'.join(CLASS_NAMES)})\b")


@pytest.fixture(scope="module")
def corpus():
    return [draw_sentence(5, index) for index in range(3000)]


def test_a_sentence_depends_on_seed_and_index_alone(corpus):
    assert [draw_sentence(5, index) for index in (2999, 0, 7)] == [corpus[2999], corpus[0], corpus[7]]
    assert [draw_sentence(6, index) for index in range(50)] != corpus[:50]


def test_the_share_of_grounded_sentences_is_what_was_asked_for(corpus):
    assert sum(sentence.is_grounded for sentence in corpus) / len(corpus) == pytest.approx(0.5, abs=0.03)
    assert all(draw_sentence(5, index, grounded_share=1.0).is_grounded for index in range(50))
    assert not any(draw_sentence(5, index, grounded_share=0.0).is_grounded for index in range(50))


def test_grounded_sentences_name_things_that_are_not_held_out_and_the_others_name_none(corpus):
    seen = set(COMBINATIONS["seen"])
    for sentence in corpus:
        named = THING.findall(sentence.text)
        assert bool(named) == sentence.is_grounded, sentence.text
        assert set(named) <= seen, sentence.text
    assert {pair for sentence in corpus for pair in THING.findall(sentence.text)} == seen


def test_what_cannot_be_seen_uses_the_same_words_in_other_senses():
    words = {word for text in UNGROUNDED for word in text.split()}
    assert len(words & set(COLOUR_NAMES)) >= 5
    assert len(words & set(CLASS_NAMES)) >= 3
    assert len(set(UNGROUNDED)) == len(UNGROUNDED) == 2160
