"""A small text tower in its teacher's image: the same tokens in, a vector of the same width out, fewer layers."""

from __future__ import annotations

from attar.errors import ConfigError
from attar.models.backbone import Provenance
from attar.models.files import some
from attar.models.open_clip_text import build_text
from attar.models.selection import LayerChoice, select_weights
from attar.models.text import TextTower
from attar.utils.seeding import seeded_torch

_HEAD_WIDTH = 64  # of all CLIPs


def small_text_tower(
    teacher: TextTower,
    *,
    depth: int,
    width: int,
    num_heads: int | None = None,
    layers: LayerChoice | None = None,
    seed: int = 0,
) -> TextTower:
    """open_clip's text transformer with the teacher's tokeniser, context, pooling and embedding width, on the CPU.

    Args:
        teacher: Whose sentences and space it shares.
        depth: Number of blocks.
        width: Of the tokens inside.
        num_heads: By default one for 64 channels.
        layers: Start from a part of the teacher's weights, from these layers (`attar.models.selection`); by default
            from random weights.
        seed: Names the initialisation.

    Raises:
        ConfigError: If the heads do not divide the width.
        WeightsError: If it shall start from the teacher's weights, and these are of another library or too few.
    """
    heads = num_heads or max(1, width // _HEAD_WIDTH)
    if width % heads:
        raise ConfigError(
            f"a text tower of width {width} does not divide into {heads} heads."
            f" Try a width of {heads * (width // heads)}, or another number of heads."
        )
    shape = {"layers": depth, "width": width, "heads": heads}
    config = {**teacher.config, "text_cfg": {**teacher.config["text_cfg"], **shape}}
    name = f"text tower of {depth} layers, width {width}"
    with seeded_torch(seed, "initialisation"):
        model = build_text({**config, "embed_dim": teacher.embed_dim}, name)
    source = Provenance(name)
    if layers is not None:
        selection = select_weights(teacher.model.state_dict(), model.state_dict(), layers=layers)
        model.load_state_dict(selection.state)
        words = f"selected from the teacher ({layers} layers)"
        words += f", random: {some(selection.random, shown=3)}" if selection.random else ""
        source = Provenance(name, weights=words, licence=teacher.source.licence)
    return TextTower(
        model,
        teacher.tokenise,
        embed_dim=teacher.embed_dim,
        context_length=teacher.context_length,
        logit_scale=None,
        source=source,
        config=config,
    ).eval()
