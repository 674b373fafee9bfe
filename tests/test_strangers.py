"""Names, classes and captions of strangers through the front door: they reach terminal, page and card as mere words."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from attar.cli import main
from attar.export import model_card, two_towers_card
from attar.export.card import export_card
from attar.reports import Result, comparison_table, markdown_table
from attar.reports.page import environment
from attar.utils import progress
from attar.utils.plain import in_cell
from small_runs import distill_words, picture

NAMES = [
    "<script>alert(1)",
    '"><img src=x onerror=alert(1)>',
    "[bold red]loud[",
    ":cat:",
    "\x1b[31mred\x1b[2J",
    "\x9b31mred",
    "\u202egnp.exe",
    "{{ 7 * 7 }}",
    "a|b\nc",
    "back\rover",
    "\udcff is no text",
]
ACTING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u061c\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
TEMPLATES = sorted((Path(progress.__file__).parents[1] / "reports/templates").glob("*.html"))


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text = set(), set(), ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.text += "".join(f" {value} " for _, value in attrs)

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def strangers(tmp_path):
    """Pictures of two classes for every name, and a broken one, all named by strangers."""
    for number, name in enumerate(NAMES[:-1]):
        for kind in ("images", "monitor"):
            folder = tmp_path / kind / name
            folder.mkdir(parents=True)
            for turn in range(3):
                picture(10 * number + turn).save(folder / f"{turn}{name[:20]}.png")
    (tmp_path / "images" / NAMES[4] / f"broken{NAMES[4]}.png").write_bytes(b"no picture")
    return tmp_path


def test_a_run_and_its_report_show_strangers_names_as_words(strangers, capfd):
    words = distill_words(strangers, "--monitor", str(strangers / "monitor"), "--monitoring.k", "1")
    assert main([*words, "--batch-size", "31", "--max-bad-share", "0.5"]) == 0
    assert main(["report", str(strangers / "out"), "--images", str(strangers / "monitor"), "--device", "cpu"]) == 0
    said = capfd.readouterr()
    log = (strangers / "out/log.txt").read_text()
    card = (strangers / "out/student/README.md").read_text()
    for text in (said.out, said.err, log, card):
        assert not ACTING.search(text)
    assert r"\x1b[31mred" in log  # the broken picture's name, as its code
    html = (strangers / "out/report.html").read_text()
    assert not ACTING.search(html)
    page = Page(html)
    assert "script" not in page.tags
    assert not any(name.startswith("on") for name in page.attributes)
    assert sum(name in page.text for name in NAMES[:4]) == 4
    assert r"\x1b[31mred" in page.text
    assert "{{ 7 * 7 }}" in page.text  # a template's words are words


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("flag", ["--data", "--teacher", "--student", "--monitor", "--teacher-weights", "--{}"])
def test_an_error_shows_a_strangers_name_as_a_word(flag, name, strangers, capfd):
    assert main([*distill_words(strangers), flag.format(name), name]) == 2
    said = capfd.readouterr().err
    assert not ACTING.search(said)
    assert "Traceback" not in said


@pytest.mark.parametrize("name", NAMES)
def test_terminals_get_words_from_log_and_bars(name, monkeypatch, capfd):
    monkeypatch.setattr(progress, "console", Console(force_terminal=True, no_color=True, markup=False, emoji=False))
    monkeypatch.setattr(progress.time, "monotonic", iter(range(0, 1000, 5)).__next__)
    progress.Log().say(name)
    list(progress.track([1, 2], name, total=2, unit="images"))
    with progress.counting(name, unit="images") as show:
        show(3)
    said = capfd.readouterr().out
    commands = re.compile(r"\x1b\[[?\d;]*[A-Za-z]|\r")  # of the bars themselves
    assert not ACTING.search(commands.sub("", said))
    assert "\x1b[31m" not in said
    assert "\x1b[2J" not in said
    for part in (":cat:", "[bold red]loud["):
        assert part not in name or said.count(part) >= 3


def test_tables_stay_tables():
    results = [
        Result(f"knn:{name}", "student", name, "top1", 0.5, (0.4, 0.6), 10, source={"sha256": str(number)})
        for number, name in enumerate(NAMES)
    ]
    for table, rows in ((comparison_table(results), len(NAMES)), (markdown_table(results), len(NAMES))):
        assert not ACTING.search(table)
        assert "<" not in table
        lines = table.splitlines()
        assert len(lines) == rows + 2
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1  # each row has all its cells


@pytest.mark.parametrize("name", NAMES)
def test_cards_have_a_row_for_each_fact_whatever_it_says(name):
    facts = {"teacher": name, name: "of strangers"}
    cards = (
        model_card(name, facts, table="Nothing."),
        two_towers_card(name, facts, table="Nothing.", costs=""),
        export_card(name, usage="none", facts=facts, files={}, measured={}, licence="none"),
    )
    for card in cards:
        assert not ACTING.search(card)
        title, _, rest = card.partition("\n\n")
        assert title == f"# {in_cell(name)}"
        rows = rest.partition("|---|---|\n")[2].partition("\n\n")[0].splitlines()
        assert rows == [f"| teacher | {in_cell(name)} |", f"| {in_cell(name)} | of strangers |"]


def test_settings_that_are_written_back_are_the_ones_given(strangers, capfd):
    for name in NAMES[:-1]:
        assert main([*distill_words(strangers), "--data", name, "--print-config"]) == 0
        said = capfd.readouterr().out
        assert not ACTING.search(said)
        assert yaml.safe_load(said)["data"] == name


def test_pages_have_one_door_and_no_way_around_it():
    # what escapes is the environment; a template that marks something safe, or another environment, would not
    source = "".join(path.read_text() for path in (TEMPLATES[0].parents[2]).rglob("*.py"))
    assert source.count("Environment(") == 1
    assert not re.search(r"\bMarkup\b", source)
    assert not any(re.search(r"\|\s*safe|autoescape", path.read_text()) for path in TEMPLATES)
    shown = environment().from_string("<p title='{{ name }}'>{{ name }}</p>").render(name=NAMES[1] + NAMES[4])
    assert Page(shown).tags == {"p"}
    assert not ACTING.search(shown)
