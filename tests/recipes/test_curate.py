import io
import json
import warnings

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

import attar
from attar import CurateConfig, cli
from attar.curation.pool import Pool
from attar.data.sources import named_places, open_source
from attar.errors import ConfigError, DataError, ModelReferenceError, RunDirectoryError, WeightsError
from small_pools import make_pool


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Queries in train and test with two classes, and a pool of 150 images in two folders."""
    root = tmp_path_factory.mktemp("curate")
    rng = np.random.default_rng(0)

    def save(path, pixels, **settings):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, **settings)

    def photo(kind):
        """Smooth noise about a pattern of its class: images of a class are alike, and none is another's copy."""
        small = rng.integers(0, 256, (4, 4, 3)).astype(np.uint8)
        large = np.asarray(Image.fromarray(small).resize((64, 64), Image.Resampling.BICUBIC)).astype(float)
        ramp = np.linspace(-60, 60, 64)
        large += ramp[None, :, None] if kind else ramp[:, None, None]
        return large.clip(0, 255).astype(np.uint8)

    for kind, name in enumerate(("across", "down")):
        for number in range(3):
            save(root / f"task/train/{name}/{number}.png", photo(kind))
            save(root / f"task/test/{name}/{number}.png", photo(kind))
        for number in range(50):
            save(root / f"pool/many/{name}-{number:02}.png", photo(kind))
        for number in range(25):
            save(root / f"pool/few/{name}-{number:02}.png", photo(kind))
    make_pool(root / "embedded", [str(root / "pool/many"), str(root / "pool/few")], shard=40)
    return root


def config(places, out, **changes):
    settings = {
        "pool": str(places / "embedded"),
        "queries": str(places / "task"),
        "budget": 24,
        "out": str(out),
        "workers": 0,
    }
    return CurateConfig.build(
        settings | {"leak_threshold": 0.9, "duplicate_threshold": 0.99, "device": "cpu"} | changes
    )


def rows_of(out):
    return pq.read_table(out / "images.parquet").to_pylist()


def test_each_query_fetches_its_share_and_the_set_opens_without_labels(places, tmp_path) -> None:
    report = attar.curate(config(places, tmp_path / "set"))
    rows = rows_of(report.out)
    fetched = [row for row in rows if row["part"] == "pool"]
    assert report.images == len(rows) == 24  # 6 queries and 3 for each
    shares = {row["query"]: [other["query"] for other in fetched].count(row["query"]) for row in fetched}
    assert list(shares.values()) == [3] * 6
    assert len({row["id"] for row in fetched}) == 18
    source = open_source(str(report.out))
    (place,) = named_places([str(report.out)], source)  # one place, though it has parts of its own
    assert place.images == len(source)
    assert len(source) == 24
    assert source.labels() is None  # the queries' folders name classes; the set does not
    assert [source.uri(row) for row in range(24)] == [row["uri"] for row in rows]
    assert {tuple(source.read(row)[:4]) for row in range(24)} == {tuple(b"\x89PNG")}
    assert report.manifest["shortfall"] == 0
    assert sum(entry["fetched"] for entry in report.manifest["sources"]) == 18


def test_the_same_command_writes_the_same_bytes_and_another_place_of_the_rows_the_same_images(places, tmp_path) -> None:
    one, other = (attar.curate(config(places, tmp_path / name)).out for name in ("one", "other"))
    for name in ("images.parquet", "manifest.json", "report.html"):
        assert (one / name).read_bytes() == (other / name).read_bytes()
    pool = [str(places / "pool/few"), str(places / "pool/many")]  # the other way round
    make_pool(tmp_path / "embedded", pool, shard=13)
    turned = attar.curate(config(places, tmp_path / "turned", pool=str(tmp_path / "embedded"))).out
    named = [[row[key] for key in ("id", "query", "similarity", "rank", "round")] for row in rows_of(one)]
    assert named == [[row[key] for key in ("id", "query", "similarity", "rank", "round")] for row in rows_of(turned)]


def test_a_planted_test_image_its_crops_flips_and_encodings_are_caught(places, tmp_path) -> None:
    for name in ("across", "down"):
        for number in range(3):
            image = Image.open(places / f"task/test/{name}/{number}.png")
            plants = {
                "itself": image,
                "flip": image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
                "crop": image.crop((0, 0, 52, 52)),
                "small": image.resize((40, 40)),
            }
            for what, plant in plants.items():
                path = tmp_path / f"planted/{name}-{number}-{what}.png"
                path.parent.mkdir(exist_ok=True)
                plant.save(path)
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=30)
            (tmp_path / f"planted/{name}-{number}-jpeg.jpg").write_bytes(buffer.getvalue())
    make_pool(tmp_path / "embedded", [str(tmp_path / "planted"), str(places / "pool/many")])
    settings = {"pool": str(tmp_path / "embedded"), "budget": 240}  # so much that every image is looked at
    guarded = attar.curate(config(places, tmp_path / "guarded", **settings))
    entered = [row["id"] for row in rows_of(guarded.out) if row["id"].startswith("planted")]
    assert entered == []
    assert {entry["id"] for entry in guarded.manifest["leaked"]} >= {
        f"planted/{name}-{number}-{what}"
        for name in ("across", "down")
        for number in range(3)
        for what in ("itself.png", "flip.png", "crop.png", "jpeg.jpg")
    }
    bare = attar.curate(config(places, tmp_path / "bare", **settings, leak_threshold=None))
    assert any(row["id"].startswith("planted") for row in rows_of(bare.out))  # else the guard had nothing to do


def textured(number):
    rng = np.random.default_rng(number)
    noise = [Image.fromarray(rng.integers(0, 256, (n, n, 3)).astype(np.uint8)).resize((64, 64)) for n in (5, 20)]
    return Image.blend(*noise, 0.5)


def test_parts_that_vectors_let_in_are_found_by_pixels_and_counted_apart(places, tmp_path, capsys) -> None:
    for folder in ("judging", "pool"):
        (tmp_path / folder).mkdir()
    for number in range(5):
        whole = textured(number)
        whole.save(tmp_path / f"judging/{number}.png")
        part = whole.crop((5 * number, 3, 5 * number + 36, 41)).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        part.resize((48, 48)).save(tmp_path / f"pool/part-{number}.jpg", quality=30)
        textured(100 + number).save(tmp_path / f"pool/other-{number}.png")
    settings = {"exclude": str(tmp_path / "judging"), "budget": 66, "leak_threshold": 0.98, "suspect_threshold": 0.01}
    settings |= {"pool": str(tmp_path / "embedded"), "duplicate_threshold": None}
    settings["queries"] = str(places / "task/train")
    make_pool(tmp_path / "embedded", [str(tmp_path / "pool")])

    def entered(report):
        return {row["id"].split("/")[-1][:-4] for row in rows_of(report.out) if row["part"] == "pool"}

    every = {f"part-{number}" for number in range(5)}
    bare = attar.curate(config(places, tmp_path / "bare", **settings | {"suspect_threshold": None}))
    assert entered(bare) >= every
    assert bare.manifest["guard"]["suspects"] == bare.manifest["guard"]["pairs"] == 0
    assert "suspects" not in capsys.readouterr().out
    guarded = attar.curate(config(places, tmp_path / "guarded", **settings))
    assert entered(guarded) == entered(bare) - every
    guard = guarded.manifest["guard"]
    assert (guard["by pixels"], guard["by unreadable"], guarded.manifest["removed"]["leaks"]) == (5, 0, 5)
    for leak in guarded.manifest["leaked"]:
        assert leak["like"] == str(tmp_path / f"judging/{leak['id'].split('part-')[1][0]}.png")
    assert "5 by pixels among" in capsys.readouterr().out
    assert ", by pixels</figcaption>" in (guarded.out / "report.html").read_text()

    damaged = tmp_path / "pool/other-3.png"
    damaged.write_bytes(b"\0" * damaged.stat().st_size)  # since the pool was embedded
    safe = attar.curate(config(places, tmp_path / "safe", **settings))
    assert entered(safe) == entered(guarded) - {"other-3"}
    assert safe.manifest["guard"] == guard | {"by unreadable": 1}
    assert "1 suspects cannot be read any more" in capsys.readouterr().out
    assert "cannot be read any more: left out to be safe" in (safe.out / "report.html").read_text()


def test_what_pixels_find_does_not_depend_on_the_order_of_the_pool(places, tmp_path) -> None:
    for folder in ("judging", "some", "others"):
        (tmp_path / folder).mkdir()
    for number in range(4):
        textured(number).save(tmp_path / f"judging/{number}.png")
        textured(number).crop((9, 9, 55, 51)).save(tmp_path / f"{'some' if number % 2 else 'others'}/{number}.png")
        textured(number + 9).save(tmp_path / f"{'others' if number % 2 else 'some'}/{number}.png")
    settings = {"queries": str(places / "task/train"), "exclude": str(tmp_path / "judging"), "budget": 66}
    found = []
    for name, folders in (("one", ("some", "others")), ("turned", ("others", "some"))):
        make_pool(tmp_path / name, [str(tmp_path / folder) for folder in folders], shard=3)
        pool = {"pool": str(tmp_path / name), "leak_threshold": 0.999, "suspect_threshold": 0.01}
        report = attar.curate(config(places, tmp_path / f"set-{name}", **settings | pool))
        found.append((report.manifest["leaked"], [row["id"] for row in rows_of(report.out)]))
    assert found[0] == found[1]
    assert [leak["found_by"] for leak in found[0][0]] == ["pixels"] * 4


def test_guarded_images_that_cannot_be_read_are_told(places, tmp_path, capsys) -> None:
    (tmp_path / "judging").mkdir()
    textured(0).save(tmp_path / "judging/0.png")
    (tmp_path / "judging/1.png").write_bytes(b"no image")
    report = attar.curate(config(places, tmp_path / "set", exclude=str(tmp_path / "judging")))
    assert [place["unreadable"] for place in report.manifest["guarded"]] == [0, 1]
    assert "1 guarded images cannot be read" in capsys.readouterr().out
    assert "of which 1 cannot be read" in (report.out / "report.html").read_text()


def test_duplicates_and_listed_images_stay_out(places, tmp_path) -> None:
    first = rows_of(attar.curate(config(places, tmp_path / "first")).out)
    (tmp_path / "list.txt").write_text("\n".join([first[0]["id"], first[1]["uri"]]))
    report = attar.curate(config(places, tmp_path / "second", exclude=(str(tmp_path / "list.txt"),)))
    assert not {row["id"] for row in first[:2]} & {row["id"] for row in rows_of(report.out)}
    assert report.manifest["removed"]["excluded"] == 2
    alike = attar.curate(config(places, tmp_path / "third", duplicate_threshold=0.3))
    assert alike.manifest["removed"]["duplicates"] > 0
    vectors = Pool.open(places / "embedded").vectors([r["row"] for r in rows_of(alike.out) if r["part"] == "pool"])
    cosines = vectors.double() @ vectors.double().T
    assert cosines.triu(1).max() < 0.3


def test_a_pool_that_is_too_small_says_what_is_missing(places, tmp_path) -> None:
    report = attar.curate(
        config(places, tmp_path / "set", budget=6 * 40, leak_threshold=None, duplicate_threshold=None)
    )
    assert (report.manifest["wanted"], report.manifest["fetched"], report.manifest["shortfall"]) == (234, 150, 84)
    assert len({row["id"] for row in rows_of(report.out)}) == report.images == 156


@pytest.mark.parametrize("strategy", ["class_balanced", "best_match", "random"])
def test_other_strategies_fill_the_budget(places, tmp_path, strategy) -> None:
    report = attar.curate(config(places, tmp_path / strategy, strategy=strategy, balance_sources=True))
    rows = rows_of(report.out)
    assert report.images == len({row["id"] for row in rows}) == 24
    if strategy == "class_balanced":
        assert report.manifest["fill"]["by_class"] == {"across": 9, "down": 9}
    if strategy == "random":
        assert [entry["fetched"] for entry in report.manifest["sources"]] == [9, 9]
        assert {row["query"] for row in rows} == {None}  # nobody asked for them
    if strategy == "best_match":
        similar = [row["similarity"] for row in rows if row["part"] == "pool"]
        assert similar == sorted(similar, reverse=True)


def test_a_class_takes_its_whole_share_also_where_its_queries_cannot_divide_it(places, tmp_path) -> None:
    report = attar.curate(config(places, tmp_path / "set", strategy="class_balanced", budget=50))
    found = report.manifest
    assert found["fill"]["by_class"] == {"across": 22, "down": 22}  # 25 less 3 queries, 22 = 7 + 7 + 8
    assert (found["wanted"], found["fetched"], found["shortfall"]) == (44, 44, 0)
    assert (found["fill"]["mean"], found["fill"]["short"]) == (1.0, 0)
    assert "0</b><span>of 2 classes got less" in (report.out / "report.html").read_text()


def test_lists_that_memory_cut_are_no_end_of_the_pool(places, tmp_path, monkeypatch, capsys) -> None:
    settings = {"budget": 120, "leak_threshold": None, "duplicate_threshold": None, "include_queries": False}
    attar.curate(config(places, tmp_path / "whole", **settings | {"budget": 180}))  # of 150
    assert "the pool has no more that may enter" in capsys.readouterr().out
    monkeypatch.setattr("attar.curation.choose._ENTRIES", 6 * 25)
    report = attar.curate(config(places, tmp_path / "cut", **settings))
    said = capsys.readouterr().out
    assert report.manifest["shortfall"] > 0
    assert "lists of candidates end at 25 for each of 6 queries, and the pool may have more" in said
    assert "no more that may enter" not in said
    assert "the pool may have more" in (report.out / "report.html").read_text()


def test_a_smaller_budget_takes_the_beginning_of_what_a_larger_one_takes(places, tmp_path) -> None:
    small, large = (
        [
            row["id"]
            for row in rows_of(attar.curate(config(places, tmp_path / str(b), budget=b, include_queries=False)).out)
        ]
        for b in (18, 48)
    )
    assert large[:18] == small


def test_a_set_whose_images_have_changed_is_not_opened(places, tmp_path) -> None:
    out = attar.curate(config(places, tmp_path / "set")).out
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["places"][0]["fingerprint"] = "0" * 64
    (out / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="other images than those that the transfer set"):
        open_source(str(out))


def test_what_cannot_be_done_is_said(places, tmp_path) -> None:
    with pytest.raises(ConfigError, match="budget 6 is used up by the 6 labelled images"):
        attar.curate(config(places, tmp_path / "set", budget=6))
    with pytest.raises(ModelReferenceError, match=r"has no text tower\. Embed the pool anew"):
        attar.curate(config(places, tmp_path / "set", strategy="text"))
    with pytest.raises(ConfigError, match="needs --queries"):
        config(places, tmp_path, queries=None)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.tex").touch()
    with pytest.raises(RunDirectoryError, match="holds something that is no transfer set"):
        attar.curate(config(places, tmp_path / "full"))


def test_settings_that_would_do_nothing_are_refused(places, tmp_path) -> None:
    for strategy in ("query_balanced", "random"):
        with pytest.raises(ConfigError, match=f"class_names across ask nobody in strategy {strategy}"):
            config(places, tmp_path, class_names="across", strategy=strategy)


def test_a_wrong_place_to_exclude_is_told_before_anything_is_embedded(places, tmp_path, capsys) -> None:
    image = str(places / "task/test/down/0.png")
    with pytest.raises(DataError, match="is a file"):
        attar.curate(config(places, tmp_path / "set", exclude=image))
    assert "model" not in capsys.readouterr().out  # not even loaded


def test_a_guard_that_is_off_and_one_without_images_are_told_apart(places, tmp_path, capsys) -> None:
    off = attar.curate(config(places, tmp_path / "off", leak_threshold=None))
    said = capsys.readouterr().out
    assert "--leak-threshold is none: nothing was guarded" in said
    assert "no val or test images are known" not in said
    assert "leak_threshold is none" in (off.out / "report.html").read_text()
    attar.curate(config(places, tmp_path / "bare", queries=str(places / "task/train")))
    assert "no val or test images are known" in capsys.readouterr().out


def test_the_end_says_what_is_left_over_and_what_it_replaced(places, tmp_path, capsys) -> None:
    attar.curate(config(places, tmp_path / "set", budget=26))  # 6 queries, 3 for each, and 2
    said = capsys.readouterr().out
    assert "2 of --budget 26 left over" in said
    assert "in place of" not in said
    attar.curate(config(places, tmp_path / "set", budget=24))
    said = capsys.readouterr().out
    assert "left over" not in said
    assert "in place of an earlier set: budget was 26, now 24" in said
    attar.curate(config(places, tmp_path / "set", budget=24))
    assert "in place of an earlier set: the same" in capsys.readouterr().out


def test_a_list_that_names_nothing_of_the_pool_is_told(places, tmp_path, capsys) -> None:
    (tmp_path / "list.txt").write_text("photo.png\n\nother.png\n")
    attar.curate(config(places, tmp_path / "set", exclude=str(tmp_path / "list.txt")))
    assert "none of 2 listed names is in the pool, which has names such as many/" in capsys.readouterr().out
    first = rows_of(tmp_path / "set")[0]
    (tmp_path / "list.txt").write_text(f"{first['id']}  \n")  # spaces that nobody sees
    report = attar.curate(config(places, tmp_path / "set", exclude=str(tmp_path / "list.txt")))
    assert report.manifest["removed"]["excluded"] == 1


def test_the_page_shows_the_most_and_the_least_alike_of_many_copies(places, tmp_path) -> None:
    report = attar.curate(config(places, tmp_path / "set", leak_threshold=0.5, budget=60))
    leaked = report.manifest["leaked"]
    assert len(leaked) > 8
    page = (report.out / "report.html").read_text()
    assert f"{leaked[-1]['similarity']:.2f} like" in page
    assert "the 4 copies most like a guarded image" in page
    assert "/".join(leaked[0]["like"].split("/")[-2:]) in page


def test_the_verb_does_the_same(places, tmp_path, capsys) -> None:
    words = ["curate", "--pool", str(places / "embedded"), "--queries", str(places / "task"), "--budget", "24"]
    words += ["--strategy", "query_balanced", "--exclude", str(places / "task/test"), "--out", str(tmp_path / "set")]
    assert cli.main([*words, "--workers", "0", "--device", "cpu"]) == 0
    assert "set      " in capsys.readouterr().out
    assert "<h2>Who asked" in (tmp_path / "set/report.html").read_text()


@pytest.fixture(scope="module")
def clip_pool(places, tmp_path_factory):
    """What attar embed makes of the pool with a small CLIP."""
    pytest.importorskip("open_clip", reason="needs the extra vl")
    import small_clip

    small_clip.register()
    out = tmp_path_factory.mktemp("clip") / "pool"
    data = (str(places / "pool/many"), str(places / "pool/few"))
    attar.embed(
        attar.EmbedConfig(
            model=small_clip.REFERENCE, weights="random", data=data, out=str(out), workers=0, device="cpu"
        )
    )
    return str(out)


OFF = {"leak_threshold": None, "duplicate_threshold": None}  # random weights: all images are alike


def test_class_names_fetch_through_the_text_tower(places, clip_pool, tmp_path) -> None:
    text = config(places, tmp_path / "text", pool=clip_pool, strategy="text", include_queries=False, budget=20, **OFF)
    rows = rows_of(attar.curate(text).out)
    assert [row["query"] for row in rows[:2]] == ["across", "down"]
    assert len({row["id"] for row in rows}) == 20
    other = text.replace(queries=None, class_names=("across", "down"), out=str(tmp_path / "names"))
    assert [row["id"] for row in rows_of(attar.curate(other).out)] == [row["id"] for row in rows]
    worded = other.replace(templates="an unlike sentence about {}", out=str(tmp_path / "worded"))
    assert [row["similarity"] for row in rows_of(attar.curate(worded).out)] != [row["similarity"] for row in rows]


def test_images_and_names_share_the_budget_or_ask_together(places, clip_pool, tmp_path) -> None:
    both = config(places, tmp_path / "share", pool=clip_pool, strategy="mixed", budget=54, **OFF)
    fetched = [row for row in rows_of(attar.curate(both).out) if row["part"] == "pool"]
    by_name = [row for row in fetched if row["query"] in ("across", "down")]
    assert (len(by_name), len(fetched)) == (24, 48)
    summed = attar.curate(both.replace(mix="sum", out=str(tmp_path / "sum")))
    assert summed.manifest["queries"] == summed.manifest["queries"] | {"count": 6, "texts": 0}
    plain = attar.curate(both.replace(strategy="query_balanced", out=str(tmp_path / "plain")))
    assert summed.manifest["queries"]["vectors"] != plain.manifest["queries"]["vectors"]
    assert summed.manifest["fetched"] == plain.manifest["fetched"] == 48


SMALL = "depth=1&embed_dim=32&num_heads=2"


def embedded(places, out, **settings):
    """What attar embed makes of a few images of the pool with a small transformer."""
    settings = {"img_size": 28, "workers": 0, "device": "cpu", "precision": "fp32"} | settings
    return attar.embed(attar.EmbedConfig(data=str(places / "pool/few"), out=str(out), **settings)).folder


def test_random_weights_are_drawn_as_the_pool_says(places, tmp_path) -> None:
    reference = f"vit_tiny_patch16_224?patch_size=14&{SMALL}"
    folder = embedded(places, tmp_path / "embedded", model=reference, weights="random", seed=3)
    assert attar.curate(config(places, tmp_path / "set", pool=str(folder), **OFF)).images == 24
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["model"]["seed"]  # as pools were written before: they open, and their seed is taken for 0
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert Pool.open(folder).manifest.model.seed == 0
    with pytest.raises(WeightsError, match="another vector"):
        attar.curate(config(places, tmp_path / "set", pool=str(folder), **OFF))


def test_position_tables_are_resampled_as_the_pool_says(places, tmp_path) -> None:
    reference = f"vit_small_patch14_dinov2?{SMALL}&init_values=1.0"
    shape = {"depth": 1, "embed_dim": 32, "num_heads": 2, "init_values": 1.0}
    state = timm.create_model("vit_small_patch14_dinov2", num_classes=0, **shape).state_dict()
    noise = torch.randn(state["pos_embed"].shape, generator=torch.Generator().manual_seed(0))
    noise[:, 0] = 0  # what is read knows nothing but the patches, and a table of noise depends on how it is resampled
    state["pos_embed"] = noise
    save_file(state, tmp_path / "weights.safetensors")
    file = str(tmp_path / "weights.safetensors")
    folder = embedded(places, tmp_path / "embedded", model=reference, weights=file, pos_embed="timm")
    settings = config(places, tmp_path / "set", pool=str(folder), weights=file, **OFF)
    assert attar.curate(settings).images == 24
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["model"]["pos_embed"] = "official"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(WeightsError, match="another vector"):
        attar.curate(settings)


def test_a_torchscript_archive_is_read_for_who_trusts_it_whatever_the_pool_says(places, tmp_path) -> None:
    reference = f"vit_tiny_patch16_224?patch_size=14&{SMALL}"
    model = timm.create_model(
        "vit_tiny_patch16_224", patch_size=14, depth=1, embed_dim=32, num_heads=2, img_size=28, num_classes=0
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls TorchScript deprecated
        torch.jit.save(torch.jit.trace(model.eval(), torch.zeros(1, 3, 28, 28)), str(tmp_path / "model.pt"))
    file = str(tmp_path / "model.pt")
    folder = embedded(places, tmp_path / "embedded", model=reference, weights=file, trust_torchscript=True)
    settings = config(places, tmp_path / "set", pool=str(folder), weights=file, **OFF)
    assert Pool.open(folder).manifest.model.trust_torchscript
    with pytest.raises(WeightsError, match="trust-torchscript"):
        attar.curate(settings)
    assert attar.curate(settings.replace(trust_torchscript=True)).images == 24


def test_a_model_that_is_not_the_pools_is_refused(places, tmp_path) -> None:
    folder = make_pool(tmp_path / "embedded", [str(places / "pool/many")])
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["model"]["mean"] = [3.0, -2.0, 0.0]  # another preparation gives other vectors
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(WeightsError, match=r"gives across-00.png another vector"):
        attar.curate(config(places, tmp_path / "set", pool=str(folder)))
    manifest["model"]["sha256"] = "0" * 64
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(WeightsError, match="Give --weights that file"):
        attar.curate(config(places, tmp_path / "set", pool=str(folder)))
