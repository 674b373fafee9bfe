"""Nothing that a stranger's name holds acts on a terminal, and all else stays as it is."""

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from attar.utils.plain import in_cell, plain

TURNING = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}  # of Unicode's bidirectional algorithm


def acts(letter):
    """By Unicode's own tables: a control character, half of one, a separator of lines, or what turns the order."""
    return letter not in "\n\t" and (
        unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp")
        or unicodedata.bidirectional(letter) in TURNING
        or letter in "\u200e\u200f\u061c"
    )


def test_each_character_that_acts_is_shown_as_its_code_and_no_other_is_touched():
    for code in range(0x110000):
        letter = chr(code)
        shown = plain(letter)
        if acts(letter):
            assert shown.isascii(), hex(code)
            assert shown.isprintable()
            assert ord(eval(f'"{shown}"')) == code
        else:
            assert shown == letter, hex(code)


@given(st.text(st.characters(exclude_categories=[])))
def test_what_comes_out_can_be_printed_and_does_not_change_again(text):
    shown = plain(text)
    assert not any(map(acts, shown))
    shown.encode()
    assert plain(shown) == shown


@given(st.text())
def test_a_cell_stays_one_cell(text):
    cell = in_cell(text)
    assert "\n" not in cell
    assert "<" not in cell
    assert cell.replace(r"\|", "").count("|") == 0
