"""Compiled blocks: `torch.compile` on the transformer blocks of teacher and student, within training steps alone.

One block is compiled for all that are alike, so that it takes seconds; images are judged and exported by the plain
model, whose batches come in other sizes. What it is worth: `benchmarks/step.py`, `notes/step.md`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from attar.errors import first_line
from attar.train.parallel import repeated_parts

_BLOCKS = ("blocks", "resblocks")  # timm, open_clip


def compile_blocks(models: Sequence[nn.Module], device: torch.device) -> str | None:
    """Compile, in place, each transformer block of the backbones in some modules; nothing is translated before a step.

    Args:
        models: What learns, DDP around it or not, and what is asked.
        device: Where they are.

    Returns:
        Why it is not done, in words; None if it is.
    """
    blocks = [block for model in models for block in repeated_parts(model, _BLOCKS)]
    if not blocks:
        return "no model here has transformer blocks"
    if any(isinstance(block, FSDPModule) for block in blocks):
        return "the blocks are sharded by FSDP2"
    try:
        torch.compile(_probe)(torch.zeros(8, device=device))
    except Exception as error:  # compilers raise many kinds, from no C compiler to no Triton
        return f"torch cannot compile here ({first_line(error)})"
    for block in blocks:
        block.compile(dynamic=False)
    return None


@contextlib.contextmanager
def compiled_in_steps() -> Iterator[None]:
    """Around a training: compiled modules run as they are outside of `compiled_step`, and where a translation fails."""
    with torch.compiler.set_stance("force_eager"), torch._dynamo.config.patch(suppress_errors=True):
        yield


def compiled_step() -> contextlib.AbstractContextManager[object]:
    """Around forward and backward of a step: compiled modules run compiled."""
    stance: contextlib.AbstractContextManager[object] = torch.compiler.set_stance("default")
    return stance


def _probe(values: Tensor) -> Tensor:
    return values.sin() + 1
