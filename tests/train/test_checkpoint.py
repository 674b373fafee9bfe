from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch

from attar.config import OptimConfig, ProteusConfig
from attar.errors import CheckpointError
from attar.methods.proteus import ProteusLearner
from attar.models import load_backbone
from attar.train import TrainState, build_state, load_checkpoint, save_checkpoint
from attar.train.checkpoint import _damage, saved_notes
from disk import watched

IDENTITY = {"run_id": "a", "data_fingerprint": "b"}


def new_state(seed: int = 0, dim: int = 32) -> TrainState:
    reference = f"vit_tiny_patch16_224?patch_size=8&embed_dim={dim}&depth=1&num_heads=2"
    student = load_backbone(reference, weights="random", img_size=16, seed=seed)
    return build_state(ProteusLearner(student, 16, ProteusConfig()), student, OptimConfig())


def saved(folder: Path, *steps: int, keep: int = 9) -> TrainState:
    state = new_state()
    for step in steps:
        state.step = step
        state.notes = {"best": {"step": step}}
        with torch.no_grad():
            state.learner.mask_token.fill_(float(step))  # type: ignore[operator, union-attr]
        save_checkpoint(folder, state, IDENTITY, keep=keep)
    return state


def loaded_step(folder: Path) -> int:
    state = new_state(seed=1)
    load_checkpoint(folder, state, IDENTITY)
    if state.step:
        assert float(state.learner.mask_token.detach().mean()) == state.step  # type: ignore[operator, union-attr]
        assert state.notes == {"best": {"step": state.step}}
    return state.step


def test_newest_by_number_wins(tmp_path: Path) -> None:
    # catches order by name of unpadded numbers and by file time
    saved(tmp_path, 9, 20, 100)
    later = (tmp_path / "step-00000100").stat().st_mtime + 100
    os.utime(tmp_path / "step-00000009", (later, later))
    assert loaded_step(tmp_path) == 100


def test_older_ones_go_only_beyond_keep(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2, 3, 4, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000004"]


def test_saving_behind_a_damaged_newer_one_keeps_what_was_just_saved(tmp_path: Path) -> None:
    saved(tmp_path, 20, 30)
    (tmp_path / "step-00000030" / "state.json").write_text("{}")
    state = saved(tmp_path)
    state.step, state.notes = 25, {"best": {"step": 25}}
    with torch.no_grad():
        state.learner.mask_token.fill_(25.0)  # type: ignore[operator, union-attr]
    save_checkpoint(tmp_path, state, IDENTITY, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000025"]
    assert loaded_step(tmp_path) == 25


def test_no_checkpoint_is_no_error(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path, new_state(), IDENTITY) is None


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damage_anywhere_is_noticed_and_the_older_one_used(tmp_path: Path, name: str, damage: str) -> None:
    saved(tmp_path, 1, 2)
    path = tmp_path / "step-00000002" / name
    content = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 0x10  # one bit
        path.write_bytes(bytes(content))
    said: list[str] = []
    state = new_state()
    assert load_checkpoint(tmp_path, state, IDENTITY, say=said.append) == tmp_path / "step-00000001"
    assert state.step == 1
    assert len(said) == 1
    assert "step-00000002 is damaged" in said[0]
    assert name in said[0] or (name, damage) == ("manifest.json", "flip")  # whose hashes may blame the files


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"notes"'])
def test_notes_of_damaged_checkpoints_are_passed_over(tmp_path: Path, content: bytes) -> None:
    saved(tmp_path, 1, 2)
    (tmp_path / "step-00000002/state.json").write_bytes(content)
    assert len(saved_notes(tmp_path)) == 1


def test_half_written_folder_is_not_seen(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    shutil.copytree(tmp_path / "step-00000001", tmp_path / ".step-00000002.abc")
    assert loaded_step(tmp_path) == 1


def test_checkpoint_of_other_data_or_another_run_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    with pytest.raises(CheckpointError, match="data fingerprint"):
        load_checkpoint(tmp_path, new_state(), IDENTITY | {"data_fingerprint": "other"})
    with pytest.raises(CheckpointError, match="run id"):
        load_checkpoint(tmp_path, new_state(), IDENTITY | {"run_id": "other"})


PLACES = {"a": "12 images (fingerprint 1)", "b": "5 images (fingerprint 2)"}


@pytest.mark.parametrize(
    ("places", "says"),
    [
        (
            {**PLACES, "a": "13 images (fingerprint 3)"},
            "a had 12 images (fingerprint 1), now 13 images (fingerprint 3)",
        ),
        ({"a": PLACES["a"]}, "b had 5 images (fingerprint 2), now no part"),
        ({**PLACES, "c": "1 images (fingerprint 4)"}, "c had no part, now 1 images (fingerprint 4)"),
        (dict(reversed(PLACES.items())), "the same places in another order"),
    ],
)
def test_a_refusal_tells_which_place_has_changed_and_how(tmp_path: Path, places: dict[str, str], says: str) -> None:
    save_checkpoint(tmp_path, new_state(), IDENTITY | {"places": PLACES}, keep=1)
    now = IDENTITY | {"data_fingerprint": "other", "places": places}
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path, new_state(), now)
    assert f"was made with other data: {says}. Restore the data" in str(caught.value)


def test_other_data_and_another_teacher_go_on_when_asked_and_are_written_down(tmp_path: Path) -> None:
    before = IDENTITY | {"places": PLACES, "teacher": "t"}
    now = before | {"data_fingerprint": "other", "places": {"a": PLACES["a"]}, "teacher": "u"}
    state, said = new_state(), []
    state.step = 7
    save_checkpoint(tmp_path, state, before, keep=2)
    with pytest.raises(CheckpointError, match="another run id"):
        load_checkpoint(tmp_path, new_state(), now | {"run_id": "other"}, anyway=True)
    state = new_state()
    load_checkpoint(tmp_path, state, now, anyway=True, say=said.append)
    assert [line.partition("made with ")[2] for line in said] == [
        "other data: b had 5 images (fingerprint 2), now no part",
        "another teacher (t, now u)",
    ]
    assert [note.partition(" with ")[0] for note in state.notes["changes"]] == ["up to step 7"] * 2
    state.step = 8
    save_checkpoint(tmp_path, state, now, keep=2)
    again = new_state()
    assert load_checkpoint(tmp_path, again, now) is not None  # asked once, it belongs to the data and teacher of now
    assert again.notes == state.notes
    with pytest.raises(CheckpointError, match="other data"):
        load_checkpoint(tmp_path, new_state(), before)


def test_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    with pytest.raises(CheckpointError, match="does not fit"):
        load_checkpoint(tmp_path, new_state(dim=64), IDENTITY)


def test_saving_again_at_the_same_step_keeps_the_complete_one(tmp_path: Path) -> None:
    state = saved(tmp_path, 5)
    before = (tmp_path / "step-00000005" / "manifest.json").stat().st_mtime_ns
    save_checkpoint(tmp_path, state, IDENTITY, keep=2)
    assert (tmp_path / "step-00000005" / "manifest.json").stat().st_mtime_ns == before


# --- at every moment ------------------------------------------------------------------------------------------------


def named_checkpoints(folder: Path) -> dict[str, bool]:
    """All that a reader would take for a checkpoint, and whether it is whole."""
    return {path.name: not _damage(path) for path in folder.glob("step-*")}


def test_what_has_the_name_of_a_checkpoint_is_whole_at_every_moment(tmp_path: Path) -> None:
    # catches a save under the final name, a manifest before its files, and a removal that begins with the files
    state = saved(tmp_path, 1, 2)
    state.step = 3
    seen = tmp_path / "seen.json"
    pid = os.fork()
    if pid == 0:
        moments: list[dict[str, bool]] = []
        is_looking = False

        def look(event: str, _: object) -> None:
            nonlocal is_looking
            if not is_looking and event.startswith(("open", "os.", "shutil.")):
                is_looking = True  # looking is an event, too
                moments.append(named_checkpoints(tmp_path))
                is_looking = False

        sys.addaudithook(look)
        save_checkpoint(tmp_path, state, IDENTITY, keep=1)
        is_looking = True
        seen.write_text(json.dumps(moments))
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    moments = json.loads(seen.read_text())
    assert len(moments) > 20
    assert moments[0] == {"step-00000001": True, "step-00000002": True}
    assert moments[-1] == {"step-00000003": True}
    assert all(moment and all(moment.values()) for moment in moments)


def test_a_checkpoint_is_on_the_disk_before_it_gets_its_name(tmp_path: Path) -> None:
    # a kill leaves what the system holds in memory, so none of the campaigns tests this: the order of requests does
    with watched() as disk:
        saved(tmp_path, 1)
    assert disk.problems(tmp_path / "step-00000001") == []
