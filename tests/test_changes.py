"""Fragments of the changelog: each is a list, and joining them loses nothing."""

import importlib.util

import pytest

from documented import ROOT

found = importlib.util.spec_from_file_location("join_changes", ROOT / "scripts" / "join_changes.py")
join_changes = importlib.util.module_from_spec(found)
found.loader.exec_module(join_changes)
joined = join_changes.joined

CHANGELOG = "# Changelog\n\n## Unreleased\n\n- One.\n\n## 0.1.0 (2026-01-01)\n\n- Zero.\n"


def test_what_lies_in_changes_can_be_joined():
    changes = [path.read_text() for path in join_changes.fragments(ROOT / "changes")]
    whole = joined((ROOT / "CHANGELOG.md").read_text(), changes)
    assert all(text in whole for text in changes)
    assert all(line in whole for line in (ROOT / "CHANGELOG.md").read_text().splitlines())


def test_changes_come_after_those_that_are_unreleased():
    assert joined(CHANGELOG, ["- Two,\n  still two.\n", "- Three.\n"]) == CHANGELOG.replace(
        "- One.\n", "- One.\n- Two,\n  still two.\n- Three.\n"
    )


def test_a_release_names_and_dates_what_was_unreleased():
    whole = joined(CHANGELOG, ["- Two.\n"], release="0.2.0", date="2026-12-01")
    assert "## Unreleased\n\n## 0.2.0 (2026-12-01)\n\n- One.\n- Two.\n\n## 0.1.0 (2026-01-01)\n" in whole


@pytest.mark.parametrize("text", ["Two.\n", "- Two\nthree\n", ""])
def test_what_is_no_list_is_refused(text):
    with pytest.raises(SystemExit):
        joined(CHANGELOG, [text])
