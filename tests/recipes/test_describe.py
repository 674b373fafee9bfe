"""What a run calls its models."""

from __future__ import annotations

from attar.recipes.describe import short


def test_a_folder_goes_by_its_own_name_and_anything_else_as_it_was_given(tmp_path):
    (tmp_path / "dino").mkdir()
    assert short(str(tmp_path / "dino")) == "dino"
    assert short(f"{tmp_path}/dino?img_size=224") == "dino?img_size=224"
    assert short(f"hf:{tmp_path}/dino") == "hf:dino"
    for reference in ("vit_small_patch14_dinov2", "hf:facebook/dinov2-small", "open_clip:ViT-B-32?pretrained=openai"):
        assert short(reference) == reference
