"""What README and docs show is so: the site builds, and every command is one that attar takes."""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import os
import re
import subprocess
import sys

import pytest
import yaml

import attar
from attar.cli import VERBS, main
from documented import (
    CODE,
    PAGES,
    ROOT,
    SCRIPTS,
    Block,
    blocks,
    commands,
    mentions,
    names_used,
    settings_made,
    shown_in_code,
    shown_in_script,
)
from small_pools import make_pool
from small_runs import environment, write_pictures

BLOCKS = [block for page in PAGES for block in blocks(page)]
PYTHON = [block for block in BLOCKS if block.language == "python"]
SHOWN = [
    *BLOCKS,
    *(block for path in CODE for block in shown_in_code(path)),
    *(block for path in SCRIPTS for block in shown_in_script(path)),
]
COMMANDS = [(block.name, words) for block in SHOWN for words in commands(block)]
SHOWN_ALONE = ("--help", "-h", "--version", "-V", "--list-recipes", "--list", "--table")


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """A folder of someone who reads the README: its settings lie in run.yaml."""
    monkeypatch.chdir(tmp_path)
    settings = next(block for block in blocks(ROOT / "README.md") if block.language == "yaml")
    (tmp_path / "run.yaml").write_text(settings.text)
    return tmp_path


def test_there_are_commands_of_every_verb():
    assert {words[0] for _, words in COMMANDS if words} >= set(VERBS)


def test_commands_of_scripts_and_docstrings_are_found():
    def of(blocks):
        return [words for block in blocks for words in commands(block)]

    docker, slurm = SCRIPTS
    assert ["doctor"] in of(shown_in_script(docker))
    assert ["distill", "--config", "run.yaml"] in of(shown_in_script(docker))
    assert of(shown_in_script(slurm)) == [["distill", "--config", "run.yaml"]]
    recipes = of(shown_in_code(ROOT / "src/attar/recipes/proteus.py"))
    assert {words[words.index("--recipe") + 1] for words in recipes} >= {"proteus_s", "proteus_b_synclr"}


@pytest.mark.parametrize(("name", "words"), COMMANDS, ids=[name for name, _ in COMMANDS])
def test_attar_takes_the_command(name, words, reader, capsys):
    assert not {"…", "..."} & set(words), "write it out, so that it can be tried, or mark the block as text"
    if "--table" in words:
        assert main(words) == 2
        assert "holds no results" in capsys.readouterr().err
        return
    if "--list" in words:
        (reader / words[words.index("--data-root") + 1]).mkdir(parents=True)
    alone = not words or any(word in words for word in SHOWN_ALONE)
    code = main(words if alone else [*words, "--print-config"])
    said = capsys.readouterr()
    assert (code, said.err) == (0, "")
    assert alone or isinstance(yaml.safe_load(said.out), dict)


@pytest.mark.parametrize(
    ("name", "words"),
    [pytest.param(page.name, words, id=f"{page.name}-{' '.join(words)}") for page in PAGES for words in mentions(page)],
)
def test_what_sentences_mention_has_no_unknown_verb_or_flag(name, words, reader, capsys):
    if any(word in words for word in SHOWN_ALONE):
        assert words[0] in (*VERBS, "VERB")
    elif main([*words, "--print-config"]):
        allowed = ("is missing: give", "values, got", "value, got")  # a command that is named in part
        assert all(any(part in line for part in allowed) for line in capsys.readouterr().err.splitlines())


@pytest.mark.parametrize(
    "call",
    [pytest.param(call, id=f"{block.name}+{call.lineno}") for block in PYTHON for call in settings_made(block)],
)
def test_settings_made_in_python_hold(call):
    kind = getattr(attar, call.func.attr if isinstance(call.func, ast.Attribute) else call.func.id)
    kind.build({word.arg: ast.literal_eval(word.value) for word in call.keywords})


def resolve(name):
    """What a dotted name means."""
    value = importlib.import_module("attar")
    for depth, part in enumerate(name.split(".")[1:], 2):
        with contextlib.suppress(ImportError):
            importlib.import_module(".".join(name.split(".")[:depth]))
        value = getattr(value, part)
    return value


@pytest.mark.parametrize("block", [pytest.param(block, id=block.name) for block in PYTHON])
def test_names_in_python_are_there(block):
    for name in names_used(block):
        resolve(name)


def test_a_name_that_is_not_there_would_be_noticed():
    (name,) = names_used(Block(ROOT / "README.md", 1, "python", "from attar.data.sources import open_sauce"))
    with pytest.raises(AttributeError):
        resolve(name)


def python_of(page, words):
    """The block of Python on a page that has these words."""
    return next(block for block in PYTHON if block.page.name == page and words in block.text)


def test_the_backbone_has_what_the_docs_say(reader):
    text = python_of("models.md", "load_backbone").text.replace('"dinov2_vits14_pretrain.pth"', '"random"')
    names = {}
    exec(text, names)
    shapes = re.findall(r"^(tokens\S+|backbone\.embed\(.*\)\))  # (\([\d, ]+\))", text.replace(".shape", ""), re.M)
    assert len(shapes) == 5
    for code, shape in shapes:
        value = eval(code, names)
        assert tuple(getattr(value, "shape", value)) == ast.literal_eval(shape), code


def test_a_pool_answers_as_the_docs_say(reader):
    write_pictures(reader / "images", 18)
    make_pool(reader / "pools/web", [str(reader / "images")])
    names = {"attar": attar}
    exec(python_of("curation.md", "Pool.open").text, names)
    assert names["vectors"].shape[0] == 18


@pytest.mark.parametrize(
    "text", ["attar distil --data d", "cd x && attar evaluate", "torchrun -m -- attar embed --out o"]
)
def test_a_wrong_command_would_be_noticed(text, capsys):
    (words,) = commands(Block(ROOT / "README.md", 1, "", text))
    assert main([*words, "--print-config"]) == 2
    assert capsys.readouterr().err


def test_commands_are_found_behind_launchers_and_in_yaml():
    def found(text, language=""):
        return list(commands(Block(ROOT / "README.md", 1, language, text)))

    assert found("A=1 attar embed --out 'a b' \\\n  --seed 1 > log  # why") == [
        ["embed", "--out", "a b", "--seed", "1"]
    ]
    assert found("pip install attar\ndocker build -t attar .\ngit clone attar") == []
    assert found("docker run --rm attar attar doctor; srun torchrun -m attar x") == [["doctor"], ["x"]]
    assert found("spec:\n  - {command: [torchrun, -m, attar, doctor]}", "yaml") == [["doctor"]]
    assert found("attar distil", "text") == []


def generated():
    """What makes pages from the code."""
    found = importlib.util.spec_from_file_location("generated", ROOT / "docs/_ext/generated.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_every_public_value_says_what_it_is():
    make = generated()
    pages = {package: "\n".join(make._package_page(package, "")) for package in ("attar", *make.ROOMS)}
    assert "Distance of a student token to its teacher token" in pages["attar.losses"]
    assert "Whose figure it is" in pages["attar.reports"]
    assert "py:function:: attar.export(config" in pages["attar"]
    with pytest.raises(LookupError, match="no text stands below"):
        make._said_below("attar.losses", "token_distance")  # which is a function


def test_the_page_of_a_verb_leads_to_its_guide():
    make = generated()
    for verb in ("plan", "distill", "export"):
        assert ".md)." in "\n".join(make._verb_page(verb, ROOT / "docs"))


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    if importlib.util.find_spec("sphinx") is None:
        pytest.skip('needs pip install ".[docs]"')
    pages = "\n".join(page.read_text() for page in (*PAGES, ROOT / "docs/conf.py"))
    (shown,) = {" ".join(found.split()) for found in re.findall(r"sphinx-build [^`\"]+", pages)}
    *words, _ = shown.split()[1:]
    assert "-W" in words
    command = [sys.executable, "-m", "sphinx", "-q", "--keep-going", *words, str(tmp_path / "site")]
    finished = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    names = (tmp_path / "site" / "generated" / "api" / "attar.html").read_text()
    missing = [name for name in attar.__all__ if name != "__version__" and f'id="attar.{name}"' not in names]
    assert not missing
    for verb in VERBS:
        assert (tmp_path / "site" / "generated" / "verbs" / f"{verb}.html").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)  # minutes of work, and more on a machine that others use
@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "tutorials").glob("*.md")), ids=lambda page: page.stem)
def test_the_tutorial_runs_offline_in_few_steps(page, tmp_path):
    """All its commands with four steps in place of any number, in a folder that is empty but for the benchmarks."""
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")
    lines = [
        "set -euo pipefail",
        f'attar() {{ "{sys.executable}" -m attar "$@"; }}',
        f'python() {{ "{sys.executable}" "$@"; }}',
    ]
    for block in blocks(page):
        if block.language == "sh":
            lines.append(re.sub(r"(--\S*steps) \d+", r"\1 4", block.text))
        elif block.language == "python":
            lines.append(f"python - <<'END'\n{block.text}END")
    finished = subprocess.run(
        ["bash", "-c", "\n".join(lines)],
        cwd=tmp_path,
        env=environment(OMP_NUM_THREADS=str(os.cpu_count()), ATTAR_CACHE=str(tmp_path / "cache")),
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-3000:]
