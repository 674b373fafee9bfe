"""Pages made from the code when the site is built: one a verb, from its settings, and the reference of public names.

They are written below `docs/generated`, which git ignores. A verb that `attar.cli` gains, or a name that a package's
`__all__` gains, has its page or its entry with the next build.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib
import inspect
import io
import itertools
import shutil
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from attar import cli

MODES = {"curate": ("--sentences",), "transfer": ("--study",), "data": ("pack",)}
"""Verbs that have settings of another kind behind a second word."""

GUIDES = {
    "distill": "proteus",
    "distill-vl": "dime_fm",
    "transfer": "transfer",
    "predict": "transfer",
    "evaluate": "evaluation",
    "embed": "curation",
    "curate": "curation",
    "curate --sentences": "sentences",
    "transfer --study": "transfer",
    "data pack": "data",
    "quickstart": "start",
}
"""Pages that explain a verb; for others a page of the verb's name, if there is one."""

ROOMS = {
    "attar.models": "Teachers and students",
    "attar.losses": "Losses",
    "attar.methods": "What is learned",
    "attar.train": "How it runs",
    "attar.evaluation": "Judging a backbone",
    "attar.curation": "Pools and sets",
    "attar.export": "Students on disk",
    "attar.reports": "Tables and pages",
    "attar.types": "What rooms hand each other",
    "attar.errors": "Errors",
}


def setup(app: Any) -> dict[str, bool]:
    """Sphinx asks for this."""
    app.connect("builder-inited", lambda app: write_pages(Path(app.srcdir)))
    app.connect("source-read", _links_stay_inside)
    return {"parallel_read_safe": True}


def write_pages(docs: Path) -> None:
    """Write all generated pages anew below `docs/generated`."""
    folder = docs / "generated"
    shutil.rmtree(folder, ignore_errors=True)
    for name, text in pages(docs):
        path = folder / f"{name}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    shutil.copytree(docs.parent / "notes", folder / "notes")


def pages(docs: Path) -> Iterator[tuple[str, str]]:
    """Name and Markdown of every generated page."""
    for verb in cli.VERBS:
        yield f"verbs/{verb}", "\n".join(_verb_page(verb, docs))
    yield "api/attar", "\n".join(_package_page("attar", "Public names"))
    yield "api/config", "\n".join(_settings_page())
    for package, title in ROOMS.items():
        yield f"api/{package.rpartition('.')[2]}", "\n".join(_package_page(package, title))


def _links_stay_inside(_app: Any, _page: str, source: list[str]) -> None:
    """Notes lie beside docs in the repository, and are copied into the site: links that serve there serve here."""
    for up in ("../../", "../"):
        source[0] = source[0].replace(f"]({up}notes/", f"]({up.removeprefix('../')}generated/notes/")


# --- verbs ----------------------------------------------------------------------------------------------------------


def ways() -> list[tuple[str, ...]]:
    """The words of each verb, and of each of its modes."""
    return [(verb, *flags) for verb in cli.VERBS for flags in ((), *((flag,) for flag in MODES.get(verb, ())))]


@functools.cache
def settings_of(*words: str) -> tuple[type[BaseModel], str] | None:
    """The config model that `attar WORDS --help` shows, and what stands before its flags; None if it shows none."""
    shown: list[tuple[type[BaseModel], str]] = []
    print_help = cli._help
    cli._help = lambda model, prog, more: shown.append((model, prog)) or 0  # in place of tyro's, which only prints
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            cli.main([*words, "--help"])
    finally:
        cli._help = print_help
    return shown[0] if shown else None


def _verb_page(verb: str, docs: Path) -> Iterator[str]:
    yield f"# attar {verb}\n"
    for words in ways():
        if words[0] != verb:
            continue
        flags, name = words[1:], " ".join(words)
        found = settings_of(*words)
        if flags:
            yield f"\n## attar {name}\n"
        guide = GUIDES.get(name, verb.replace("-", "_"))
        explained = f"Explained in [](../../{guide}.md).\n" if (docs / f"{guide}.md").exists() else ""
        if found is None:
            yield f"{explained}\n```text\n{_printed(*words)}```\n"
            continue
        model, prog = found
        yield f"{_markdown(inspect.getdoc(model))}\n\n{explained}"
        needed = [_flag((key,)) for key, field in model.model_fields.items() if field.is_required()]
        rest = " ".join(f"{flag} {flag.removeprefix('--').upper()}" for flag in needed if flag != "--model")
        head = prog if " MODEL" in prog or flags else f"attar {name}"
        yield f"```text\n{head} {rest}\n```\n".replace(" \n", "\n")
        yield "`--config FILE` reads settings from YAML, `--print-config` shows what they come to.\n"
        yield from _sections(model, (), heading="###" if flags else "##")


def _printed(*words: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as said:
        cli.main([*words, "--help"])
    return said.getvalue()


def _sections(model: type[BaseModel], path: tuple[str, ...], *, heading: str) -> Iterator[str]:
    """A table of the settings of a model, and one of each model within it."""
    plain = {name: field for name, field in model.model_fields.items() if _nested(field) is None}
    if plain:
        yield "| flag | value | default | meaning |\n|---|---|---|---|"
        yield from (
            f"| `{_flag((*path, name))}` | {kind(field)} | {_default(field)} | {_cell(field.description)} |"
            for name, field in plain.items()
        )
        yield ""
    for name, field in model.model_fields.items():
        inner = _nested(field)
        if inner is not None:
            yield f"{heading} {_flag((*path, name))}\n\n{_markdown(inspect.getdoc(inner))}\n"
            yield from _sections(_with_defaults_of(field, inner), (*path, name), heading=heading)


def _nested(field: FieldInfo) -> type[BaseModel] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _with_defaults_of(field: FieldInfo, model: type[BaseModel]) -> type[BaseModel]:
    """The model whose defaults are those of the instance that a field holds by default."""
    instance = field.default
    if not isinstance(instance, BaseModel):
        return model
    changed = {name: getattr(instance, name) for name in model.model_fields}
    here = type(model.__name__, (model,), {"__doc__": model.__doc__})
    here.model_fields.update(
        {name: FieldInfo.merge_field_infos(field, default=changed[name]) for name, field in model.model_fields.items()}
    )
    return here


def _flag(path: tuple[str, ...]) -> str:
    return "--" + ".".join(path).replace("_", "-")


def kind(field: FieldInfo) -> str:
    """What a setting takes, in words, with its bounds.

    Example:
        >>> from attar.config import OptimConfig
        >>> kind(OptimConfig.model_fields["lr"])
        'number > 0'
    """
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    bounds = [
        f"{sign} {getattr(rule, name):g}"
        for rule in field.metadata
        for name, sign in signs.items()
        if getattr(rule, name, None) is not None
    ]
    return f"{_kind(field.annotation)} {', '.join(bounds)}".strip()


def _kind(annotation: Any) -> str:
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _kind(parts[0])
    if origin is typing.Literal:
        return " \\| ".join(f"`{part}`" for part in parts)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_kind(part) for part in parts if part is not type(None))
    if origin is tuple:
        if parts[-1] is Ellipsis:
            return f"{_kind(parts[0])}, one or more"
        return f"{len(parts)} × {_kind(parts[0])}"
    if origin in (dict, typing.Mapping) or annotation is dict or "Mapping" in str(origin):
        return "mapping (in YAML)"
    return {int: "whole number", float: "number", bool: "yes or no", str: "text"}.get(annotation, str(annotation))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "needed"
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple | list):
        return " ".join(_shown(part) for part in value) or "–"
    return _shown(value) if not isinstance(value, dict) or value else "–"


def _shown(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return f"`{_cell(text)}`" if text else "–"


def _cell(text: str | None) -> str:
    """Text as a cell of a table: no pipe ends it, and what stands in angle brackets is no HTML."""
    return (text or "").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def _markdown(text: str | None) -> str:
    return (text or "").split("\nExample")[0].split("\nRaises")[0].strip()


# --- reference ------------------------------------------------------------------------------------------------------


def _package_page(package: str, title: str) -> Iterator[str]:
    """Every name of a package's `__all__`, with what its docstring says."""
    module = importlib.import_module(package)
    yield f"# {title}: `{package}`\n"
    first, _, rest = (inspect.getdoc(module) or "").partition("\n\n")
    yield f"{first}\n"
    if "──" in rest:  # a drawn tree
        yield f"```text\n{rest}\n```\n"
    names = [name for name in _names_of(module) if name != "__version__"]
    for heading, belongs in _GROUPS:
        chosen = [name for name in names if belongs(getattr(module, name))]
        if chosen:
            yield f"## {heading}\n"
            yield from (_entry(package, name, getattr(module, name)) for name in chosen)


def _names_of(module: types.ModuleType) -> list[str]:
    """What a package says is public; of a single file, the classes and functions written there."""
    own = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
    return getattr(module, "__all__", [name for name in own if not name.startswith("_")])


def _is_settings(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, BaseModel)


_GROUPS: tuple[tuple[str, Callable[[Any], bool]], ...] = (
    ("Functions", lambda value: inspect.isroutine(value) or isinstance(value, types.ModuleType)),
    ("Settings", _is_settings),
    ("Errors", lambda value: isinstance(value, type) and issubclass(value, BaseException)),
    (
        "Classes",
        lambda value: isinstance(value, type) and not _is_settings(value) and not issubclass(value, BaseException),
    ),
    ("Values", lambda value: not isinstance(value, type | types.ModuleType) and not inspect.isroutine(value)),
)


def _entry(package: str, name: str, value: Any) -> str:
    """The directive that documents a name."""
    where = f"{package}.{name}"
    if _is_settings(value):
        used = next((each for each in ways() if (found := settings_of(*each)) and found[0] is value), None)
        more = (
            f"\n\n   Its settings are the flags of :doc:`attar {' '.join(used)} <../verbs/{used[0]}>`." if used else ""
        )
        lines = _markdown(inspect.getdoc(value)).replace("\n", "\n   ")
        return _rst(f".. py:class:: {where}(**settings)\n\n   {lines}{more}\n")
    if isinstance(value, type):
        elsewhere = package != "attar" and getattr(importlib.import_module("attar"), name, None) is value
        return _rst(f".. autoclass:: {where}\n   :members:\n{'   :no-index:' if elsewhere else ''}\n")
    if isinstance(value, types.ModuleType):  # a room that is called as the verb of its name
        verb = getattr(importlib.import_module(f"attar.recipes.{name}"), name)
        said = _markdown(inspect.getdoc(verb)).split("\n\n")[0].replace("\n", "\n   ")
        return _rst(f".. py:function:: {where}{inspect.signature(verb)}\n\n   {said}\n")
    if inspect.isroutine(value):
        return _rst(f".. autofunction:: {where}\n")
    return _rst(f".. py:data:: {where}\n\n   {_said_below(package, name)}\n")


def _said_below(package: str, name: str) -> str:
    """The text that stands below the assignment of a value, in the module that it comes from.

    Raises:
        LookupError: If none does.
    """
    for module in _modules_below(package):
        body = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8")).body
        for node, after in itertools.pairwise(body):
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            is_it = any(isinstance(target, ast.Name) and target.id == name for target in targets)
            if is_it and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                return " ".join(str(after.value.value).split())
    raise LookupError(f"{package}.{name} is public, and no text stands below its assignment. Say there what it is.")


def _modules_below(package: str) -> Iterator[types.ModuleType]:
    module = importlib.import_module(package)
    yield module
    for path in sorted(Path(str(module.__file__)).parent.glob("*.py")):
        if not path.name.startswith("__"):
            yield importlib.import_module(f"{package}.{path.stem}")


def _settings_page() -> Iterator[str]:
    """Every settings model, those of sections too, with its fields."""
    config = importlib.import_module("attar.config")
    yield "# Settings: `attar.config`\n"
    yield f"{_markdown(inspect.getdoc(config))} A verb's own are on its page.\n"
    yield _rst(".. autoclass:: attar.config.Config\n   :members: build, replace\n   :no-index:\n")
    verbs = {found[0] for each in ways() if (found := settings_of(*each))}
    for name in config.__all__:
        model = getattr(config, name)
        if not _is_settings(model) or model in verbs or name == "Config":
            continue
        yield f"## {name}\n\n{_markdown(inspect.getdoc(model))}\n"
        yield "| setting | value | default | meaning |\n|---|---|---|---|"
        yield from (
            f"| `{key}` | {kind(field)} | {_default(field)} | {_cell(field.description)} |"
            for key, field in model.model_fields.items()
            if _nested(field) is None
        )
        yield ""


def _rst(text: str) -> str:
    return f"```{{eval-rst}}\n{text}```\n"
