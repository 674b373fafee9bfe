"""Check (c): one process and two ranks learn the same, under DDP and FSDP2 (design §2.3)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import ranks
import torch
from torch import nn

from attar.errors import ConfigError
from attar.models import load_backbone
from attar.train import parallel
from attar.train.parallel import (
    _REPEATED,
    _has_idle_parameters,
    repeated_parts,
    share_like,
    synchronise_statistics,
    whole,
    without_sync,
)
from small_runs import environment

ENGINES = ("ddp", "fsdp2")
SCRIPT = Path(__file__).with_name("ranks.py")


def two_ranks(folder: Path, engine: str, *scenes: str) -> None:
    """Play scenes on two ranks; what they leave lies in the folder."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    here = environment(OMP_NUM_THREADS="1")
    here["PYTHONPATH"] += os.pathsep + str(SCRIPT.parents[1])  # small models
    done = subprocess.run(
        [*command, str(SCRIPT), str(folder), engine, *scenes],
        env=here,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.fixture(scope="module", params=ENGINES)
def played(request, tmp_path_factory):
    """Folder of what two ranks did in all scenes but the checkpoints', in one launch an engine."""
    folder = tmp_path_factory.mktemp(request.param)
    scenes = (
        "views",
        "gradients",
        "dime",
        "muon",
        "agreement",
        "not finite",
        "stopped",
        "stopped while judging",
        "past forward",
    )
    two_ranks(folder, request.param, *scenes)
    return folder, request.param


def result(played, name):
    folder, engine = played
    return torch.load(folder / f"{name}.{engine}.pt", weights_only=True)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The same scenes on one process."""
    folder = tmp_path_factory.mktemp("alone")
    return {name: ranks.SCENES[name](folder, "ddp") for name in ("views", "gradients", "dime", "muon", "agreement")}


@pytest.mark.slow
def test_order_views_and_masks_are_the_same_bits(played, alone) -> None:
    # catches a stream that each rank shuffles for itself, masks that count positions within a rank
    here, there = alone["views"], result(played, "views")
    assert here["place"].tolist() == list(range(3 * ranks.BATCH))
    assert here["hidden"].any()
    for name in here:
        assert torch.equal(here[name], there[name]), name


@pytest.mark.slow
def test_gradients_are_the_same_to_nine_digits(played, alone) -> None:
    # catches a mean of means, a patch term divided by a rank's own count, a sum where the wrapper averages, a missing
    # synchronisation of micro-batches; "one masked" holds a rank without any masked image
    here, there = alone["gradients"], result(played, "gradients")
    names = {name for name in here if not name.startswith("paper/")}
    assert names <= set(there)
    for name in names:
        scale = here[name].abs().max()
        assert scale > 0, name
        assert (here[name] - there[name]).abs().max() <= 1e-9 * scale, name


@pytest.mark.slow
def test_scores_span_all_ranks_and_pieces(played, alone) -> None:
    # check (e) of DIME-FM; catches scores of a rank's own images and sentences, a gather without gradient, a loss that
    # each rank counts whole, sentences drawn alike on each rank
    here, there = alone["dime"], result(played, "dime")
    assert there.keys() == here.keys()
    for name, gradient in here.items():
        limit = (1e-5 if name.startswith("float32/") else 1e-9) * gradient.abs().max()
        assert limit > 0, name
        assert (there[name] - gradient).abs().max() <= limit, name
    for name in (name for name in here if name.startswith("text/")):  # and pieces on two ranks are one batch on one
        gradient, in_pieces = here[name], there[name.replace("text/", "pieces/", 1)]
        assert (in_pieces - gradient).abs().max() <= 1e-9 * gradient.abs().max(), name


@pytest.mark.slow
def test_muon_steps_along_the_whole_matrix(played, alone) -> None:
    # its iteration is in bf16 and blows small singular values up, so that only the first digit of a step is the same;
    # catches a step that each rank makes of its share of a matrix, which would be orthogonal in itself and another one
    here, there = alone["muon"], result(played, "muon")
    assert there["losses"][0].item() == pytest.approx(here["losses"][0].item(), rel=1e-9)
    torch.testing.assert_close(there["losses"], here["losses"], rtol=2e-3, atol=0)
    start = dict(ranks.method_of().learner.named_parameters())
    for name, value in here.items():
        if name.endswith(("qkv.weight", "fc1.weight", "fc2.weight")):
            step = (value - start[name].detach()).norm()
            assert (there[name] - value).norm() < 0.2 * step, name


@pytest.mark.slow
def test_released_mask_rule_counts_within_a_rank(played, alone) -> None:
    # the first half of each rank's batch, as released: as many masked images, others than on one process
    here, there = alone["gradients"], result(played, "gradients")
    token = "paper/patch_head.1.bias"
    assert there[token].isfinite().all()
    assert not torch.allclose(here[token], there[token])
    assert torch.allclose(here["paper/token_head.1.bias"], there["paper/token_head.1.bias"], rtol=1e-9)


@pytest.mark.slow
def test_what_a_method_measures_before_it_begins_is_of_all_ranks(played, alone) -> None:
    # catches shares of a rank's own views, or a rank that looks at more batches than the other and waits for ever
    (words,) = alone["agreement"]["said"]
    assert f"of {ranks.STEPS * ranks.BATCH} views" in words
    assert result(played, "agreement")["said"] == [words, words]


@pytest.mark.slow
def test_a_loss_that_is_not_finite_on_one_rank_ends_all_with_the_same_reason(played) -> None:
    first, second = result(played, "not finite")["errors"]
    assert first == second
    assert first.startswith("NonFiniteError: the loss of step 1 is nan")
    assert first.count("playground:0[") == ranks.BATCH // ranks.MICRO_BATCHES // 2  # the images of that rank alone


@pytest.mark.slow
def test_a_signal_to_one_rank_stops_all_after_the_same_step(played) -> None:
    first, second = result(played, "stopped")["errors"]
    assert first == second
    assert first.startswith("Interrupted: stopped by SIGTERM after step 2")


@pytest.mark.slow
def test_a_signal_while_the_main_rank_judges_stops_all_with_a_checkpoint(played) -> None:
    # catches a main rank that saves while the others already wait in the next step's operation: they would hang
    found = result(played, "stopped while judging")
    assert found["errors"] == ["Interrupted: stopped by SIGTERM while judging."] * 2
    assert found["saved"] == ["step-00000001"]


@pytest.mark.slow
def test_a_call_past_forward_fails_loudly(played) -> None:
    errors = result(played, "past forward")["errors"]
    expected = {"ddp": "TrainingError: the gradients of step 1 differ between ranks", "fsdp2": "mixed torch.Tensor and"}
    assert all(expected[played[1]] in error for error in errors), errors


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_a_checkpoint_goes_from_two_ranks_to_one_and_back(engine, tmp_path) -> None:
    # 2 -> 1 -> 2 ranks, two steps each, against six on one process
    straight, moved = tmp_path / "straight", tmp_path / "moved"
    other = {"ddp": "fsdp2", "fsdp2": "ddp"}[engine]
    expected = [ranks.scene_two_more_steps(straight, "ddp") for _ in range(3)]
    moved.mkdir()
    two_ranks(moved, engine, "two more steps")
    first = torch.load(moved / f"two more steps.{engine}.pt", weights_only=True)
    second = ranks.scene_two_more_steps(moved, "ddp")
    two_ranks(moved, other, "two more steps")
    third = torch.load(moved / f"two more steps.{other}.pt", weights_only=True)
    for here, there in zip(expected, (first, second, third), strict=True):
        assert here.keys() == there.keys()
        assert here["step"] == there["step"]
        for name in here.keys() - {"step"}:
            torch.testing.assert_close(there[name], here[name], rtol=1e-7, atol=1e-9, msg=name)


def test_one_process_is_left_as_it_is() -> None:
    module = nn.Linear(2, 2)
    assert parallel.distribute(module, engine="fsdp2", device=ranks.CPU) is module
    tensor = torch.ones(2)
    assert whole(tensor) is tensor
    assert share_like(tensor, tensor) is tensor
    with without_sync(module, last=False):
        pass


def test_parameters_that_take_no_part_are_noticed() -> None:
    # MobileNetV3 carries a layer of its classifier, which no token passes: DDP would wait for its gradient
    assert _has_idle_parameters(load_backbone("mobilenetv3_small_050", weights="random", img_size=32))
    assert not _has_idle_parameters(load_backbone(ranks.STUDENT, weights="random", img_size=32))
    siglip = "vit_base_patch16_siglip_224?depth=1&embed_dim=32&num_heads=2"  # its pooling, which no patch token passes
    assert _has_idle_parameters(load_backbone(siglip, weights="random", img_size=32))
    assert not _has_idle_parameters(load_backbone("resnet10t", weights="random", img_size=32))


def test_blocks_are_found_in_the_models_of_each_library(tmp_path) -> None:
    # a model whose blocks are not found is gathered whole at its first forward, and stays so on every rank
    transformers = pytest.importorskip("transformers")
    shape = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3}
    references = ["vit_tiny_patch16_224?patch_size=8&embed_dim=24&depth=3&num_heads=3"]
    for name in ("ViT", "Dinov2", "DINOv3ViT", "CLIPVision", "SiglipVision"):
        config = getattr(transformers, f"{name}Config")(**shape, image_size=32, patch_size=8)
        config.save_pretrained(tmp_path / name)
        references.append(f"hf:{tmp_path / name}")
    for reference in references:
        backbone = load_backbone(reference, weights="random", img_size=32)
        assert len(repeated_parts(backbone, _REPEATED)) == 3, reference


def test_blocks_of_open_clip_are_found() -> None:
    pytest.importorskip("open_clip")
    with torch.device("meta"):
        backbone = load_backbone("open_clip:ViT-B-32", weights="random", img_size=224)
    assert len(repeated_parts(backbone, _REPEATED)) == 12


def test_batch_norms_on_several_cpu_ranks_are_refused(monkeypatch) -> None:
    monkeypatch.setattr(parallel, "world_size", lambda: 2)
    conv = load_backbone("resnet10t", weights="random", img_size=32)
    with pytest.raises(ConfigError, match="batch norms, whose statistics must span all 2 ranks"):
        synchronise_statistics(conv, ranks.CPU)
    synchronise_statistics(load_backbone(ranks.STUDENT, weights="random", img_size=32), ranks.CPU)
