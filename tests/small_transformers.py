"""Whole models of transformers with a tokeniser, of a few thousand weights; import it where transformers is there."""

from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers

from attar.models.transformers import quiet

SHAPE = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 3}
VISION = {**SHAPE, "image_size": 32, "patch_size": 8}
WORDS = ["<pad>", "<start>", "<unk>", *["a", "photo", "of", "cat", "dog", "the", "sea"], "<end>"]
TEXT = {**SHAPE, "hidden_size": 24, "vocab_size": 40, "max_position_embeddings": 8}
TEXT |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": len(WORDS) - 1}
TEXTS = ["a photo of a cat", "the sea", "a dog of a photo of a cat of the sea of a dog"]
KINDS = ("clip", "siglip", "siglip2")


def write(folder: Path, kind: str, **text: Any) -> Any:
    """transformers' own whole model with a tokeniser, saved. Norms and biases are random, so that none is idle."""
    name = {"clip": "CLIP", "siglip": "Siglip", "siglip2": "Siglip2"}[kind]
    vision = {**SHAPE, "hidden_size": 24, "patch_size": 8, "num_patches": 16} if kind == "siglip2" else VISION
    vision = {**vision, "hidden_size": 24} if kind == "siglip" else vision
    more = {"projection_dim": 20} if kind == "clip" else {}
    text = {**TEXT, **({} if kind == "clip" else {"projection_size": 24}), **text}
    config = getattr(transformers, f"{name}Config")(text_config=text, vision_config=vision, **more)
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(5)
        model = getattr(transformers, f"{name}Model")(config).eval()
        for parameter in model.parameters():
            if parameter.ndim < 2:
                parameter.data += 0.3 * torch.randn(parameter.shape)
        model.save_pretrained(folder)
    if (
        kind == "siglip2"
    ):  # transformers takes its own class whatever the directory says, and pads at the left by default
        known = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *"aphotfcdgse"]
        transformers.Siglip2Tokenizer(vocab={w: i for i, w in enumerate(known)}, merges=[]).save_pretrained(folder)
        return model
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    ends = [("<start>", 1), ("<end>", len(WORDS) - 1)]
    words.post_processor = tokenizers.processors.TemplateProcessing(single="<start> $A <end>", special_tokens=ends)
    names = {"pad_token": "<pad>", "bos_token": "<start>", "eos_token": "<end>", "unk_token": "<unk>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, **names).save_pretrained(folder)
    return model
