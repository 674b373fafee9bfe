"""A corpus without images: sentences that a playground scene could be the picture of, among sentences of which none is.

Those that nobody could see use the words of colours and shapes too, in other senses, so that it takes more than a word
to tell them apart. No sentence names a combination of colour and shape that is held out.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from attar.data.arrangements import captions, draw_content
from attar.utils.seeding import numpy_generator

_SUBJECTS = (
    "the committee", "her accountant", "a former minister", "the insurance company", "my neighbour", "the new law",
    "most of the voters", "the second chapter", "an old rumour", "the orchestra's treasurer", "his doctor",
    "the price of wheat",
)  # fmt: skip
_DEEDS = (
    "postponed the decision", "was blamed for the delay", "cut through the red tape",
    "changed nothing in the end", "forgot the password again", "went back to square one",
    "kept the books in the black", "came out of the blue", "got the green light",
    "went to the heart of the matter", "was the star of the debate", "raised the bar for everyone",
    "agreed to a grey area in the contract", "told a white lie", "moved in the same circles",
    "did not ring a bell", "explained how inflation works", "promised to answer by letter",
)  # fmt: skip
_TIMES = (
    "last tuesday", "before the war", "without saying why", "as far as anyone remembers", "for the third time",
    "in spite of everything", "during the recession", "at the request of the bank", "since nobody objected",
    "when interest rates fell",
)  # fmt: skip
UNGROUNDED: tuple[str, ...] = tuple(map(" ".join, itertools.product(_SUBJECTS, _DEEDS, _TIMES)))
"""Every sentence that is nothing to be seen."""


@dataclass(frozen=True)
class Sentence:
    """One of the corpus, and whether a scene could show it."""

    text: str
    is_grounded: bool


def draw_sentence(seed: int, index: int, *, grounded_share: float = 0.5) -> Sentence:
    """Sentence `index` of the corpus `seed`: a pure function, equal in every process and in every order.

    Texts repeat, as those of a real corpus do. No scene of `render_arrangement` belongs to one.

    Args:
        seed: Names the corpus.
        index: Position in it, from 0; it has no end.
        grounded_share: How many of all sentences could be seen in a scene.

    Example:
        >>> draw_sentence(0, 2)
        Sentence(text='a brown ring', is_grounded=True)
    """
    rng = numpy_generator(seed, "sentence", index)
    if rng.random() >= grounded_share:
        return Sentence(UNGROUNDED[int(rng.integers(len(UNGROUNDED)))], is_grounded=False)
    said = captions(draw_content(rng))
    return Sentence(said[int(rng.integers(len(said)))], is_grounded=True)
