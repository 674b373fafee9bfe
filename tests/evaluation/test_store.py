from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from attar.data.labelled import Labelled, open_parts
from attar.data.sources import PlaygroundSource
from attar.data.views import EvaluationView
from attar.errors import DataError, DecodeError
from attar.evaluation import store as store_module
from attar.evaluation.outputs import fingerprint, last_blocks, read_outputs
from attar.evaluation.store import FeatureStore, stored
from small_models import TINY, backbone
from small_runs import picture

VIEW = EvaluationView(32)
COUNT = 20


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    """Blocks of 8 images in batches of 4, so that twenty images are three blocks."""
    monkeypatch.setattr(store_module, "_BLOCK", 8)
    monkeypatch.setattr(store_module, "_BATCH", 4)


class Counted(PlaygroundSource):
    """Scenes that count how often they are read, and fail where they are told to."""

    def __init__(self, unreadable=(), fails_at=None):
        super().__init__(0, COUNT)
        self.reads, self.unreadable, self.fails_at = 0, set(unreadable), fails_at

    def read(self, row):
        self.reads += 1
        if row == self.fails_at:
            raise KeyboardInterrupt
        if row in self.unreadable:
            raise DecodeError(f"{self.name(row)}: no image")
        return super().read(row)


def images(source: Counted) -> Labelled:
    labels, names = source.labels()
    return looked_at(Labelled(source, np.arange(COUNT), labels, tuple(names)))


def looked_at(wanted: Labelled) -> Labelled:
    """The images with their fingerprint known, which takes reads that the tests do not count."""
    source, before = wanted.source, (wanted.source.reads, wanted.source.fails_at)
    source.fails_at = None
    assert wanted.fingerprint
    source.reads, source.fails_at = before
    return wanted


def test_the_room_that_is_missing_is_told_to_the_byte(tmp_path: Path) -> None:
    store, wanted = FeatureStore(backbone(), tmp_path), images(Counted())
    missing = store.missing_bytes(wanted, VIEW, ["cls", "mean_patch"])
    assert not list(tmp_path.iterdir())  # to ask leaves nothing behind
    store.features(wanted, VIEW, ["cls", "mean_patch"])
    assert sum(file.stat().st_size for file in tmp_path.rglob("values.f32")) == missing > 0
    assert store.missing_bytes(wanted, VIEW, ["cls", "mean_patch"]) == 0
    assert store.missing_bytes(wanted, VIEW, ["cls"], statistics=((0.0,) * 3, (1.0,) * 3)) > 0


def test_features_are_those_of_the_backbone_in_order(tmp_path: Path) -> None:
    model, source = backbone(), Counted()
    found = FeatureStore(model, tmp_path).features(images(source), VIEW, ("cls", "last4", "mean_patch", "embed"))
    pixels = torch.stack([VIEW(_encoded(source, row)) for row in range(COUNT)])
    tokens = model.tokens(pixels)
    torch.testing.assert_close(found["cls"], tokens.cls)
    torch.testing.assert_close(found["mean_patch"], tokens.patch.mean(1))
    torch.testing.assert_close(found["embed"], model.embed(pixels))
    torch.testing.assert_close(found["last4"][:, -1], tokens.cls)
    assert found.labels.tolist() == images(source).labels.tolist()
    assert source.reads == COUNT * 2  # one pass for four outputs, and our own


def _encoded(source, row):
    from attar.data.decode import open_image

    return open_image(source.read(row), name="scene")


def test_a_second_call_reads_no_image_and_a_new_output_takes_one_more_pass(tmp_path: Path) -> None:
    model, source = backbone(), Counted()
    first = FeatureStore(model, tmp_path).features(images(source), VIEW, ("cls",))
    again = FeatureStore(model, tmp_path).features(images(source), VIEW, ("cls",))
    assert source.reads == COUNT
    assert torch.equal(first["cls"], again["cls"])
    both = FeatureStore(model, tmp_path).features(images(source), VIEW, ("cls", "mean_patch"))
    assert source.reads == 2 * COUNT
    assert torch.equal(both["cls"], first["cls"])


@pytest.mark.parametrize("change", ["weights", "view", "rows", "statistics"])
def test_what_shapes_a_feature_is_in_its_key(tmp_path: Path, change: str) -> None:
    model, source, view = backbone(), Counted(), VIEW
    FeatureStore(model, tmp_path).features(images(source), view, ("cls",))
    wanted = images(source)
    if change == "weights":
        with torch.no_grad():
            next(model.model.parameters()).flatten()[0] += 1e-3
    elif change == "view":
        view = EvaluationView(32, 0.875)
    elif change == "rows":
        wanted = looked_at(wanted.take(np.arange(COUNT)[::-1].copy()))
    statistics = ((0.5,) * 3, (0.25,) * 3) if change == "statistics" else None
    FeatureStore(model, tmp_path).features(wanted, view, ("cls",), statistics=statistics)
    assert source.reads == 2 * COUNT
    assert len(stored(tmp_path)) == 2


def test_images_of_equal_names_are_told_apart(tmp_path: Path) -> None:
    # `val` and `test` often hold cat/000.png both: a key of names would hand the features of one to the other
    for part, seed in (("val", 0), ("test", 100)):
        for number in range(4):
            (tmp_path / part / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
            picture(seed + number).save(tmp_path / part / "ab"[number % 2] / f"{number}.png")
    model = backbone()
    val, test = open_parts([str(tmp_path / part) for part in ("val", "test")])
    found = [FeatureStore(model, tmp_path / "store").features(part, VIEW, ("cls",))["cls"] for part in (val, test)]
    assert val.source.fingerprint == test.source.fingerprint
    assert not torch.equal(*found)


def test_an_image_that_one_pass_could_not_read_is_in_no_output(tmp_path: Path) -> None:
    model = backbone()
    source = Counted({5})
    wanted = images(source)
    FeatureStore(model, tmp_path).features(wanted, VIEW, ("cls",))
    source.unreadable = {9}  # the one is there again, another is gone
    both = FeatureStore(model, tmp_path).features(wanted, VIEW, ("cls", "mean_patch"))
    whole = FeatureStore(model, tmp_path / "other").features(images(Counted()), VIEW, ("cls", "mean_patch"))
    assert both.positions.tolist() == [row for row in range(COUNT) if row not in (5, 9)]
    for output in ("cls", "mean_patch"):
        torch.testing.assert_close(both[output], whole[output][both.positions])
    assert both.labels.tolist() == whole.labels[both.positions].tolist()


def test_other_statistics_hold_for_one_call(tmp_path: Path) -> None:
    model, own, half = backbone(), backbone().preprocess, ((0.5,) * 3, (0.25,) * 3)
    found = FeatureStore(model, tmp_path).features(images(Counted()), VIEW, ("cls",), statistics=half)
    assert model.preprocess == own
    model.normalise_with(type(own)(*half))
    torch.testing.assert_close(
        found["cls"], FeatureStore(model, tmp_path).features(images(Counted()), VIEW, ("cls",))["cls"]
    )


def test_an_interrupted_pass_goes_on_from_its_last_whole_block(tmp_path: Path) -> None:
    model, source = backbone(), Counted(fails_at=17)
    with pytest.raises(KeyboardInterrupt):
        FeatureStore(model, tmp_path).features(images(source), VIEW, ("cls", "mean_patch"))
    source.reads, source.fails_at = 0, None
    found = FeatureStore(model, tmp_path).features(images(source), VIEW, ("cls", "mean_patch"))
    assert source.reads == COUNT - 16  # two blocks of eight were done
    whole = FeatureStore(model, tmp_path / "other").features(images(source), VIEW, ("cls",))
    assert torch.equal(found["cls"], whole["cls"])


@pytest.mark.parametrize("damage", ["flipped byte", "half a block", "lost line", "lost file"])
def test_damage_is_found_and_mended_from_its_block_on(tmp_path: Path, damage: str) -> None:
    model, source = backbone(), Counted()
    whole = FeatureStore(model, tmp_path).features(images(source), VIEW, ("cls",))["cls"].clone()
    values, lines = next(tmp_path.rglob("values.f32")), next(tmp_path.rglob("blocks.jsonl"))
    if damage == "flipped byte":
        content = bytearray(values.read_bytes())
        content[4 * 32 * 10 + 5] ^= 1  # in the second block
        values.write_bytes(content)
    elif damage == "half a block":
        values.write_bytes(values.read_bytes()[: 4 * 32 * 12])
    elif damage == "lost line":
        lines.write_text("".join(line + "\n" for line in lines.read_text().splitlines()[:1]))
    else:
        values.unlink()
    source.reads = 0
    mended = FeatureStore(model, tmp_path).features(images(source), VIEW, ("cls",))
    assert source.reads == (COUNT if damage == "lost file" else COUNT - 8)
    assert torch.equal(mended["cls"], whole)
    assert FeatureStore(model, tmp_path).features(images(source), VIEW, ("cls",)) is not None
    assert source.reads <= COUNT


@pytest.mark.parametrize("unreadable", [{0}, {3, 9}, set(range(8, 16)), {19}])
def test_unreadable_images_are_left_out_and_labels_follow(tmp_path: Path, unreadable: set[int]) -> None:
    # the whole second block may be gone: a shape taken from it would be wrong
    model = backbone()
    found = FeatureStore(model, tmp_path).features(images(Counted(unreadable)), VIEW, ("cls",))
    kept = [row for row in range(COUNT) if row not in unreadable]
    whole = FeatureStore(model, tmp_path / "other").features(images(Counted()), VIEW, ("cls",))
    assert found.positions.tolist() == kept
    torch.testing.assert_close(found["cls"], whole["cls"][kept])
    assert found.labels.tolist() == whole.labels[kept].tolist()


def test_no_readable_image_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none of the 20 test images can be read"):
        FeatureStore(backbone(), tmp_path).features(images(Counted(range(COUNT))), VIEW, ("cls",), name="test images")


def test_features_can_be_written_to_without_touching_the_store(tmp_path: Path) -> None:
    model, source = backbone(), Counted()
    found = FeatureStore(model, tmp_path).features(images(source), VIEW, ("cls",))
    found["cls"].zero_()
    again = FeatureStore(model, tmp_path).features(images(source), VIEW, ("cls",))
    assert again["cls"].abs().sum() > 0
    assert source.reads == COUNT


def test_conv_nets_have_one_layer_of_their_own_width() -> None:
    model = backbone("resnet10t")
    pixels = torch.rand(2, 3, 32, 32)
    assert read_outputs(model, pixels, ("last4",))["last4"].shape == (2, 1, 512)


def test_the_last_blocks_are_the_last_and_in_order() -> None:
    model = backbone(TINY.replace("depth=2", "depth=5"))
    pixels = torch.rand(2, 3, 32, 32)
    blocks = last_blocks(model, pixels)
    wanted = model.intermediates(pixels, layers=[1, 2, 3, 4], norm=True)
    assert [torch.equal(a.cls, b.cls) for a, b in zip(blocks, wanted, strict=True)] == [True] * 4
    torch.testing.assert_close(blocks[-1].cls, model.tokens(pixels).cls)


def test_a_fingerprint_tells_activation_functions_apart() -> None:
    # equal weights, other answers: a hash of the weights alone would take one for the other
    plain, quick = (backbone(TINY + more) for more in ("", "&act_layer=quick_gelu"))
    quick.model.load_state_dict(plain.model.state_dict())
    assert fingerprint(plain) != fingerprint(quick)
    assert fingerprint(plain) == fingerprint(backbone())


def test_conv_nets_have_fingerprints() -> None:
    # their batch norms count batches in a tensor without dimensions
    assert fingerprint(backbone("resnet10t")) == fingerprint(backbone("resnet10t"))
    assert fingerprint(backbone("resnet10t")) != fingerprint(backbone("resnet10t", seed=1))
