"""What is known of the licences of published weights: terms by name, names by tag."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from attar.models.backbone import Provenance
from attar.models.references import OPEN_CLIP_CONFIG
from attar.utils.io import read_json

UNKNOWN = "unknown"
ORIGIN_LICENCE = "origin_licence"
"""Key of what a folder's description says of the weights that its own were made from."""
_AND = " and "
_PERMISSIVE = ("apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0")
_SAYS_NOTHING = (UNKNOWN, "none", "other", "")


@dataclass(frozen=True)
class Licence:
    """Terms of published weights, as far as they are known for sure.

    Attributes:
        name: As model cards and timm write it, in lower case; `unknown` where no source says.
        is_commercial: Whether commercial use is allowed; None where the terms must be read to know.
        demands: What holds for who hands a student on, in one sentence; nothing where it is not known.
        source: Where the terms stand.
        gate: What must be done before the weights can be downloaded; nothing where none is known.
        parts: Those that bind together, where it stands for several.
    """

    name: str
    is_commercial: bool | None = None
    demands: str = ""
    source: str = ""
    gate: str = ""
    parts: tuple[Licence, ...] = ()

    @property
    def told(self) -> str:
        """Name and what matters most about it, in one line."""
        words = {True: "commercial use allowed", False: "NOT for commercial use", None: "its own terms: read them"}
        said = "find out before you hand a student on" if UNKNOWN in self.name else words[self.is_commercial]
        return "; ".join(part for part in (f"{self.name}: {said}", self.gate) if part)

    def in_sentences(self, whose: str = "the weights") -> str:
        """What a card says of it.

        Args:
            whose: Licence it is.
        """
        if self.parts:
            return " ".join(part.in_sentences(whose) for part in self.parts)
        if self.name == UNKNOWN:
            return f"The licence of {whose} is unknown: no file, library or card says it. Find out before you use them."
        said = {
            True: "allows commercial use",
            False: "**does not allow commercial use**; take what is made of them as bound by it too",
            None: "has terms of its own, to be read before use",
        }[self.is_commercial]
        text = f"The licence of {whose}, `{self.name}`, {said}."
        text += f" What it asks: {self.demands}." if self.demands else ""
        text += f" Gate: {self.gate}." if self.gate else ""
        return text + (f" Terms: <{self.source}>." if self.source else "")

    @property
    def is_told_at_start(self) -> bool:
        """Whether a run says so before it begins: its student may not go where the user wants it."""
        if self.parts:
            return any(part.is_told_at_start for part in self.parts)
        return self.is_commercial is not True or bool(self.gate) or self.name not in _PERMISSIVE


_KEEP_NOTICE = "copies keep licence and copyright notice"
_OWN_TERMS = "its text goes with what is handed on"

LICENCES = {
    licence.name: licence
    for licence in (
        Licence("apache-2.0", True, _KEEP_NOTICE, "https://www.apache.org/licenses/LICENSE-2.0"),
        Licence("mit", True, _KEEP_NOTICE, "https://opensource.org/license/mit"),
        Licence("bsd-3-clause", True, _KEEP_NOTICE, "https://opensource.org/license/bsd-3-clause"),
        Licence("cc-by-4.0", True, "the authors are named", "https://creativecommons.org/licenses/by/4.0/"),
        Licence(
            "cc-by-nc-4.0",
            False,
            "the authors are named, and nobody uses it commercially",
            "https://creativecommons.org/licenses/by-nc/4.0/",
        ),
        Licence(
            "dinov3-license",
            True,
            "derivative works are handed on under the same agreement alone, with a copy of it; publications name"
            " DINOv3; no military, nuclear, espionage or weapons use",
            "https://ai.meta.com/resources/models-and-libraries/dinov3-license/",
        ),
        Licence("fair-noncommercial-research-license", False, "research that is not commercial"),
        Licence(
            "apple-amlr",
            False,
            "research alone",
            "https://huggingface.co/apple/mobileclip_s0_timm/blob/main/LICENSE",
        ),
        Licence("apple-ascl", None, _OWN_TERMS),
        Licence("fastvit-license", None, _OWN_TERMS, "https://github.com/apple/ml-fastvit/blob/main/LICENSE"),
        Licence("mobileone-license", None, _OWN_TERMS, "https://github.com/apple/ml-mobileone/blob/main/LICENSE"),
        Licence("cvnets-license", None, _OWN_TERMS, "https://github.com/apple/ml-cvnets/blob/main/LICENSE"),
        Licence(
            "nvidia-open-model-license",
            True,
            _OWN_TERMS,
            "https://www.nvidia.com/en-us/agreements/enterprise-software/nvidia-open-model-license/",
        ),
    )
}
"""By name. What is not here has terms of its own that the card passes on by name."""


_TAGS = (  # architecture, tag of open_clip's published weights, licence that their makers name
    (r".*", r"openai", "mit"),
    (r"ViT-.*", r"laion(400m|2b)_.*", "mit"),
    (r"ViT-.*", r"(datacomp|commonpool)_.*", "mit"),
    (r".*", r"metaclip_(400m|fullcc)", "cc-by-nc-4.0"),
    (r"ViT-.*SigLIP.*", r"webli", "apache-2.0"),
)
_GATES = ((r"hf:facebook/dinov3-.*", "its terms are accepted on its page of the model hub before a download"),)


def licence_of_tag(architecture: str, tag: str | None) -> str:
    """Name of the licence of weights that open_clip publishes; `unknown` without a tag and where it is not known."""
    for name, pattern, licence in _TAGS if tag is not None else ():
        if re.fullmatch(name, architecture) and re.fullmatch(pattern, tag or ""):
            return licence
    return UNKNOWN


def terms_of(*sources: Provenance) -> Licence | None:
    """What is known of the licence of a backbone's weights; None where they are random, and nobody's.

    The name is what file, library or model card say of those very weights, never what an architecture is known for.
    What is made from several is bound by the terms of each.

    Example:
        >>> terms_of(Provenance("vit_base_patch16_224.mae", weights="timm", licence="cc-by-nc-4.0")).is_commercial
        False
    """
    found = []
    for source in sources:
        if source.weights != "random":
            gate = next((gate for pattern, gate in _GATES if re.fullmatch(pattern, source.name)), "")
            found.append(replace(licence_named(source.licence or UNKNOWN), gate=gate))
    return _together(found) if found else None


def licence_named(name: str) -> Licence:
    """A licence by what a model card, timm or an earlier run calls it; outside the table it has its name alone.

    Example:
        >>> licence_named("MIT and cc-by-nc-4.0").told
        'mit and cc-by-nc-4.0: NOT for commercial use'
    """
    names = name.lower().split(_AND)
    return _together([LICENCES.get(one, Licence(UNKNOWN if one in _SAYS_NOTHING else one)) for one in names])


def _together(licences: Sequence[Licence]) -> Licence:
    """What binds who is bound by each of them."""
    flat = [part for licence in licences for part in licence.parts or (licence,)]
    several = tuple(dict.fromkeys(flat))
    if len(several) == 1:
        return several[0]
    allowed = {licence.is_commercial for licence in several}
    return Licence(
        _AND.join(dict.fromkeys(licence.name for licence in several)),
        False if False in allowed else None if None in allowed else True,
        gate="; ".join(dict.fromkeys(licence.gate for licence in several if licence.gate)),
        parts=several,
    )


def licence_beside(file: Path) -> str | None:
    """What attar noted beside a weight file that it wrote: the licences of the weights that it was made from."""
    for name in ("config.json", OPEN_CLIP_CONFIG):
        try:
            said = read_json(file.with_name(name)).get(ORIGIN_LICENCE)
        except (OSError, ValueError, AttributeError):
            continue
        if isinstance(said, str):
            return said
    return None
