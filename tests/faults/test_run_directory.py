"""A run directory as a machine with states: whatever is done to it, in whatever order, the newest whole checkpoint
is what a run goes on from, to the bit (spec reliability §3.1, I4 and I5)."""

import os
import random
import shutil
import signal
import tempfile
from pathlib import Path

import pytest
import torch
from benchmarks.faults.damage import DAMAGES
from benchmarks.faults.harness import left_behind, whole_checkpoints
from benchmarks.faults.kills import planted
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from attar.config import DistillConfig, OptimConfig, ProteusConfig
from attar.errors import RunDirectoryError
from attar.methods.proteus import ProteusLearner
from attar.models import load_backbone
from attar.train import build_state, load_checkpoint, save_checkpoint
from attar.utils.run_directory import open_run, record_settings, start_run
from small_runs import MODEL

CONFIG = DistillConfig(teacher="t", student="s", data="d", out="o")
KEEP = 2
FILES = ("tensors.safetensors", "state.json", "manifest.json")


def new_state():
    student = load_backbone(MODEL.replace("embed_dim=32", "embed_dim=8"), weights="random", img_size=16)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        learner = ProteusLearner(student, 8, ProteusConfig())
    return build_state(learner, student, OptimConfig(lr=1e-2))


def step(state):
    """One step, which depends on nothing but the state and its number."""
    generator = torch.Generator().manual_seed(state.step)
    for parameter in state.learner.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    for group in state.optimizer.param_groups:
        group["lr"] = 1e-2
    state.optimizer.step()
    state.step += 1
    state.update_ema()


def tensors_of(state):
    return {name: value.clone() for name, value in state.tensors().items()}


class Golden:
    """Tensors after each step of a run that nobody disturbs."""

    def __init__(self):
        self.state = new_state()
        self.known = [tensors_of(self.state)]

    def __getitem__(self, number):
        while len(self.known) <= number:
            step(self.state)
            self.known.append(tensors_of(self.state))
        return self.known[number]


GOLDEN = Golden()


def killed_at(event, folder, work):
    """Do something in a fork that is killed at its so-manieth change below a folder; whether it came to its end."""
    pid = os.fork()
    if pid == 0:
        try:
            planted(folder, event, "killed")()
            work()
            os._exit(0)
        finally:
            os._exit(70)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, -signal.SIGKILL)
    return code == 0


class RunDirectoryMachine(RuleBasedStateMachine):
    """What is on the disk is judged by code of its own (`whole_checkpoints`); `state` is what a live process holds."""

    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="attar-machine-"))
        self.run = self.folder / "run"
        self.checkpoints = self.run / "checkpoints"
        self.state = None
        self.identity = {}
        self.harmed = set()  # steps of checkpoints that were damaged here

    def teardown(self):
        shutil.rmtree(self.folder)

    def started(self, config=CONFIG):
        with open_run(self.run, config) as run:
            run = start_run(run)
            record_settings(run, config, version="0")
        return run

    def has_checkpoints(self):
        return any(self.checkpoints.glob("step-*"))

    # --- a process ---

    @initialize()
    def first_start(self):
        self.resume()

    @precondition(lambda self: self.state is None)
    @rule()
    def resume(self):
        """The same command again: it goes on from the newest whole checkpoint, or from the beginning."""
        expected = max(whole_checkpoints(self.run), default=0)
        run, state = self.started(), new_state()
        said = []
        found = load_checkpoint(run.checkpoints, state, {"run_id": run.run_id}, say=said.append)
        assert state.step == expected
        assert (found is None) == (expected == 0)
        assert len(said) == len([one for one in self.harmed if one > expected])  # each is told, and none is loaded
        self.state, self.identity = state, {"run_id": run.run_id}
        assert left_behind(self.run) == []

    @precondition(lambda self: self.state is not None)
    @rule(count=st.integers(1, 4))
    def train(self, count):
        for _ in range(count):
            step(self.state)

    @precondition(lambda self: self.state is not None and self.state.step)
    @rule()
    def save(self):
        was_there = self.state.step in whole_checkpoints(self.run)
        save_checkpoint(self.checkpoints, self.state, self.identity, keep=KEEP)
        self.now_saved()
        assert was_there or len(list(self.checkpoints.glob("step-*"))) <= KEEP

    @precondition(lambda self: self.state is not None and self.state.step)
    @rule(event=st.integers(1, 30))
    def save_and_be_killed(self, event):
        before = max(whole_checkpoints(self.run), default=0)
        has_ended = killed_at(
            event, self.run, lambda: save_checkpoint(self.checkpoints, self.state, self.identity, keep=KEEP)
        )
        if has_ended:
            self.now_saved()
            return
        now = max(whole_checkpoints(self.run), default=0)
        assert now in (before, self.state.step)  # the old state or the new one, and no third
        self.harmed &= {int(path.name[5:]) for path in self.checkpoints.glob("step-*")}
        self.harmed.discard(now)
        self.state = None

    def now_saved(self):
        whole = whole_checkpoints(self.run)
        assert whole[-1] == self.state.step
        self.harmed &= {int(path.name[5:]) for path in self.checkpoints.glob("step-*")} - set(whole)

    @precondition(lambda self: self.state is not None)
    @rule()
    def kill(self):
        self.state = None
        (self.run / ".attar-lock").write_text("process 1 on a machine that is off")

    # --- what others do to it ---

    @precondition(lambda self: whole_checkpoints(self.run))
    @rule(
        number=st.integers(0, KEEP - 1), file=st.sampled_from(FILES), how=st.sampled_from(DAMAGES), seed=st.integers(0)
    )
    def damage(self, number, file, how, seed):
        whole = whole_checkpoints(self.run)
        chosen = whole[number % len(whole)]
        how(self.checkpoints / f"step-{chosen:08d}" / file, random.Random(seed))
        self.harmed.add(chosen)
        assert chosen not in whole_checkpoints(self.run)

    @precondition(lambda self: self.state is None and self.has_checkpoints())
    @rule(number=st.integers(0, KEEP - 1))
    def delete(self, number):
        found = sorted(self.checkpoints.glob("step-*"))
        chosen = found[number % len(found)]
        shutil.rmtree(chosen)
        self.harmed.discard(int(chosen.name[5:]))

    @precondition(lambda self: self.state is None and self.has_checkpoints())
    @rule()
    def other_settings(self):
        """They are refused where there is something to lose, and nothing has changed."""
        before = whole_checkpoints(self.run)
        with pytest.raises(RunDirectoryError, match="seed was 0, now 1"):
            self.started(CONFIG.replace(seed=1))
        assert whole_checkpoints(self.run) == before

    @precondition(lambda self: self.state is None)
    @rule(event=st.integers(1, 12))
    def start_and_be_killed(self, event):
        before = whole_checkpoints(self.run)
        killed_at(event, self.run, self.started)
        assert whole_checkpoints(self.run) == before

    # --- what holds at every moment ---

    @invariant()
    def what_learns_is_what_an_undisturbed_run_has(self):
        if self.state is not None:
            wanted, found = GOLDEN[self.state.step], self.state.tensors()
            assert wanted.keys() == found.keys()
            assert all(torch.equal(value, found[name]) for name, value in wanted.items())

    @invariant()
    def what_has_the_name_of_a_checkpoint_is_whole_or_was_damaged_here(self):
        named = {int(path.name[5:]) for path in self.checkpoints.glob("step-*")}
        assert named - set(whole_checkpoints(self.run)) == self.harmed & named


RunDirectoryMachine.TestCase.settings = settings(
    max_examples=int(os.environ.get("ATTAR_TEST_EXAMPLES", "12")), stateful_step_count=25, deadline=None
)
TestRunDirectory = RunDirectoryMachine.TestCase
