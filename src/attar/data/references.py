"""How users name images: a place, and after `?` what to take of it, as in `~/images?weight=2`."""

from __future__ import annotations

from typing import Self
from urllib.parse import parse_qsl

from pydantic import Field, model_validator

from attar.config import Config
from attar.data.files import is_url, local_path, without_credentials
from attar.errors import ConfigError, DataError


class Options(Config):
    """What to take of a place, in this order."""

    classes: float = Field(1.0, gt=0, le=1, description="share of the classes")
    images: float = Field(1.0, gt=0, le=1, description="share of each class's images; of all where there are no labels")
    crops: int | None = Field(None, ge=1, description="so many rows that all show one image, each with its own views")
    image: int = Field(0, ge=0, description="row of that image")
    weight: float = Field(1.0, gt=0, le=1000, description="how often each image stands in an epoch")
    subset_seed: int = Field(0, ge=0, description="names what the shares mean")

    @model_validator(mode="after")
    def _image_of_crops(self) -> Self:
        if self.image and self.crops is None:
            raise ConfigError(f"image={self.image} names the image that crops=N shows, and crops is not given.")
        return self


def shown(reference: str) -> str:
    """A reference for messages and records: its place without credentials, and its options.

    Example:
        >>> shown("s3://key:secret@bucket/x.tar?weight=2")
        's3://bucket/x.tar?weight=2'
    """
    place, options = split_reference(reference)
    return without_credentials(place) + _query(options)


def lasting(reference: str) -> str:
    """A reference that names the same place from any folder, without credentials: for files that others will read.

    Example:
        >>> lasting("/data/../images?weight=2")
        '/images?weight=2'
    """
    place, options = split_reference(reference)
    is_elsewhere = is_url(place) or place.split(":")[0].split("?")[0] == "playground"
    return (without_credentials(place) if is_elsewhere else str(local_path(place))) + _query(options)


def split_reference(reference: str) -> tuple[str, Options]:
    """(place, options); the playground and web addresses keep what is theirs, and a folder the `?` in its name.

    Raises:
        DataError: If an option is unknown, given twice or out of bounds.

    Example:
        >>> place, options = split_reference("playground:1?n=50&weight=2")
        >>> place, options.weight
        ('playground:1?n=50', 2.0)
    """
    place, mark, query = reference.rpartition("?")
    has_own = reference.startswith("playground") or (is_url(reference) and "http" in reference.partition("//")[0])
    if not mark or (not has_own and not is_url(reference) and local_path(reference).exists()):
        return reference, Options()
    words = query.split("&")
    ours = [word for word in words if not has_own or word.partition("=")[0] in Options.model_fields]
    shown = f"{without_credentials(place)}?{'&'.join(ours)}"
    given = parse_qsl("&".join(ours), keep_blank_values=True)
    if len(dict(given)) < len(given):
        raise DataError(f"'{shown}' gives an option twice. Keep one.")
    try:
        options = Options.build(dict(given))
    except ConfigError as error:
        raise DataError(f"'{shown}': {error}") from None
    rest = "&".join(word for word in words if word not in ours)
    return (f"{place}?{rest}" if rest or not ours else place), options


def _query(options: Options) -> str:
    words = [f"{name}={value:.15g}" for name, value in options.model_dump(exclude_defaults=True).items()]
    return f"?{'&'.join(words)}" if words else ""
