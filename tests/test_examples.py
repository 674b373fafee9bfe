"""What lies in `examples` runs, on data that takes seconds."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import shlex
import subprocess
import sys
from itertools import pairwise

import pytest
import timm
import torch

import attar
from documented import ROOT, blocks, shown_in_code
from small_runs import environment, write_pictures

EXAMPLES = ROOT / "examples"
TINY = "playground?depth=1&embed_dim=32&num_heads=2"


def example(name):
    """The example as a module."""
    found = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def started(*words, cwd, **changes):
    """A process that ended well, in a folder of its own."""
    own = environment(ATTAR_CACHE=str(cwd / "cache"), OMP_NUM_THREADS=str(os.cpu_count()), **changes)
    finished = subprocess.run([*words], cwd=cwd, env=own, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout[-2000:] + finished.stderr[-3000:]
    return finished.stdout


# --- a method of your own -------------------------------------------------------------------------------------------


def test_relations_are_those_of_directions_and_blind_to_a_rotation():
    relations = example("relations").relations
    patches = torch.randn(2, 5, 3, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q
    cosines = torch.nn.functional.cosine_similarity(patches[1, 2], patches[1, 4], dim=0)
    assert relations(patches).shape == (2, 5, 5)
    assert relations(patches)[1, 2, 4].item() == pytest.approx(cosines.item(), abs=1e-6)
    torch.testing.assert_close(relations(patches @ turn * 3), relations(patches), rtol=0, atol=1e-6)


def test_the_method_of_ones_own_learns_and_ships(tmp_path):
    module = example("relations")
    pictures = write_pictures(tmp_path / "images", 16)
    settings = {"img_size": 64, "batch_size": 8}
    first = module.distil("playground", TINY, str(pictures), tmp_path / "first", steps=1, **settings)
    student = module.distil("playground", TINY, str(pictures), tmp_path / "student", steps=30, **settings)
    views = torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    teacher = attar.load_backbone("playground", img_size=64)
    target = module.relations(teacher.tokens(views).patch)

    def loss(backbone):
        return (module.relations(backbone.tokens(views).patch) - target).square().mean().item()

    assert loss(student) < 0.8 * loss(first)
    model = timm.create_model(f"local-dir:{tmp_path / 'student'}", pretrained=True).eval()
    torch.testing.assert_close(model.norm.weight, student.state_dict()["model.norm.weight"])


def test_relations_run_by_the_command_that_is_shown(tmp_path, monkeypatch):
    (shown,) = {
        tuple(shlex.split(block.text.split("\nattar")[0].replace("\\\n", " ")))
        for block in (*blocks(ROOT / "docs/extending.md"), *shown_in_code(EXAMPLES / "relations.py"))
        if block.text.startswith("python examples/relations.py")
    }
    few = {"--steps": "1", "--data": "playground:0?n=40"}
    words = [few.get(before, word) for before, word in pairwise(shown)]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", words)
    example("relations").main()
    assert (tmp_path / words[words.index("--out") + 1] / "model.safetensors").is_file()


# --- every verb -----------------------------------------------------------------------------------------------------


def test_the_example_of_every_verb_calls_every_verb():
    calls = {
        node.func.attr
        for node in ast.walk(ast.parse((EXAMPLES / "every_verb.py").read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("attar.")
    }
    verbs = {name for name in attar.__all__ if name.islower() and name[0] != "_"} - {"load_backbone", "quickstart"}
    assert not verbs - calls


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_verb_runs(tmp_path):
    said = started(sys.executable, str(EXAMPLES / "every_verb.py"), "--out", "out", cwd=tmp_path)
    assert "28 images packed" in said
    assert "120 vectors" in said
    assert "40 sentences" in said
    assert (tmp_path / "out" / "small-clip" / "student" / "open_clip_config.json").exists()


# --- notebooks, scripts, images -------------------------------------------------------------------------------------

NOTEBOOKS = sorted((EXAMPLES / "notebooks").glob("*.ipynb"))


def cells(path):
    return ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def test_there_are_three_notebooks_without_outputs():
    assert len(NOTEBOOKS) == 3
    for path in NOTEBOOKS:
        for cell in json.loads(path.read_text())["cells"]:
            assert not cell.get("outputs"), path.name
            assert cell.get("execution_count") is None, path.name


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_runs(path, tmp_path):
    (tmp_path / "notebook.py").write_text("\n\n".join(cells(path)))
    started(sys.executable, "notebook.py", cwd=tmp_path)


def test_scripts_of_the_shell_are_sound():
    for script in EXAMPLES.glob("*.sbatch"):
        subprocess.run(["bash", "-n", str(script)], check=True)


def test_the_dockerfile_copies_what_is_there():
    lines = (EXAMPLES / "Dockerfile").read_text().splitlines()
    copied = [word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]]
    assert copied
    assert all((ROOT / name).exists() for name in copied)
