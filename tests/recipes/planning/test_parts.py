"""The arithmetic of a plan, and what people read."""

import json

import pytest

from attar.recipes.planning.parts import Concern, Memory, Part, Plan, bytes_below, free_at

GB = 1_000_000_000


def plan(**changes):
    settings = {
        "verb": "distill",
        "settings": {"seed": 0},
        "found": {"data": ["a: 3,000 images", "b: 2 images"], "monitor": {"bank": 2500, "kept": False}},
        "parts": [Part("opening", 20.0), Part("training steps", 0.5, 7160, "median of 20 steps")],
        "images_per_second": 256.0,
        "memory": Memory(3 * GB, more=GB // 2, loaders=2 * GB),
        "disk": {"3 checkpoints": 3 * GB, "2 students": GB},
        "free": 100 * GB,
        "price_per_hour": 2.5,
    }
    return Plan(**(settings | changes))


def test_a_part_takes_its_seconds_so_many_times():
    assert Part("x", 0.25, 8).total == 2
    assert Part("x", 0.25, 0.5).total == 0.125


def test_seconds_are_those_of_all_parts_and_cost_follows_them():
    assert plan().seconds == 20 + 3580
    assert plan().cost == 2.5  # an hour
    assert plan(price_per_hour=None).cost is None
    assert plan(price_per_hour=0.0).cost == 0


def test_the_run_holds_what_the_probe_held_and_what_it_did_not_look_at():
    assert Memory(3 * GB, more=GB // 2).peak == 3.5 * GB
    assert Memory(None, more=5).peak is None


def test_people_read_time_cost_memory_and_disk():
    lines = str(plan()).splitlines()
    assert "  data     a: 3,000 images; b: 2 images" in lines
    assert "  monitor  bank 2,500, kept false" in lines
    assert "  time     1 h 0 min, 256 images/s" in lines
    assert "  cost     2.50 at 2.50 an hour" in lines
    assert "  memory   main process 3.5 GB, loader processes 2.0 GB beside it" in lines
    assert "  disk     4.0 GB (3 checkpoints 3.0 GB, 2 students 1.0 GB); 100.0 GB free" in lines
    steps = next(line for line in lines if "training steps" in line)
    assert steps.split() == ["training", "steps", "7,160", "0.5", "3,580.0", "median", "of", "20", "steps"]


def test_what_is_not_known_is_said_and_what_is_not_there_is_left_out():
    assert "main process not known" in str(plan(memory=Memory(None)))
    assert "GPU 2.0 GB" in str(plan(memory=Memory(GB, device=2 * GB)))
    bare = str(plan(memory=None, disk={}, parts=(), price_per_hour=None))
    assert not any(word in bare for word in ("memory", "disk", "time", "cost"))


def test_warnings_are_listed_or_said_to_be_none():
    assert str(plan()).endswith("warnings none")
    assert str(plan(concerns=[Concern("disk", "is full.")])).endswith("  warning  disk: is full.")


def test_json_holds_the_parts_and_their_sums():
    told = json.loads(json.dumps(plan().as_json()))
    assert told["seconds"] == sum(part["total"] for part in told["parts"]) == 3600
    assert told["parts"][1] == {
        "what": "training steps",
        "seconds": 0.5,
        "times": 7160,
        "known": "median of 20 steps",
        "total": 3580,
    }
    assert told["memory"]["peak"] == 3.5 * GB
    assert (told["cost"], told["settings"]) == (2.5, {"seed": 0})


def test_bytes_below_a_folder_and_room_where_it_will_be(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a").write_bytes(b"abc")
    (tmp_path / "b").write_bytes(b"12345")
    assert bytes_below(tmp_path) == 8
    assert free_at(str(tmp_path / "not" / "there" / "yet")) == pytest.approx(free_at(str(tmp_path)), rel=0.05)
