"""The text tower of an exported model as a file of its own: token numbers in, embeddings out."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch

from attar.export.onnx import OnnxModel, write_onnx
from attar.export.parity import BATCHES, Parity, compare
from attar.export.program import traced
from attar.models import TextTower
from attar.utils.progress import Log

FILE = "text.onnx"
_SENTENCES = ("a photo of a cat.", "Two dogs and a bird by the SEA, at 9 o'clock!", "a red bus", "", "a " * 200)


def write_text_tower(folder: Path, text: TextTower, parity: dict[str, Parity], tolerance: float, log: Log) -> str:
    """Write `text.onnx`, compare it on sentences, and say in Markdown how it is used.

    Args:
        folder: Of the exported model.
        text: The tower.
        parity: Of the files, to which this one's is added.
        tolerance: As for images.
        log: For people.

    Raises:
        ExportError: If it cannot be written, or says something else.
    """
    sentences = [_SENTENCES[k % len(_SENTENCES)] for k in range(sum(BATCHES))]
    tokens = text.tokenise(sentences)
    module = _Text(copy.deepcopy(text).cpu().float().eval())
    program = traced(module, tokens[:2])
    write_onnx(folder / FILE, program, inputs=["tokens"], outputs=["embedding"])
    run = OnnxModel(folder / FILE, {"img_size": 0})
    found = compare(run, list(np.asarray(tokens)), [text.encode(sentences).cpu().numpy()])
    log.say(f"  same?    {FILE}: {found.told.replace('images', 'sentences')}")
    found.check(tolerance, what=FILE)
    parity[FILE] = found
    scale = f", times {text.logit_scale:.4g}," if text.logit_scale is not None else ""
    return (
        f"`{FILE}` takes `tokens`, int64 (m, {text.context_length}), and gives `embedding` (m, {text.embed_dim}), not"
        f" normalised. Cosines{scale} of both embeddings are the scores. Sentences become tokens by the model's own"
        " tokeniser, which is not part of the file: `open_clip.get_tokenizer`, or the tokeniser's files beside the"
        " student."
    )


class _Text(torch.nn.Module):
    """The encoder alone."""

    def __init__(self, text: TextTower) -> None:
        super().__init__()
        self.name = text.source.name
        self.model = text.model.requires_grad_(False)

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(m, E) of token numbers (m, L)."""
        return (self.model(tokens),)
