"""How users name images: a place, and after `?` what to take of it, as in `~/images?weight=2`."""

from __future__ import annotations

from urllib.parse import parse_qsl

from pydantic import Field

from attar.config import Config
from attar.data.index import local_path
from attar.errors import ConfigError, DataError


class Options(Config):
    """What to take of a place."""

    weight: float = Field(1.0, gt=0, le=1000, description="how often each image stands in an epoch")
    subset_seed: int = Field(0, ge=0, description="names the images that a share means")


def split_reference(reference: str) -> tuple[str, Options]:
    """(place, options); the playground keeps the options of its own, and a folder the `?` in its name.

    Raises:
        DataError: If an option is unknown, given twice or out of bounds.

    Example:
        >>> split_reference("playground:1?n=50&weight=2")
        ('playground:1?n=50', Options(weight=2.0, subset_seed=0))
    """
    place, mark, query = reference.rpartition("?")
    is_playground = reference.startswith("playground")
    if not mark or (not is_playground and local_path(reference).exists()):
        return reference, Options()
    words = query.split("&")
    ours = [word for word in words if not is_playground or word.partition("=")[0] in Options.model_fields]
    given = parse_qsl("&".join(ours), keep_blank_values=True)
    if len(dict(given)) < len(given):
        raise DataError(f"'{reference}' gives an option twice. Keep one.")
    try:
        options = Options.build(dict(given))
    except ConfigError as error:
        raise DataError(f"'{reference}': {error}") from None
    rest = "&".join(word for word in words if word not in ours)
    return (f"{place}?{rest}" if rest or not ours else place), options
