"""A CLIP of a few thousand weights, among open_clip's models as `attar-small`; import it where open_clip is there."""

import json
import tempfile
from pathlib import Path

import open_clip

from attar.models import load_two_towers

REFERENCE = "open_clip:attar-small"
_CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def write_teacher(folder: Path) -> None:
    """Write a CLIP of random weights as a directory of open_clip, which other processes can load."""
    from attar.export import write_two_towers

    register()
    towers = load_two_towers(REFERENCE, weights="random")
    write_two_towers(folder, towers.image, towers.text, card="a teacher of random weights", scale=100.0)


def register() -> None:
    """Make the reference known."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "attar-small.json").write_text(json.dumps(_CONFIG))
        open_clip.add_model_config(Path(folder))
