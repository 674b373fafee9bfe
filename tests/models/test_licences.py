"""Licences of weights: what is known is passed on, what is not known is called unknown."""

import pytest

from attar.models import Provenance, licence_named, terms_of
from attar.models.licences import LICENCES, licence_of_tag


def weights(licence, name="vit_base_patch16_224"):
    return Provenance(name, weights="timm", file="x.safetensors", sha256="0", licence=licence)


@pytest.mark.parametrize(
    ("licence", "is_commercial"),
    [("apache-2.0", True), ("mit", True), ("cc-by-nc-4.0", False), ("dinov3-license", True), ("fastvit-license", None)],
)
def test_known_licences_say_whether_commercial_use_is_allowed(licence, is_commercial):
    assert terms_of(weights(licence)).is_commercial is is_commercial


def test_a_non_commercial_licence_is_told_at_the_start_and_in_the_card():
    terms = terms_of(weights("cc-by-nc-4.0"))
    assert terms.is_told_at_start
    assert "NOT for commercial use" in terms.told
    assert "**does not allow commercial use**" in terms.in_sentences()
    assert "https://creativecommons.org" in terms.in_sentences()
    assert not terms_of(weights("apache-2.0")).is_told_at_start


@pytest.mark.parametrize("said", [None, "unknown", "None", "other", ""])
def test_what_nobody_says_is_unknown_whatever_the_architecture(said):
    terms = terms_of(weights(said, name="vit_base_patch16_dinov3"))
    assert (terms.name, terms.is_commercial) == ("unknown", None)
    assert "unknown" in terms.in_sentences()
    assert terms.is_told_at_start


def test_a_licence_outside_the_table_keeps_its_name_and_claims_nothing():
    terms = licence_named("Sapiens2-License")
    assert (terms.name, terms.is_commercial, terms.demands, terms.source) == ("sapiens2-license", None, "", "")
    assert "to be read before use" in terms.in_sentences()


def test_random_weights_are_nobodys():
    assert terms_of(Provenance("resnet10t")) is None


@pytest.mark.parametrize(
    ("names", "together", "is_commercial"),
    [
        (("apache-2.0", "cc-by-nc-4.0"), "apache-2.0 and cc-by-nc-4.0", False),
        (("mit", "apple-ascl"), "mit and apple-ascl", None),
        (("mit", None), "mit and unknown", None),
        (("mit", "mit"), "mit", True),
        (("mit and cc-by-nc-4.0", "mit"), "mit and cc-by-nc-4.0", False),  # what a student is made from, once more
    ],
)
def test_what_is_made_from_several_weights_is_bound_by_each(names, together, is_commercial):
    terms = terms_of(*map(weights, names), Provenance("resnet10t"))
    assert (terms.name, terms.is_commercial) == (together, is_commercial)
    assert terms.is_told_at_start is (is_commercial is not True)
    assert all(f"`{name}`" in terms.in_sentences() or "unknown" in name for name in terms.name.split(" and "))
    assert ("find out" in terms.told) is (None in names)


def test_a_gated_repository_is_told():
    terms = terms_of(weights("dinov3-license", name="hf:facebook/dinov3-vits16-pretrain-lvd1689m"))
    assert "accepted on its page" in terms.told
    assert terms_of(weights("dinov3-license", name="vit_small_patch16_dinov3")).gate == ""


@pytest.mark.parametrize(
    ("architecture", "tag", "licence"),
    [
        ("ViT-B-32", "openai", "mit"),
        ("ViT-B-32", "laion2b_s34b_b79k", "mit"),
        ("ViT-B-16-quickgelu", "metaclip_400m", "cc-by-nc-4.0"),
        ("ViT-B-16-SigLIP", "webli", "apache-2.0"),
        ("MobileCLIP-S1", "datacompdr", "unknown"),
        ("ViT-B-32", None, "unknown"),
    ],
)
def test_published_weights_of_open_clip_have_the_licence_their_makers_name(architecture, tag, licence):
    assert licence_of_tag(architecture, tag) == licence


def test_the_table_is_keyed_by_name_in_lower_case():
    assert all(name == terms.name == name.lower() for name, terms in LICENCES.items())
