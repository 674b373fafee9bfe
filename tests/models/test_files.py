"""Weight files of every kind: what is read, what is refused, and that no code in them runs."""

from __future__ import annotations

import argparse
import pickle
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, LocalEntryNotFoundError
from official_dinov2 import State, random_state
from official_files import openai_state, siglip_state
from safetensors.torch import save_file
from torch import nn

from attar.errors import WeightsError
from attar.models import files, load_backbone
from attar.models.files import fetching, not_fetched, read_checkpoint, read_state_dict

NAME = "vit_small_patch14_dinov2?depth=2&embed_dim=48&num_heads=3"


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_cut_file_is_an_error(suffix, share, tmp_path):
    file, state = tmp_path / f"cut{suffix}", random_state(dim=48)
    torch.save(state, file) if suffix == ".pth" else save_file(state, file)
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    with pytest.raises(WeightsError, match=re.escape(str(file))) as caught:
        read_state_dict(file)
    assert ("is empty" if share == 0 else "cut short") in str(caught.value)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".npz"])
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("\n<!DOCTYPE html><html>404: no such file</html>", "it is a web page, .* Download it again"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0a\n", "git-lfs' pointer .* git lfs pull"),
        ("hello " * 20, r"damaged or cut short \(120 bytes\), or no weight file"),
    ],
)
def test_a_text_in_place_of_weights_is_told_by_what_it_is(suffix, text, says, tmp_path):
    file = tmp_path / f"page{suffix}"
    file.write_text(text)
    with pytest.raises(WeightsError, match=f"cannot be read: .*{says}"):
        read_state_dict(file)


def damaged_zip(file, place, value):
    """Weights whose first entry in the zip's list of contents has another byte."""
    torch.save(random_state(dim=48), file)
    content = bytearray(file.read_bytes())
    entry = content.index(b"PK\x01\x02")
    content[entry + 9] |= 0x08  # names are UTF-8
    content[entry + place] = value
    file.write_bytes(content)


def test_a_zip_with_a_name_that_is_no_text_is_told_in_words(tmp_path):
    damaged_zip(tmp_path / "x.pth", 46, 0x82)
    with pytest.raises(WeightsError, match=r"x\.pth cannot be read"):
        read_state_dict(tmp_path / "x.pth")


def test_a_zip_of_a_later_version_is_read_if_torch_can(tmp_path):
    damaged_zip(tmp_path / "x.pth", 6, 206)
    assert read_state_dict(tmp_path / "x.pth").keys() == random_state(dim=48).keys()


class Command:
    """Unpickling it makes a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_code_in_a_checkpoint_does_not_run(how, tmp_path):
    trace, file = tmp_path / "it-ran", tmp_path / "trap.pth"
    trap = {**random_state(dim=48), "extra": Command(trace)}
    if how == "torch":
        torch.save(trap, file)
    else:
        file.write_bytes(pickle.dumps(trap))
    with pytest.raises(WeightsError, match="to run code, which attar never does") as caught:
        load_backbone(NAME, weights=file, img_size=70)
    assert "weights_only" not in str(caught.value)  # torch advises to turn it off
    assert ("than tensors (" in str(caught.value)) is (how == "torch")  # the name of what would run
    assert not trace.exists()
    pickle.loads(pickle.dumps(trap["extra"]))
    assert trace.exists()  # the trap was armed


# ---- TorchScript, NumPy archives, and what checkpoints keep beside the tensors


class Holder(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def archive(state: State, file: Path) -> Path:
    """A TorchScript archive whose state dict is the given one, as OpenAI publishes CLIP."""
    root = Holder()
    for key, value in state.items():
        *path, last = key.split(".")
        module: nn.Module = root
        for name in path:
            if name not in module._modules:
                module.add_module(name, Holder())
            module = module.get_submodule(name)
        module.register_buffer(last, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(root).save(file)
    return file


def test_a_torchscript_archive_needs_trust(tmp_path):
    file = archive(openai_state(), tmp_path / "ViT.pt")
    reference = "vit_base_patch16_clip_quickgelu_224?depth=2&embed_dim=128&num_heads=2"
    with pytest.raises(WeightsError, match=r"is a TorchScript archive.*can run code.*--trust-torchscript"):
        load_backbone(reference, weights=file, img_size=64)
    backbone = load_backbone(reference, weights=file, img_size=64, trust_torchscript=True)
    assert backbone.source.weights == "openai-clip"
    torch.save(openai_state(), tmp_path / "ViT.pth")
    plain = load_backbone(reference, weights=tmp_path / "ViT.pth", img_size=64)
    pixels = torch.rand(1, 3, 64, 64)
    assert torch.equal(backbone.tokens(pixels).cls, plain.tokens(pixels).cls)


def test_trust_in_torchscript_is_no_trust_in_pickles(tmp_path):
    trace = tmp_path / "it-ran"
    torch.save({**random_state(dim=48), "extra": Command(trace)}, tmp_path / "trap.pth")
    with pytest.raises(WeightsError, match="attar never does"):
        load_backbone(NAME, weights=tmp_path / "trap.pth", img_size=70, trust_torchscript=True)
    assert not trace.exists()


def test_the_arguments_of_a_training_script_may_stand_beside_the_model(tmp_path):
    content = {"model": random_state(dim=48), "args": argparse.Namespace(lr=0.1, out=None), "epoch": 3}
    torch.save(content, tmp_path / "checkpoint.pth")
    assert read_state_dict(tmp_path / "checkpoint.pth").keys() == random_state(dim=48).keys()


@pytest.mark.parametrize("is_zip", [True, False])
def test_torch_checkpoints_of_both_formats_are_read(is_zip, tmp_path):
    state = random_state(dim=48)
    torch.save({"model": state, "epoch": 3}, tmp_path / "old.pth", _use_new_zipfile_serialization=is_zip)
    found = read_state_dict(tmp_path / "old.pth")
    assert all(torch.equal(value, found[key]) for key, value in state.items())


@pytest.mark.parametrize(
    ("beside", "note"),
    [
        (
            {"model_ema": {"w": torch.ones(1)}, "optimizer": {"state": {0: {"m": torch.ones(1)}}}},
            "model, not model_ema",
        ),
        ({"model_ema": None, "args": argparse.Namespace(lr=0.1)}, ""),
    ],
)
def test_weights_that_are_passed_over_are_named(beside, note, tmp_path):
    torch.save({"model": {"w": torch.zeros(1)}, **beside}, tmp_path / "run.pth")
    assert read_checkpoint(tmp_path / "run.pth") == ({"w": torch.zeros(1)}, note)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (GatedRepoError.__new__(GatedRepoError), "its owner wants the terms accepted"),
        (LocalEntryNotFoundError("An error happened ..."), "the hub does not answer, and the cache holds no copy"),
        (EntryNotFoundError("404"), "the repository holds no such file"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (KeyError("etag"), "KeyError"),
    ],
)
def test_what_did_not_arrive_from_the_hub_is_said_in_our_words(error, reason):
    says = str(not_fetched("pretrained weights of 'x'", error, instead="a weight file"))
    assert f"could not be fetched from the model hub: {reason}" in says
    assert says.endswith(". Without it, give a weight file.")


def test_what_stands_beside_the_weights_is_not_read_into_memory(tmp_path):
    """Training checkpoints hold an optimizer twice their size."""
    torch.save({"model": {"w": torch.ones(4)}, "optimizer": {"m": torch.ones(32, 1 << 20)}}, tmp_path / "run.pth")
    code = (
        "import resource, sys; from pathlib import Path; from attar.models.files import read_state_dict;"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024;"
        "before = peak(); read_state_dict(Path(sys.argv[1])); print(peak() - before)"
    )
    run = subprocess.run([sys.executable, "-c", code, tmp_path / "run.pth"], capture_output=True, text=True, check=True)
    assert float(run.stdout) < 64  # MiB, of 128


@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_a_cut_archive_of_arrays_is_an_error(share, tmp_path):
    np.savez(tmp_path / "cut.npz", **{key: value.numpy() for key, value in siglip_state().items()})
    content = (tmp_path / "cut.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(content[: int(share * len(content))])
    with pytest.raises(WeightsError, match="is empty" if share == 0 else "cut short"):
        read_state_dict(tmp_path / "cut.npz")


def test_code_in_an_archive_of_arrays_does_not_run(tmp_path):
    trace = tmp_path / "it-ran"
    np.savez(tmp_path / "trap.npz", extra=np.array([Command(trace)], dtype=object))
    with pytest.raises(WeightsError, match="attar never does"):
        read_state_dict(tmp_path / "trap.npz")
    assert not trace.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "holds no state dicts: its top level has nothing"),
        ({"epoch": 3, "optimizer": {}}, "its top level has epoch, optimizer. Expected tensors, or one of model"),
        ({"model": {"w": torch.zeros(1)}, "teacher": {"w": torch.ones(1)}}, "holds 2 state dicts"),
        ({"weight": torch.zeros(2), "epoch": 3}, "holds epoch among its tensors"),
        (torch.zeros(3), "holds a Tensor, not a dictionary"),
    ],
)
def test_a_checkpoint_without_one_state_dict_says_what_it_has(content, message, tmp_path):
    torch.save(content, tmp_path / "checkpoint.pth")
    with pytest.raises(WeightsError, match=re.escape(message)):
        read_state_dict(tmp_path / "checkpoint.pth")


def test_a_missing_file_names_the_choices(tmp_path):
    with pytest.raises(WeightsError, match=r"does not exist\. Give random, pretrained or the path of a file"):
        load_backbone(NAME, weights=tmp_path / "typo.pth", img_size=70)


def test_a_long_download_is_told_of_and_what_goes_wrong_is_said_in_words(monkeypatch, capsys):
    monkeypatch.setattr(files, "_PATIENCE_S", 0.01)

    def fail() -> None:
        with fetching("weights of 'x'", instead="a file"):
            time.sleep(0.2)
            raise ConnectionError("no route")

    with pytest.raises(WeightsError, match=r"weights of 'x' could not be fetched from the model hub: .* give a file"):
        fail()
    assert "fetching weights of 'x' from the model hub; Ctrl-C stops" in capsys.readouterr().err
    with fetching("weights of 'y'", instead="a file"):
        pass  # done before anybody asks
    assert capsys.readouterr().err == ""
