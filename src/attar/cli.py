"""The command line: verb to function, nothing else. Torch is imported only when a verb needs it."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from attar._version import __version__
from attar.errors import AttarError, ConfigError, LostRankError, did_you_mean
from attar.utils.plain import plain

if TYPE_CHECKING:
    from attar.config import Config, DistillConfig, DistillVlConfig, EvaluateConfig

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


def _distill(arguments: list[str]) -> int:
    if "--list-recipes" in arguments:
        from attar.recipes.proteus import RECIPES

        return _list_recipes(RECIPES)
    from attar.config import DistillConfig

    config = _settings(arguments, DistillConfig, "attar distill", parse=parse_distill, more=", --list-recipes")
    if config is not None:
        from attar.recipes.distill import distill

        distill(config)
    return 0


def _distill_vl(arguments: list[str]) -> int:
    if "--list-recipes" in arguments:
        from attar.recipes.dime_fm import RECIPES

        return _list_recipes(RECIPES)
    from attar.config import DistillVlConfig

    more = ", --list-recipes"
    config = _settings(arguments, DistillVlConfig, "attar distill-vl", parse=parse_distill_vl, more=more)
    if config is not None:
        from attar.recipes.distill_vl import distill_vl

        distill_vl(config)
    return 0


def parse_distill(arguments: list[str]) -> DistillConfig:
    """Settings from flags over `--config FILE` over `--recipe NAME` over the defaults.

    Raises:
        ConfigError: If a setting is unknown, missing or out of bounds.
    """
    from attar.config import DistillConfig
    from attar.recipes.proteus import from_recipe

    return from_recipe(_given(DistillConfig, arguments))


def parse_distill_vl(arguments: list[str]) -> DistillVlConfig:
    """As `parse_distill`, for `attar distill-vl`.

    Raises:
        ConfigError: If a setting is unknown, missing or out of bounds.
    """
    from attar.config import DistillVlConfig
    from attar.recipes.dime_fm import from_recipe

    return from_recipe(_given(DistillVlConfig, arguments))


def _list_recipes(recipes: Mapping[str, Callable[..., object]]) -> int:
    for name, recipe in recipes.items():
        print(f"  {name:24}{(recipe.__doc__ or '').splitlines()[0]}")
    return 0


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

    config = _settings(arguments, QuickstartConfig, "attar quickstart")
    if config is not None:
        from attar.recipes.quickstart import quickstart

        quickstart(config.out)
    return 0


def _evaluate(arguments: list[str]) -> int:
    from attar.config import EvaluateConfig

    if not _wants_help(arguments):
        if "--list" in arguments:
            return _list_tasks([word for word in arguments if word != "--list"])
        if "--table" in arguments:
            return _print_table([word for word in arguments if word != "--table"])
    more = ", --list, --table, --published NAME"
    config = _settings(arguments, EvaluateConfig, "attar evaluate MODEL", parse=parse_evaluate, more=more)
    if config is not None:
        from attar.recipes.evaluate import evaluate

        evaluate(config)
    return 0


def parse_evaluate(arguments: list[str]) -> EvaluateConfig:
    """Settings from flags over `--config FILE` over the defaults; a first word that is no flag is the model.

    Raises:
        ConfigError: If a setting is unknown, missing or out of bounds.
    """
    from attar.config import EvaluateConfig

    arguments, file = _take(arguments, "--config")
    if arguments and not arguments[0].startswith("-"):
        arguments = ["--model", *arguments]
    return _read(EvaluateConfig, [*arguments, *(["--config", file] if file else [])])


def _settings(
    arguments: list[str], model: type[T], prog: str, *, parse: Callable[[list[str]], T] | None = None, more: str = ""
) -> T | None:
    """Settings of a verb, or None after printing its help or its resolved settings."""
    if _wants_help(arguments):
        _help(model, prog, f"--config FILE, --print-config{more}")
        return None
    words = [word for word in arguments if word != "--print-config"]
    config = parse(words) if parse else _read(model, words)
    if "--print-config" not in arguments:
        return config
    from attar.config.files import to_yaml

    print(to_yaml(config), end="")
    return None


def _read(model: type[T], arguments: list[str]) -> T:
    """Settings from flags over `--config FILE` over the defaults."""
    return model.build(_given(model, arguments))


def _given(model: type[Config], arguments: list[str]) -> dict[str, Any]:
    """What flags say, over what `--config FILE` says."""
    from attar.config.files import read_settings
    from attar.config.flags import merge, parse_flags

    arguments, file = _take(arguments, "--config")
    return merge(read_settings(Path(file).expanduser()) if file else {}, parse_flags(model, arguments))


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


def _embed(arguments: list[str]) -> int:
    from attar.config import EmbedConfig

    config = _settings(arguments, EmbedConfig, "attar embed")
    if config is not None:
        from attar.recipes.embed import embed

        embed(config)
    return 0


def _curate(arguments: list[str]) -> int:
    if any(word.partition("=")[0] == "--sentences" for word in arguments):
        return _sentences(arguments)
    from attar.config import CurateConfig

    config = _settings(arguments, CurateConfig, "attar curate", more=", --sentences (see --sentences --help)")
    if config is not None:
        from attar.recipes.curate import curate

        curate(config)
    return 0


def _sentences(arguments: list[str]) -> int:
    from attar.config import SentencesConfig

    config = _settings(arguments, SentencesConfig, "attar curate")
    if config is not None:
        from attar.recipes.sentences import curate_sentences

        curate_sentences(config)
    return 0


def _data(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(DATA_HELP, end="")
        return 0
    if arguments[0] != "pack":
        raise ConfigError(f"no verb 'data {arguments[0]}'.{did_you_mean(arguments[0], ['pack'])} Known: data pack.")
    from attar.config import PackConfig

    config = _settings(arguments[1:], PackConfig, "attar data pack")
    if config is not None:
        from attar.recipes.pack import pack

        pack(config)
    return 0


def _transfer(arguments: list[str]) -> int:
    if "--study" in arguments:
        return _study([word for word in arguments if word != "--study"])
    for word in ("--rows", "--labels", "--seeds"):
        if any(given.partition("=")[0] == word for given in arguments):
            raise ConfigError(f"{word} is for studies: give --study too. One run has --labels-per-class and --seed.")
    from attar.config import TransferConfig

    config = _settings(arguments, TransferConfig, "attar transfer", more=", --study")
    if config is not None:
        from attar.recipes.transfer import transfer

        transfer(config)
    return 0


def _study(arguments: list[str]) -> int:
    from attar.config import StudyConfig

    config = _settings(arguments, StudyConfig, "attar transfer --study")
    if config is not None:
        from attar.recipes.study import study

        study(config)
    return 0


def _predict(arguments: list[str]) -> int:
    from attar.config import PredictConfig

    if arguments and not arguments[0].startswith("-"):
        arguments = ["--model", *arguments]
    config = _settings(arguments, PredictConfig, "attar predict MODEL")
    if config is not None:
        from attar.recipes.predict import predict

        predict(config)
    return 0


def _export(arguments: list[str]) -> int:
    from attar.config import ExportConfig

    if arguments and not arguments[0].startswith("-"):
        arguments = ["--model", *arguments]
    config = _settings(arguments, ExportConfig, "attar export RUN|MODEL")
    if config is not None:
        from attar.recipes.export import export

        export(config)
    return 0


def _plan(arguments: list[str]) -> int:
    """Settings of the plan are taken out, the rest is read as the verb itself reads it."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(PLAN_HELP, end="")
        return 0
    verb, rest = arguments[0], arguments[1:]
    mode = next((word.partition("=")[0] for word in rest if word.partition("=")[0] == UNPLANNED.get(verb)), "")
    if verb not in PLANNED or mode:
        asked, guess = f"{verb} {mode}".strip(), "" if verb in VERBS else did_you_mean(verb, PLANNED)
        raise ConfigError(f"there is no plan for '{asked}'.{guess} There is one for {', '.join(PLANNED)}.")
    own: dict[str, str] = {}
    for flag, name in PLAN_FLAGS.items():
        rest, value = _take(rest, flag)
        own |= {} if value is None else {name: value}
    config = _planned_settings(verb, rest)
    if config is not None:
        from attar.config import PlanConfig
        from attar.recipes.plan import plan

        plan(config, PlanConfig.build(own))
    return 0


def _planned_settings(verb: str, arguments: list[str]) -> Config | None:
    """The verb's settings, or None after printing its help, or them."""
    from attar import config

    if verb == "quickstart":
        return _quickstart_settings(arguments)
    model = getattr(config, PLANNED[verb])
    parse = {"distill": parse_distill, "distill-vl": parse_distill_vl, "evaluate": parse_evaluate}.get(verb)
    settings: Config | None = _settings(
        arguments, model, f"attar plan {verb}", parse=parse, more=f", {', '.join(PLAN_FLAGS)} (attar plan --help)"
    )
    return settings


def _quickstart_settings(arguments: list[str]) -> Config | None:
    """Those of the run that it stands for."""
    from attar.config.small import QuickstartConfig

    config = _settings(arguments, QuickstartConfig, "attar plan quickstart", more=f", {', '.join(PLAN_FLAGS)}")
    if config is None:
        return None
    from attar.recipes.quickstart import quickstart_config

    return quickstart_config(config.out)


def _report(arguments: list[str]) -> int:
    from attar.config import ReportConfig

    if arguments and not arguments[0].startswith("-"):
        arguments = ["--runs", *arguments]
    config = _settings(arguments, ReportConfig, "attar report RUN...")
    if config is not None:
        from attar.recipes.report import report

        report(config)
    return 0


def _doctor(arguments: list[str]) -> int:
    from attar.config.small import DoctorConfig

    if _settings(arguments, DoctorConfig, "attar doctor") is None:
        return 0
    from attar.recipes.doctor import doctor

    return doctor()


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


PLANNED = {
    "distill": "DistillConfig",
    "distill-vl": "DistillVlConfig",
    "transfer": "TransferConfig",
    "embed": "EmbedConfig",
    "curate": "CurateConfig",
    "evaluate": "EvaluateConfig",
    "quickstart": "DistillConfig",
}
"""Verbs that can be planned, with the class of the settings that the plan is of."""

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
    "distill": _distill,
    "distill-vl": _distill_vl,
    "transfer": _transfer,
    "predict": _predict,
    "evaluate": _evaluate,
    "export": _export,
    "report": _report,
    "data": _data,
    "embed": _embed,
    "curate": _curate,
    "quickstart": _quickstart,
    "plan": _plan,
    "doctor": _doctor,
}

if __name__ == "__main__":
    run()
