"""Runs that take a blink: a two-head student, tiny pictures, two steps; in this process, another one, or on ranks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from attar.config import Config
from attar.config.files import to_yaml

MODEL = "vit_tiny_patch16_224?patch_size=8&embed_dim=32&depth=1&num_heads=2"
HOLDER = """
import sys, time
from pathlib import Path
from attar.utils.locks import alone_at
with alone_at(Path(sys.argv[1])):
    print("here", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def distill_words(folder, *more):
    """A sound command on `folder/images` into `folder/out`; flags in `more` take precedence."""
    return [
        *("distill", "--teacher", MODEL, "--teacher-weights", "random", "--student", MODEL),
        *("--data", str(folder / "images"), "--out", str(folder / "out"), "--img-size", "32", "--batch-size", "8"),
        *("--max-steps", "2", "--workers", "0", "--precision", "fp32", "--device", "cpu", *more),
    ]


def picture(seed=0, size=(24, 20)):
    """Noise of (width, height) `size`, in colour."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def write_pictures(folder, count=12):
    """`count` small PNG files in a new folder."""
    folder.mkdir(parents=True)
    for number in range(count):
        picture(number).save(folder / f"{number:03}.png")
    return folder


def under_licence(folder, name):
    """A folder of timm whose weights are under a licence."""
    from attar.export import write_student
    from attar.models import load_backbone

    write_student(folder, load_backbone(MODEL, weights="random", img_size=32), card="")
    described = json.loads((folder / "config.json").read_text())
    described["pretrained_cfg"]["license"] = name
    (folder / "config.json").write_text(json.dumps(described))
    return str(folder)


def environment(**changes):
    """The environment of a subprocess that finds attar where the tests found it."""
    import attar

    return os.environ | {"PYTHONPATH": str(Path(attar.__file__).parents[1])} | changes


def attar_process(*words, before=(), **changes):
    """Run `python -m attar.cli` to its end, behind the command `before`, with `changes` of the environment."""
    command = [*before, sys.executable, "-m", "attar.cli", *words]
    return subprocess.run(command, env=environment(**changes), capture_output=True, text=True, timeout=120, check=False)


def run_on_ranks(verb: str, settings: Config, ranks: int) -> str:
    """What `attar VERB` said when it ran to its end on so many ranks, each with one thread."""
    file = Path(settings.out).with_suffix(".yaml")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(to_yaml(settings))
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m", "--"]
    done = subprocess.run(
        [sys.executable, *(launcher if ranks > 1 else ["-m"]), "attar", verb, "--config", str(file)],
        env=environment(OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def holder(path: Path, seconds: float) -> subprocess.Popen[str]:
    """A process that is alone at a file for so long, once it is there."""
    words = [sys.executable, "-c", HOLDER, str(path), str(seconds)]
    process = subprocess.Popen(words, env=environment(), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n"
    return process
