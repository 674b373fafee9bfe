"""The command line: verb to function, nothing else. Torch is imported only when a verb needs it."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from attar._version import __version__
from attar.errors import AttarError, ConfigError, LostRankError, did_you_mean
from attar.utils.plain import plain

if TYPE_CHECKING:
    from attar.config import Config

T = TypeVar("T", bound="Config")

HELP = f"""attar {__version__}: distil vision foundation models into small ones.

  attar quickstart [--out DIR]       see it work: three minutes, no data, no GPU, no network
  attar distill ...                  a small backbone from a big one and your images (Proteus)
  attar distill-vl ...               a small CLIP, from images and sentences that are no pairs (DIME-FM)
  attar transfer ...                 a small model for your task, from few labels and a pool of images
  attar predict MODEL ...            classify images with it
  attar evaluate MODEL ...           how good a backbone or a run's student is, by the papers' benchmarks
  attar export RUN|MODEL ...         ONNX, int8, timm or transformers: proven on images, timed, with a card
  attar report RUN...                one page of a run or several: figures, curves, what teacher and student see
  attar data pack ...                images scaled down once, into shards that are quick to decode
  attar embed ...                    a pool of image vectors, to choose training images from
  attar curate ...                   a transfer set: images of a pool that are like those of your task
  attar curate --sentences ...       of a corpus of text, the sentences that your images show
  attar plan VERB ...                what a verb would find, take and cost, and what is wrong, before it runs
  attar doctor                       what is installed here, what is wrong, how to mend it

attar VERB --help lists every setting. --debug shows tracebacks. --version prints the version.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 1 for a failed run, 2 for wrong input, 130 or 143 for a signal."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [word for word in arguments if word != "--debug"]
    try:
        code = _dispatch(arguments)
        sys.stdout.flush()  # here, where a reader that has gone can be answered
        return code
    except AttarError as error:
        if debug:
            traceback.print_exc()
        if not error.is_shared or _rank() in ("", "0"):
            _complain(f"{type(error).__name__}: {error}")
        _tell_launcher(error, debug=debug)
        return error.exit_code
    except KeyboardInterrupt:
        _complain("Interrupted: stopped by SIGINT while starting. The same command begins anew.")
        return 130
    except BrokenPipeError:  # the reader of our output has gone (attar ... | head)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if debug:
            traceback.print_exc()
        reason = str(error).strip() or "no message"
        _complain(
            f"{type(error).__name__}: {reason}\n"
            "  This is not an error attar knows. Run again with --debug to see where it comes from."
        )
        _tell_launcher(error, debug=debug)
        return 1


def run() -> NoReturn:
    """Run the command of `sys.argv` and end the process with its exit code."""
    code = main()
    if _rank():
        from attar.utils.distributed import leave

        leave(code)
    sys.exit(code)


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if arguments[0] in ("-V", "--version"):
        print(__version__)
        return 0
    verb, rest = arguments[0], arguments[1:]
    if verb not in VERBS:
        raise ConfigError(f"no verb '{verb}'.{did_you_mean(verb, VERBS)} Known: {', '.join(VERBS)}.")
    return VERBS[verb](rest)


@dataclass(frozen=True, kw_only=True)
class Verb:
    """A verb that reads settings and hands them to one function.

    Attributes:
        name: How it is called, with a placeholder for its first word.
        settings: Class of `attar.config`.
        does: Module below `attar.recipes`; the function has its name, or follows a colon.
        place: Setting that words before the first flag give; nothing if there is none.
        recipes: Module below `attar.recipes` with settings by name (`--recipe`, `--list-recipes`).
        more: What else help tells, beside what all verbs have.
    """

    name: str
    settings: str
    does: str
    place: str = ""
    recipes: str = ""
    more: str = ""

    def __call__(self, arguments: list[str]) -> int:
        """Do it, or print what was asked for instead."""
        if self.recipes and "--list-recipes" in arguments:
            return _list_recipes(_recipe(self.recipes).RECIPES)
        config = self.asked(arguments)
        if config is not None:
            self.function(config)
        return 0

    @property
    def function(self) -> Callable[[Any], object]:
        """What does it; imports torch."""
        module, _, name = self.does.partition(":")
        found: Callable[[Any], object] = getattr(_recipe(module), name or module)
        return found

    @property
    def model(self) -> type[Config]:
        """The class of its settings."""
        found: type[Config] = getattr(import_module("attar.config"), self.settings)
        return found

    def asked(self, arguments: list[str], *, planned: bool = False) -> Config | None:
        """Its settings, or None after printing its help or the settings."""
        prog = f"attar {'plan ' if planned else ''}{self.name}"
        more = f"{', --list-recipes' if self.recipes else ''}{self.more}"
        if planned:
            more = f", {', '.join(PLAN_FLAGS)} (attar plan --help)"
        return _asked(arguments, self.model, prog, parse=self.parse, more=more)

    def parse(self, arguments: list[str]) -> Any:
        """Settings from flags over `--config FILE` over `--recipe NAME` over the defaults.

        Raises:
            ConfigError: If a setting is unknown, missing or out of bounds.
        """
        given = _given(self.model, arguments, place=self.place)
        return _recipe(self.recipes).from_recipe(given) if self.recipes else self.model.build(given)


def _recipe(module: str) -> Any:
    return import_module(f"attar.recipes.{module}")


def _list_recipes(recipes: Mapping[str, Callable[..., object]]) -> int:
    for name, recipe in recipes.items():
        print(f"  {name:24}{(recipe.__doc__ or '').splitlines()[0]}")
    return 0


def _asked(
    arguments: list[str], model: type[T], prog: str, *, parse: Callable[[list[str]], T] | None = None, more: str = ""
) -> T | None:
    """Settings, or None after printing help or the resolved settings."""
    if _wants_help(arguments):
        _help(model, prog, f"--config FILE, --print-config{more}")
        return None
    words = [word for word in arguments if word != "--print-config"]
    config = parse(words) if parse else model.build(_given(model, words))
    if "--print-config" not in arguments:
        return config
    from attar.config.files import to_yaml

    print(to_yaml(config), end="")
    return None


def _given(model: type[Config], arguments: list[str], *, place: str = "") -> dict[str, Any]:
    """What flags say, and words before the first of them, over what `--config FILE` says."""
    from attar.config.files import read_settings
    from attar.config.flags import merge, parse_flags

    arguments, file = _take(arguments, "--config")
    if place and arguments and not arguments[0].startswith("-"):
        arguments = [f"--{place}", *arguments]
    return merge(read_settings(Path(file).expanduser()) if file else {}, parse_flags(model, arguments))


def _take(arguments: list[str], flag: str) -> tuple[list[str], str | None]:
    """Remove `flag VALUE` (or `flag=VALUE`) from the arguments and return the value."""
    rest, value = [], None
    words = iter(arguments)
    for word in words:
        if word == flag:
            value = next(words, None)
            if value is None:
                raise ConfigError(f"{flag} needs a value.")
        elif word.startswith(f"{flag}="):
            value = word.removeprefix(f"{flag}=")
        else:
            rest.append(word)
    return rest, value


def _has(arguments: list[str], flag: str) -> bool:
    return any(word.partition("=")[0] == flag for word in arguments)


def _wants_help(arguments: list[str]) -> bool:
    return "-h" in arguments or "--help" in arguments


def _help(model: type, prog: str, more: str) -> int:
    """Print what tyro makes of a config model."""
    import tyro

    with contextlib.suppress(SystemExit):
        tyro.cli(model, args=["--help"], prog=prog)
    print(f"Also: {more}")
    return 0


def _quickstart(arguments: list[str]) -> int:
    from attar.config.small import QuickstartConfig

    config = _asked(arguments, QuickstartConfig, "attar quickstart")
    if config is not None:
        from attar.recipes.quickstart import quickstart

        quickstart(config.out)
    return 0


def _doctor(arguments: list[str]) -> int:
    from attar.config.small import DoctorConfig

    if _asked(arguments, DoctorConfig, "attar doctor") is None:
        return 0
    from attar.recipes.doctor import doctor

    return doctor()


def _evaluate(arguments: list[str]) -> int:
    if not _wants_help(arguments):
        if "--list" in arguments:
            return _list_tasks([word for word in arguments if word != "--list"])
        if "--table" in arguments:
            return _print_table([word for word in arguments if word != "--table"])
    return EVALUATE(arguments)


def _list_tasks(arguments: list[str]) -> int:
    """Protocols, suites and data sets, and which of these lie below `--data-root`."""
    arguments, root = _take(arguments, "--data-root")
    if arguments:
        raise ConfigError(f"'{arguments[0]}' does not go with --list. Try attar evaluate --list --data-root DIR.")
    folder = Path(root or ".").expanduser()
    if not folder.is_dir():
        raise ConfigError(f"--data-root {root} is no folder. Give the one that the data sets lie in.")
    from attar.recipes.listing import list_tasks

    print(plain(list_tasks(folder)))
    return 0


def _print_table(arguments: list[str]) -> int:
    """The table of all results in `--out`, with published figures beside; needs no model and no GPU."""
    arguments, out = _take(arguments, "--out")
    arguments, names = _take(arguments, "--published")
    if out is None or arguments:
        raise ConfigError("--table takes the directory of the results: attar evaluate --table --out DIR.")
    from attar.recipes.listing import table_of

    print(plain(table_of(Path(out).expanduser(), names or "")))
    return 0


def _curate(arguments: list[str]) -> int:
    return (SENTENCES if _has(arguments, "--sentences") else CURATE)(arguments)


def _transfer(arguments: list[str]) -> int:
    if "--study" in arguments:
        return STUDY([word for word in arguments if word != "--study"])
    for flag in ("--rows", "--labels", "--seeds"):
        if _has(arguments, flag):
            raise ConfigError(f"{flag} is for studies: give --study too. One run has --labels-per-class and --seed.")
    return TRANSFER(arguments)


def _data(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(DATA_HELP, end="")
        return 0
    if arguments[0] != "pack":
        raise ConfigError(f"no verb 'data {arguments[0]}'.{did_you_mean(arguments[0], ['pack'])} Known: data pack.")
    return PACK(arguments[1:])


def _plan(arguments: list[str]) -> int:
    """Settings of the plan are taken out, the rest is read as the verb itself reads it."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(PLAN_HELP, end="")
        return 0
    verb, rest = arguments[0], arguments[1:]
    mode = UNPLANNED.get(verb, "")
    if verb not in PLANNED or (mode and _has(rest, mode)):
        asked, guess = f"{verb} {mode}".strip(), "" if verb in VERBS else did_you_mean(verb, PLANNED)
        raise ConfigError(f"there is no plan for '{asked}'.{guess} There is one for {', '.join(PLANNED)}.")
    own: dict[str, str] = {}
    for flag, name in PLAN_FLAGS.items():
        rest, value = _take(rest, flag)
        own |= {} if value is None else {name: value}
    config = _quickstart_settings(rest) if verb == "quickstart" else PLANNED[verb].asked(rest, planned=True)
    if config is not None:
        from attar.config import PlanConfig
        from attar.recipes.plan import plan

        plan(config, PlanConfig.build(own))
    return 0


def _quickstart_settings(arguments: list[str]) -> Config | None:
    """Those of the run that it stands for."""
    from attar.config.small import QuickstartConfig

    config = _asked(arguments, QuickstartConfig, "attar plan quickstart", more=f", {', '.join(PLAN_FLAGS)}")
    if config is None:
        return None
    from attar.recipes.quickstart import quickstart_config

    return quickstart_config(config.out)


def _rank() -> str:
    """This process among those of a launcher, or nothing."""
    return os.environ.get("RANK", "") if os.environ.get("WORLD_SIZE", "1") != "1" else ""


def _complain(text: str) -> None:
    rank, text = _rank(), plain(text)
    print(f"[rank {rank}] {text}" if rank else text, file=sys.stderr)


def _tell_launcher(error: Exception, *, debug: bool) -> None:
    """Leave the reason where torchrun looks for it: its summary then says why the job ended."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if file is None:
        return
    text = traceback.format_exc() if debug else f"{type(error).__name__}: {error}"
    # the earliest is taken for the root of all, and to have lost a rank is none
    when = int(time.time()) + isinstance(error, LostRankError)
    reason = {"message": text, "extraInfo": {"timestamp": str(when)}}
    with contextlib.suppress(OSError):
        Path(file).write_text(json.dumps({"message": reason}), encoding="utf-8")


DISTILL = Verb(name="distill", settings="DistillConfig", does="distill", recipes="proteus")
DISTILL_VL = Verb(name="distill-vl", settings="DistillVlConfig", does="distill_vl", recipes="dime_fm")
TRANSFER = Verb(name="transfer", settings="TransferConfig", does="transfer", more=", --study")
STUDY = Verb(name="transfer --study", settings="StudyConfig", does="study")
PREDICT = Verb(name="predict MODEL", settings="PredictConfig", does="predict", place="model")
EVALUATE = Verb(
    name="evaluate MODEL",
    settings="EvaluateConfig",
    does="evaluate",
    place="model",
    more=", --list, --table, --published NAME",
)
EXPORT = Verb(name="export RUN|MODEL", settings="ExportConfig", does="export", place="model")
REPORT = Verb(name="report RUN...", settings="ReportConfig", does="report", place="runs")
PACK = Verb(name="data pack", settings="PackConfig", does="pack")
EMBED = Verb(name="embed", settings="EmbedConfig", does="embed")
CURATE = Verb(name="curate", settings="CurateConfig", does="curate", more=", --sentences (see --sentences --help)")
SENTENCES = Verb(name="curate", settings="SentencesConfig", does="sentences:curate_sentences")

PLANNED = {
    "distill": DISTILL,
    "distill-vl": DISTILL_VL,
    "transfer": TRANSFER,
    "embed": EMBED,
    "curate": CURATE,
    "evaluate": EVALUATE,
    "quickstart": DISTILL,
}
"""Verbs that can be planned, with the one whose settings the plan is of."""

UNPLANNED = {"curate": "--sentences", "transfer": "--study"}
"""Flags that make another command of a verb, which has no plan."""

PLAN_FLAGS = {"--price-per-hour": "price_per_hour", "--probe-steps": "probe_steps", "--json": "json_file"}

PLAN_HELP = f"""attar plan VERB FLAGS OF THE VERB: a dry run; nothing is written into --out.

  VERB                 {", ".join(PLANNED)}
  --price-per-hour N   of the machine, in any currency, for the cost
  --probe-steps N      steps of each training that are timed, after those that warm up (20)
  --json FILE          write the plan to a file too

attar plan VERB --help lists the settings of the verb.
"""

DATA_HELP = """attar data pack ...: images scaled down once, into shards that are quick to copy, to list and to decode

attar data pack --help lists its settings.
"""

VERBS: dict[str, Callable[[list[str]], int]] = {
    "distill": DISTILL,
    "distill-vl": DISTILL_VL,
    "transfer": _transfer,
    "predict": PREDICT,
    "evaluate": _evaluate,
    "export": EXPORT,
    "report": REPORT,
    "data": _data,
    "embed": EMBED,
    "curate": _curate,
    "quickstart": _quickstart,
    "plan": _plan,
    "doctor": _doctor,
}

if __name__ == "__main__":
    run()
