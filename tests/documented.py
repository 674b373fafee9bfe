"""Commands and code that README, docs, examples and docstrings show."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *(path for path in sorted((ROOT / "docs").rglob("*.md")) if "generated" not in path.parts),
]
CODE = [path for room in ("src", "examples", "benchmarks") for path in sorted((ROOT / room).rglob("*.py"))]
SCRIPTS = [ROOT / "examples/Dockerfile", *sorted((ROOT / "examples").glob("*.sbatch"))]
SHELL = ("", "sh", "bash", "console")
LAUNCHERS = ("attar", "torchrun", "srun", "python", "python3", "docker", "apptainer", "mpirun")
_LAUNCHED = "|".join(name for name in LAUNCHERS if name != "attar")
_MENTION = re.compile(rf"`(?:\w+=\S+ )?(?:(?:{_LAUNCHED}) [^`]*\s)?attar ([^`]+)`")
# with a flag, since a sentence may begin with attar too
_COMMAND = rf"((?:{'|'.join(LAUNCHERS)}) (?=.* --[\w.-]+(?:[ =]|$))(?:.*\\\n)*.*)"
_FENCE = re.compile(r"^(`{3,})([^\n]*)\n(.*?)^\1 *$", re.S | re.M)


@dataclass(frozen=True)
class Block:
    """A fenced block: what stands behind its fence, its text, and where it is."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    """All fenced blocks of a page."""
    text = page.read_text(encoding="utf-8")
    for found in _FENCE.finditer(text):
        yield Block(page, text.count("\n", 0, found.start()) + 1, found[2].strip(), found[3])


def commands(block: Block) -> Iterator[list[str]]:
    """The words behind `attar` of every command in a block of shell, or in the lists of a block of YAML."""
    if block.language == "yaml":
        for words in _lists(list(yaml.safe_load_all(block.text))):
            yield from _attar_words(words)
    elif block.language in SHELL:
        for line in block.text.replace("\\\n", " ").splitlines():
            if re.search(r"\battar\b", line):
                yield from _of_line(line)


def shown_in_code(path: Path) -> Iterator[Block]:
    """Commands in the docstrings of a Python file, each a block of its own."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            text = ast.get_docstring(node) or ""
            for found in re.finditer(rf"^ *{_COMMAND}", text, re.M):
                yield Block(path, getattr(node, "lineno", 1) + text.count("\n", 0, found.start()), "", found[1])


def shown_in_script(path: Path) -> Iterator[Block]:
    """Commands of a script and of its comments, those of a batch job with the settings that its comment names."""
    text = path.read_text(encoding="utf-8")
    for found in re.finditer(rf"^#  +{_COMMAND}", text, re.M):
        yield Block(path, text.count("\n", 0, found.start()) + 1, "", found[1])
    if path.suffix == ".sbatch":
        body = re.sub(r"^#.*$", "", text, flags=re.M)
        yield Block(path, 1, "", body.replace('"$settings"', "run.yaml"))


def mentions(page: Path) -> Iterator[list[str]]:
    """The words behind `attar` of commands within sentences; those with an ellipsis stop before it."""
    for text in _MENTION.findall(_FENCE.sub("", page.read_text(encoding="utf-8"))):
        yield shlex.split(re.split(r"\s\S*(?:…|\.\.\.)", text)[0])


def names_used(block: Block) -> Iterator[str]:
    """Dotted names of attar in a block of Python: what it imports, and what it takes from `attar`."""
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "attar":
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute) and re.fullmatch(r"attar(\.\w+)+", ast.unparse(node)):
            yield ast.unparse(node)


def settings_made(block: Block) -> Iterator[ast.Call]:
    """Calls of `attar.SomethingConfig(...)` in a block of Python whose arguments are all literal."""
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.Call) and re.fullmatch(r"(attar\.)?\w+Config", ast.unparse(node.func)):
            yield node


def _of_line(line: str) -> Iterator[list[str]]:
    segment: list[str] = []
    reader = shlex.shlex(line, posix=True, punctuation_chars=";&|")
    reader.whitespace_split = True
    for word in [*reader, ";"]:
        if set(word) <= set(";&|"):
            yield from _attar_words(segment)
            segment = []
        else:
            segment.append(word)


def _attar_words(segment: list[str]) -> Iterator[list[str]]:
    while segment and re.match(r"\w+=", segment[0]):  # VARIABLE=value command
        segment = segment[1:]
    if "attar" not in segment or segment[0] not in LAUNCHERS or segment[:2] == ["docker", "build"]:
        return
    words = segment[len(segment) - segment[::-1].index("attar") :]
    if any(word.startswith(">") for word in words):
        words = words[: next(place for place, word in enumerate(words) if word.startswith(">"))]
    yield words


def _lists(value: object) -> Iterator[list[str]]:
    if isinstance(value, list) and value and all(isinstance(part, str) for part in value):
        yield value
    elif isinstance(value, list):
        for part in value:
            yield from _lists(part)
    elif isinstance(value, dict):
        for part in value.values():
            yield from _lists(part)
