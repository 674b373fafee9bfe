"""Starting points by name: what a command line or a config says, over what the recipe that it names says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from attar.config import Config
from attar.config.flags import merge
from attar.errors import ConfigError, did_you_mean


def over_recipe(
    settings: Mapping[str, Any],
    recipes: Mapping[str, Callable[..., Config]],
    places: tuple[str, ...],
    *,
    drop: Callable[[dict[str, Any]], None] = lambda start: None,
) -> dict[str, Any]:
    """Nested settings; those not given come from the recipe that `recipe` names, if any.

    Args:
        settings: What was given.
        recipes: By name.
        places: Arguments of a recipe, which the settings must give.
        drop: Takes out of a recipe's settings what the given ones make meaningless.

    Raises:
        ConfigError: If there is no such recipe.
    """
    name = settings.get("recipe")
    if name is None:
        return dict(settings)
    if not isinstance(name, str) or name not in recipes:
        raise ConfigError(f"no recipe {name!r}.{did_you_mean(str(name), recipes)} Known: {', '.join(recipes)}.")
    start = recipes[name](**dict.fromkeys(places, "-")).model_dump(exclude=set(places))
    for asked, other in (("max_steps", "epochs"), ("epochs", "max_steps")):
        if settings.get(asked) is not None:
            start[other] = None  # the recipe's length gives way to the one asked for
    drop(start)
    return merge(start, dict(settings))
