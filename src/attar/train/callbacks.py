"""Side effects of a run, each a small class: log, metrics, bad files, evaluation, checkpoints."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from attar.errors import ConfigError, DataError
from attar.models import Backbone
from attar.train.checkpoint import save_checkpoint
from attar.train.loop import StepRecord
from attar.train.state import TrainState
from attar.types import BadFile, Evaluator
from attar.utils.distributed import from_main, is_main
from attar.utils.io import append_line, read_lines, write_text
from attar.utils.progress import Log, duration, progress_bar


class NoEffect:
    """A callback that does nothing, to derive from."""

    def on_start(self, state: TrainState) -> None:
        """Before the first step."""

    def on_step(self, state: TrainState, record: StepRecord) -> None:
        """After a step."""

    def on_stop(self, state: TrainState) -> None:
        """Finished or interrupted."""

    def on_exit(self) -> None:
        """Finished, interrupted or failed."""


class ConsoleLog(NoEffect):
    """A bar on a terminal, and a line after the first step and every so many."""

    def __init__(self, log: Log, *, total_steps: int, every: int) -> None:
        self.log, self.total_steps, self.every = log, total_steps, every
        self.bar = progress_bar()
        self.rate = 0.0

    def on_start(self, state: TrainState) -> None:
        """Show the bar."""
        self.bar.start()
        self.task = self.bar.add_task("training", total=self.total_steps, completed=state.step, rate="")
        self.started, self.first = time.perf_counter(), state.step

    def on_step(self, state: TrainState, record: StepRecord) -> None:
        """Move the bar; print a line when it is time."""
        rate = record.images / max(record.seconds, 1e-9)
        self.rate = rate if not self.rate else 0.9 * self.rate + 0.1 * rate
        self.bar.update(self.task, completed=record.step, rate=f"{self.rate:,.0f} img/s")
        if record.step == 1 or _is_due(record.step, self.every, self.total_steps):  # the first: that it runs, and loss
            elapsed = (time.perf_counter() - self.started) / (record.step - self.first)
            terms = " ".join(f"{name} {value:.4g}" for name, value in record.terms.items())
            self.log.say(
                f"  step {record.step:,}  loss {record.loss:.4g} ({terms})  lr {record.lr:.2e}"
                f"  {self.rate:,.0f} img/s  eta {duration(elapsed * (self.total_steps - record.step))}"
            )

    def on_exit(self) -> None:
        """Take the bar away."""
        self.bar.stop()


class Metrics(NoEffect):
    """`metrics.jsonl`, the record of truth: one JSON object a line, each step once, also across resumes.

    Loss and gradient are those of the line's step, images a second those of all steps since the line before.
    """

    def __init__(self, path: Path, *, every: int, total_steps: int) -> None:
        self.path, self.every, self.total_steps = path, every, total_steps
        self.images, self.seconds = 0, 0.0  # since the last line

    def on_start(self, state: TrainState) -> None:
        """Drop lines of steps that will be done again."""
        if self.path.exists():
            kept = [
                json.dumps(line) for line in read_lines(self.path) if line.get("step", state.step + 1) <= state.step
            ]
            write_text(self.path, "".join(f"{line}\n" for line in kept))

    def on_step(self, state: TrainState, record: StepRecord) -> None:
        """Write the step's line when it is time."""
        self.images, self.seconds = self.images + record.images, self.seconds + record.seconds
        if record.step == 1 or _is_due(record.step, self.every, self.total_steps):  # the first: where the curve begins
            self.write(
                {
                    "step": record.step,
                    "loss": record.loss,
                    **record.terms,
                    "lr": record.lr,
                    "grad_norm": record.grad_norm,
                    "images_per_second": round(self.images / max(self.seconds, 1e-9), 3),
                    "time": round(time.time(), 1),
                }
            )
            self.images, self.seconds = 0, 0.0

    def write(self, line: Mapping[str, Any]) -> None:
        """Append one line."""
        append_line(self.path, line)


class TensorBoard(NoEffect):
    """TensorBoard events of loss terms and learning rate (extra: tb)."""

    def __init__(self, folder: Path, *, every: int, total_steps: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ConfigError(
                'tensorboard is set, but TensorBoard is not installed. Try, in the clone of attar: pip install ".[tb]".'
            ) from None
        self.open: Callable[[int], Any] = lambda step: SummaryWriter(str(folder), purge_step=step)
        self.writer: Any = None
        self.every, self.total_steps = every, total_steps

    def on_start(self, state: TrainState) -> None:
        """Open the file; what a killed run wrote after its checkpoint is hidden."""
        self.writer = self.open(state.step + 1)

    def on_step(self, state: TrainState, record: StepRecord) -> None:
        """Write scalars when it is time."""
        if record.step == 1 or _is_due(record.step, self.every, self.total_steps):
            for name, value in {"loss": record.loss, "lr": record.lr, **record.terms}.items():
                self.writer.add_scalar(f"train/{name}", value, record.step)

    def on_exit(self) -> None:
        """Flush and close."""
        if self.writer is not None:
            self.writer.close()


def most_bad(num_samples: int, max_share: float) -> int:
    """How many images of so many may be bad; any share above 0 allows one."""
    return max(1, int(max_share * num_samples)) if max_share else 0


class BadFiles(NoEffect):
    """Records unreadable files and stops the run when there are too many of them, with those `lost` from the start.

    Those of an earlier start count while `is_bad` (sample, name) says so: they may be mended, or no longer there.
    """

    def __init__(
        self,
        path: Path,
        log: Log,
        *,
        num_samples: int,
        max_share: float,
        lost: int = 0,
        is_bad: Callable[[int, str], bool] = lambda sample, name: True,
    ) -> None:
        self.path, self.log, self.num_samples, self.lost, self.is_bad = path, log, num_samples, lost, is_bad
        self.limit = most_bad(num_samples, max_share)
        self.seen: set[int] = set()

    def on_start(self, state: TrainState) -> None:
        """Remember what an earlier part of the run found."""
        known = [line for line in read_lines(self.path) if "sample" in line]
        self.seen = {line["sample"] for line in known if self.is_bad(line["sample"], line["path"])}

    def on_step(self, state: TrainState, record: StepRecord) -> None:
        """See `add`."""
        self.add(record.bad_files)

    def add(self, found: Sequence[BadFile]) -> None:
        """Write down new ones.

        Raises:
            DataError: If there are too many.
        """
        for bad in found:
            if bad.sample in self.seen:
                continue
            self.seen.add(bad.sample)
            append_line(self.path, {"sample": bad.sample, "path": bad.name, "reason": bad.reason})
            if len(self.seen) == 1:
                self.log.say(f"  unreadable file replaced: {bad.reason} More go to {self.path.name}.")
        if len(self.seen) + self.lost > self.limit:
            lost = f" and about {self.lost:,} are lost in damaged shards" if self.lost else ""
            raise DataError(
                f"{len(self.seen)} of {self.num_samples:,} images cannot be read{lost}, more than the limit of"
                f" {self.limit} (see {self.path}). Mend or remove them, or raise --max-bad-share."
            )


class Monitor(NoEffect):
    """Judges the student and its moving average while they train, and keeps the best one; the main rank does it.

    Best is chosen by the scores whose name ends in `select`; those ending in `report` are only written down. Of equal
    scores that of the later step is kept, as `EarlyStop` has it: with few images the first ones may all be equal.

    Args:
        evaluator: Judges a backbone.
        metrics: Where scores are written.
        log: Where they are said.
        every: Steps between judgements.
        total_steps: Length of the run; its last step is judged as well.
        title: What people call the figure.
        beside: Figures to compare with, for the log.
        keep_best: Called with each backbone that becomes the best so far.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        metrics: Metrics,
        log: Log,
        *,
        every: int,
        total_steps: int,
        title: str,
        beside: str,
        keep_best: Callable[[Backbone, Mapping[str, Any]], None],
    ) -> None:
        self.evaluator, self.metrics, self.log = evaluator, metrics, log
        self.every, self.total_steps, self.keep_best = every, total_steps, keep_best
        self.title, self.beside = title, beside

    def on_start(self, state: TrainState) -> None:
        """Catch up on a judgement that an interruption cut short."""
        if self.is_behind(state):
            self._judge(state)

    def on_step(self, state: TrainState, record: StepRecord) -> None:
        """Judge when it is time, and after the last step."""
        if self.is_behind(state):
            self._judge(state)

    def is_behind(self, state: TrainState) -> bool:
        """Whether the student of this step should have been judged and was not."""
        due = state.step > 0 and _is_due(state.step, self.every, self.total_steps)
        return due and state.notes.get("judged") != state.step

    def _judge(self, state: TrainState) -> None:
        line: dict[str, Any] = {"step": state.step}
        shown = []
        for role in state.roles:
            backbone = state.plain(role)
            scores = from_main(partial(self._scores, backbone))  # on all ranks, as is a signal that comes meanwhile
            if not is_main():
                continue
            line |= {f"{role}_{name}": value for name, value in scores.items()}
            selected = next(value for name, value in scores.items() if name.endswith("select"))
            shown.append(f"{role} {100 * selected:.1f}")
            best = state.notes.get("best", {"selected": -1.0, "step": 0})
            if (selected, state.step) > (best["selected"], best["step"]):
                state.notes["best"] = {"selected": selected, "role": role, "step": state.step}
                self.keep_best(backbone, state.notes["best"])
        state.notes["judged"] = state.step
        if not is_main():
            return
        self.metrics.write(line)
        self.log.say(f"  {self.title} (selection half) at step {state.step:,}  {'  '.join(shown)}  {self.beside}")

    def _scores(self, backbone: Backbone) -> dict[str, float]:
        return dict(self.evaluator.run(backbone))


class Clock(NoEffect):
    """Adds up the seconds of all steps in the state's notes, those before a resume too."""

    def on_step(self, state: TrainState, record: StepRecord) -> None:
        """Add the step's."""
        state.notes["seconds"] = state.notes.get("seconds", 0.0) + record.seconds


class EarlyStop(NoEffect):
    """Judges what learns on validation images, keeps the best, and ends the run when it gets no better.

    Of equal scores the later is kept: with few validation images ties are common, and what has learned longer, at a
    falling rate, is the safer guess; what a run starts from never wins one. An equal score is none the better, though:
    patience runs on, or a perfect score would train to the last step.

    Args:
        judge: The score now, in [0, 1], more is better.
        keep: Called with the step of a score that none before it exceeds; None chooses nothing and calls none best.
        metrics: Where scores are written.
        log: Where they are said.
        every: Steps between judgements.
        total_steps: Length of the run; its last step is judged as well.
        patience: Judgements without a better one that end the run; None never ends it.
        from_start: Judge before the first step too, where what is there has learned something already.
    """

    def __init__(
        self,
        judge: Callable[[], float],
        keep: Callable[[int], None] | None,
        metrics: Metrics,
        log: Log,
        *,
        every: int,
        total_steps: int,
        patience: int | None,
        from_start: bool = False,
    ) -> None:
        self.judge, self.keep, self.metrics, self.log = judge, keep, metrics, log
        self.every, self.total_steps, self.patience, self.from_start = every, total_steps, patience, from_start

    def on_start(self, state: TrainState) -> None:
        """Judge what the run starts from, or catch up on a judgement that an interruption cut short."""
        self._judge_if_behind(state)

    def on_step(self, state: TrainState, record: StepRecord) -> None:
        """Judge when it is time, and after the last step."""
        self._judge_if_behind(state)

    def _judge_if_behind(self, state: TrainState) -> None:
        is_due = self.from_start if state.step == 0 else _is_due(state.step, self.every, self.total_steps)
        if not is_due or state.notes.get("judged") == state.step:
            return
        score = from_main(self.judge)
        said = f"  val      {100 * score:.1f} at step {state.step:,}"
        if self.keep is not None:
            best = self._choose(state, score, self.keep)
            said += f" (best {100 * best['score']:.1f} at step {best['step']:,})"
        state.notes["judged"] = state.step
        if is_main():
            self.metrics.write({"step": state.step, "val": score})
            self.log.say(said)

    def _choose(self, state: TrainState, score: float, keep: Callable[[int], None]) -> Mapping[str, Any]:
        """Score and step of the best so far, which is kept if it is this one."""
        notes, best = state.notes, state.notes.get("best")
        notes["worse"] = 0 if best is None or score > best["score"] else notes["worse"] + 1
        notes["converged"] = self.patience is not None and notes["worse"] >= self.patience
        if best is None or score >= best["score"]:
            best = notes["best"] = {"score": score, "step": state.step}
            from_main(partial(keep, state.step))
        return best


class Checkpoints(NoEffect):
    """Saves every so many steps and when the run stops."""

    def __init__(self, folder: Path, identity: Mapping[str, Any], *, every: int, keep: int) -> None:
        self.folder, self.identity, self.every, self.keep = folder, dict(identity), every, keep

    def on_step(self, state: TrainState, record: StepRecord) -> None:
        """Save when it is time."""
        if record.step % self.every == 0:
            self.on_stop(state)

    def on_stop(self, state: TrainState) -> None:
        """Save now."""
        save_checkpoint(self.folder, state, self.identity, keep=self.keep)


def times_due(every: int, total_steps: int) -> int:
    """How often something is done that is done every so many steps, and after the last."""
    return -(-total_steps // every)


def _is_due(step: int, every: int, total_steps: int) -> bool:
    return step % every == 0 or step == total_steps
