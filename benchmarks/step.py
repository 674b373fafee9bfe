"""One training step of Proteus as attar does it, against the paper's step as it was released.

    python benchmarks/step.py --batch-size 8 --precision fp32 bf16 --reference-precision fp32 --results FILE
    python benchmarks/step.py --pair 'S<-B' 'B<-L' 'L<-g' --precision bf16 --compile 'S<-B' --results FILE   # a GPU

Three ways of the same step, on the same weights, optimizer and moving average:

- reference: `paper_loss` and `paper_steps` below. The teacher answers in the same call; one student pass over all clean
  views, a second one over all masked views, of which half is thrown away; three heads; backward, AdamW, average. Its
  images come normalised and its masks drawn, as its loader delivers them; it waits for no number of the device.
- uncached: `attar.train.fit`, whole: images come as bytes, as attar's loader delivers them, masks are drawn, one pass
  over clean views and masked ones, and the loop's two checks of loss and gradient, for which the device must be waited
  for.
- cached: the same, and the teacher's answers come from attar's own files, as float16. Each row has been read before:
  it stands in the machine's memory, and its checksum, verified when it is first read, is not taken again.

With --compile each block of teacher and student is compiled, and both of attar's ways are measured so too. The
reference never is. Before anything is timed, loss and gradient of reference and attar are compared in float32 on the
same weights, images and masks. Rounds alternate the ways and their order; milliseconds are medians over rounds, ratios
are those of each round: median, lowest, highest.

FLOPs are two for each multiply-add: those of one image's forward pass as `FlopCounterMode` counts them, once for the
teacher, three times for each pass of the student and for its heads (forward and backward). The peak is that of a large
matrix product in the same precision, measured in each round. Memory is the highest of a step, on a GPU that of tensors;
cached is given without the teacher's weights, which a run from a cache does not load.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import datetime
import gc
import itertools
import json
import os
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from attar.config import DistillConfig
from attar.methods.answer_formats import PLAIN_FORMATS
from attar.methods.proteus import PatchMasks, Proteus, draw_masks
from attar.methods.teacher_cache import TeacherCache
from attar.models import load_backbone
from attar.models.compute import forward_macs
from attar.recipes.proteus import proteus_b, proteus_l, proteus_s
from attar.train.loop import LoopSettings, fit
from attar.train.schedule import Schedule, base_lr
from attar.train.state import TrainState, build_state
from attar.types import Batch, unit_interval
from attar.utils.distributed import pick_device
from attar.utils.memory import forget_peak, peak_resident
from attar.utils.seeding import seeded_torch, torch_generator
from machine import given, machine

PAIRS = {"S<-B": proteus_s, "B<-L": proteus_b, "L<-g": proteus_l}
BATCH_SIZES = {"cpu": {"S<-B": 8, "B<-L": 4, "L<-g": 2}, "cuda": {"S<-B": 256, "B<-L": 128, "L<-g": 64}}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SEED, BATCHES = 0, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", nargs="+", choices=PAIRS, default=["S<-B"], help="quote it: the shell reads <")
    parser.add_argument("--img-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, help=f"by default {BATCH_SIZES}")
    parser.add_argument("--precision", nargs="+", choices=["fp32", "bf16"], default=["fp32"], help="attar's")
    parser.add_argument("--reference-precision", choices=["same", *DTYPES], default="same")
    parser.add_argument("--compile", nargs="*", choices=PAIRS, help="pairs to compile, all if none is named")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, help="of a way in a round; by default 1, on a GPU 12")
    parser.add_argument("--seconds", type=float, help="no round of a pair begins that would end later")
    parser.add_argument("--threads", type=int, help="by default one for each core")
    parser.add_argument("--profile", action="store_true", help="print where a step of each way spends its time, too")
    parser.add_argument("--results", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads or len(os.sched_getaffinity(0)))
    device = pick_device(args.device)
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False  # fp32 shall mean it, in the patch embedding too
    record: dict[str, Any] = {
        "benchmark": "step",
        "date": datetime.date.today().isoformat(),
        "command": f"python benchmarks/step.py {given(args)}",
        "machine": machine("timm") | ({"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}),
        "results": [],
    }
    for pair in args.pair:
        record["results"] += rows_of(pair, device, args)
        free(device)
        if args.results:  # after each pair: a later one may run out of memory or time
            args.results.parent.mkdir(parents=True, exist_ok=True)
            args.results.write_text(json.dumps(record, indent=2) + "\n")


@dataclass(frozen=True)
class Way:
    """One way to do the step."""

    name: str
    precision: str
    is_compiled: bool = False

    def __str__(self) -> str:
        return f"{self.name}{', compiled' if self.is_compiled else ''}"


@dataclass
class Bench:
    """What all ways share.

    Attributes:
        method: Proteus, whose learner all of them train.
        state: Its optimizer and moving average.
        schedule: Of the learning rate.
        batches: Views in host memory, B images each, as bytes.
        pixels: The same, normalised.
        replayed: The method with the teacher's answers kept on disk.
        masks: (hidden (B, N), positions of its hidden patches among B * N), as the released loader delivers them.
        device: Where the models are.
        has_compiled_blocks: Whether there is something that the ways which are not compiled must leave alone.
    """

    method: Proteus
    state: TrainState
    schedule: Schedule
    batches: list[Batch]
    pixels: list[Tensor]
    replayed: Proteus
    masks: list[tuple[Tensor, Tensor]]
    device: torch.device
    has_compiled_blocks: bool = False


def built(config: DistillConfig, device: torch.device, folder: Path) -> Bench:
    """A pair with random weights on the device, its batches, and what the teacher says of them in a folder."""
    with seeded_torch(SEED, "benchmark", device=device), device:  # made where they stay: a giant takes long on a CPU
        student = load_backbone(config.student, weights="random", img_size=config.img_size)
        teacher = load_backbone(config.teacher, weights="random", img_size=config.img_size)
        method = Proteus(teacher, student, config.proteus, seed=SEED)
    state = build_state(method.learner, student, config.optim, device=device)
    batches = [some_batch(config, step) for step in range(BATCHES)]
    mean, std = student.mean.cpu(), student.std.cpu()
    replayed = copy.copy(method)
    kept_as = PLAIN_FORMATS["float16"].on(device)
    replayed.cache = TeacherCache(folder, config.batch_size, BATCHES, {"format": "float16"}, kept_as)
    for batch in batches:
        replayed.answers(batch.to(device))
    return Bench(
        method,
        state,
        Schedule(base_lr(config.optim, config.batch_size), 10**6, 1000.0, config.optim),
        [replace(batch, views=on_host(batch.views, device)) for batch in batches],
        [on_host((unit_interval(batch.views) - mean) / std, device) for batch in batches],
        replayed,
        [
            tuple(on_host(part, device) for part in whole_masks(drawn(method, batch), config.batch_size))
            for batch in batches
        ],
        device,
    )


def some_batch(config: DistillConfig, step: int) -> Batch:
    """View number `step` of each image."""
    shape = (config.batch_size, 3, config.img_size, config.img_size)
    views = torch.randint(256, shape, dtype=torch.uint8, generator=torch_generator(SEED, "views", step))
    rows = torch.arange(config.batch_size)
    return Batch(views, rows, torch.full_like(rows, step), rows, step, config.batch_size)


def on_host(tensor: Tensor, device: torch.device) -> Tensor:
    """In host memory from which the device can copy by itself."""
    return tensor.pin_memory() if device.type == "cuda" and tensor.numel() else tensor


def drawn(method: Proteus, batch: Batch) -> PatchMasks:
    return draw_masks(batch, method.student.grid[0] * method.student.grid[1], method.config, seed=method.seed)


def whole_masks(masks: PatchMasks, batch_size: int) -> tuple[Tensor, Tensor]:
    """Masks of all images, and where in all of them patches are hidden."""
    hidden = torch.zeros(batch_size, masks.hidden.shape[1], dtype=torch.bool)
    hidden[masks.rows] = masks.hidden
    return hidden, hidden.flatten().nonzero().flatten()


# --- the reference: the paper's step ---------------------------------------------------------------------------------


def vit(model: Any, pixels: Tensor, hidden: Tensor | None = None, mask_token: Tensor | None = None) -> Tensor:
    """(B, 1 + N, D) of a plain ViT after its final norm; hidden patches (B, N) carry the mask token."""
    patches = model.patch_embed(pixels)
    if hidden is not None and mask_token is not None:
        patches = torch.where(hidden[..., None], mask_token.to(patches.dtype), patches)
    tokens = torch.cat([model.cls_token.expand(len(patches), -1, -1), patches], dim=1) + model.pos_embed
    for block in model.blocks:
        tokens = block(tokens)
    return model.norm(tokens)  # type: ignore[no-any-return]


def paper_loss(method: Proteus, pixels: Tensor, hidden: Tensor, where: Tensor) -> Tensor:
    """The loss as the released code computes it (spec §1.1, its DINOv2 model).

    Args:
        method: Holds the models and heads.
        pixels: (B, 3, H, W), normalised.
        hidden: (B, N) bool.
        where: (n,) positions of hidden patches among B * N.
    """
    learner: Any = method.learner
    student: Any = learner.student.model
    with torch.no_grad():
        target = vit(method.teacher.model, pixels)
    clean = vit(student, pixels)
    masked = vit(student, pixels, hidden, learner.mask_token)
    cls = learner.token_head(clean[:, 0])
    everything = torch.cat([cls[:, None], learner.feature_head(clean[:, 1:])], dim=1)
    guessed = learner.patch_head(masked[:, 1:].flatten(0, 1).index_select(0, where))
    wanted = target[:, 1:].flatten(0, 1).index_select(0, where)
    pairs = [(cls, target[:, 0]), (everything, target), (guessed, wanted)]
    return sum((F.mse_loss(ours.float(), theirs.float()) for ours, theirs in pairs), pixels.new_zeros(()))


def paper_steps(bench: Bench, precision: str, steps: int) -> None:
    """Training steps as released: loss under autocast, scaled if in fp16, AdamW, moving average."""
    bench.method.learner.train()
    optimizer, device = bench.state.optimizer, bench.device
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    for number in range(steps):
        pixels = bench.pixels[number % BATCHES].to(device, non_blocking=True)
        hidden, where = (part.to(device, non_blocking=True) for part in bench.masks[number % BATCHES])
        with torch.autocast(device.type, dtype=DTYPES[precision], enabled=precision != "fp32"):
            loss = paper_loss(bench.method, pixels, hidden, where)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        bench.state.update_ema()


# --- attar -----------------------------------------------------------------------------------------------------------


def attar_steps(bench: Bench, way: Way, steps: int) -> None:
    """Training steps by attar's loop."""
    method = bench.method if way.name == "uncached" else bench.replayed
    numbers = itertools.count(bench.state.step)
    batches = (replace(bench.batches[number % BATCHES], step=number) for number in numbers)
    total, is_cuda = bench.state.step + steps, bench.device.type == "cuda"
    settings = LoopSettings(total, device=bench.device, bf16=way.precision == "bf16", ahead=is_cuda)
    fit(method, bench.state, batches, bench.schedule, settings, [])


# --- comparing -------------------------------------------------------------------------------------------------------


def rows_of(pair: str, device: torch.device, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Results of a pair, one for each precision; where it does not fit in memory, one that says so."""
    until = time.perf_counter() + (args.seconds or float("inf"))
    batch_size = args.batch_size or BATCH_SIZES[device.type][pair]
    config = PAIRS[pair](data=".", out=".").replace(img_size=args.img_size, batch_size=batch_size)
    about = {"pair": pair, "img_size": args.img_size, "batch_size": batch_size}
    try:
        with tempfile.TemporaryDirectory() as folder:
            bench = built(config, device, Path(folder))
            rows = [about | row for row in compared(bench, args, until, wants_compile(pair, args))]
            del bench  # which maps files of the folder
        print("".join(map(lines_of, rows)), flush=True)
        return rows
    except torch.OutOfMemoryError as error:
        complaint = str(error).splitlines()[0]
    print(f"\n{pair}, {args.img_size} px, batch {batch_size}: out of memory. {complaint}", flush=True)
    return [about | {"out_of_memory": complaint}]


def wants_compile(pair: str, args: argparse.Namespace) -> bool:
    return args.compile is not None and pair in (args.compile or PAIRS)


def compared(bench: Bench, args: argparse.Namespace, until: float, wants_compile: bool) -> list[dict[str, Any]]:
    """Measure all ways in turns, then put those of each precision side by side."""
    shared: dict[str, Any] = {"agreement": agreement(bench)}
    work = flops(bench)
    combinations = {p: p if args.reference_precision == "same" else args.reference_precision for p in args.precision}
    ways = [Way("reference", precision) for precision in dict.fromkeys(combinations.values())]
    ways += [Way(name, precision) for precision in combinations for name in ("uncached", "cached")]
    for way in ways:
        turn(bench, way, 1)  # warm-up
    if wants_compile:
        compiled = [replace(way, is_compiled=True) for way in ways if way.name != "reference"]
        shared["compile"] = compile_blocks(bench, compiled)
        ways += compiled if shared["compile"]["error"] is None else []
    found = measure(bench, ways, until, args)
    for way in ways if args.profile else ():
        profile(bench, way)
    rows = []
    for precision, reference in combinations.items():
        chosen = [Way("reference", reference), *(w for w in ways if w.name != "reference" and w.precision == precision)]
        rows.append({"precision": precision, "reference_precision": reference} | figures(bench, chosen, found, work))
    return [row | shared for row in rows]


def agreement(bench: Bench, images: int = 4) -> dict[str, float]:
    """Loss and gradient of reference and attar in float32 on a few images, the same masks; they must be equal.

    Raises:
        AssertionError: If they are not.
    """
    method, batch, device = bench.method, bench.batches[0], bench.device
    images = min(images, len(batch.views))
    first = {name: getattr(batch, name)[:images] for name in ("views", "samples", "view_ids", "positions")}
    few = replace(batch, **first, global_batch_size=images).to(device)
    hidden, where = (part.to(device) for part in whole_masks(drawn(method, few), images))
    losses = [paper_loss(method, bench.pixels[0][:images].to(device), hidden, where), method.training_step(few).loss]
    parameters = list(method.learner.parameters())
    theirs, ours = (torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]) for loss in losses)
    cached = bench.replayed.training_step(few).loss
    reference = losses[0].item()
    found = {
        "images": images,
        "reference_loss": reference,
        "attar_loss_off_by": abs(losses[1].item() / reference - 1),
        "attar_gradient_off_by": ((ours - theirs).norm() / theirs.norm()).item(),
        "cached_loss_off_by": abs(cached.item() / reference - 1),
    }
    assert found["attar_loss_off_by"] < 1e-5, f"the sides do not compute the same loss: {found}"
    assert found["attar_gradient_off_by"] < 1e-4, f"the sides do not compute the same gradient: {found}"
    return found


def flops(bench: Bench) -> dict[str, float]:
    """Of one step of each way, for all of its images."""
    method, (hidden, where) = bench.method, bench.masks[0]
    batch_size, patches = hidden.shape
    teacher, student = batch_size * forward_macs(method.teacher), forward_macs(method.student)
    tokens = batch_size * (1 + patches) + len(where)  # that go through a head
    heads = tokens * method.student.embed_dim * method.teacher.embed_dim
    sliced = 3 * ((batch_size + int(hidden.any(1).sum())) * student + heads)
    whole = 3 * (2 * batch_size * student + heads)
    return {"reference": 2.0 * (teacher + whole), "uncached": 2.0 * (teacher + sliced), "cached": 2.0 * sliced}


def compile_blocks(bench: Bench, ways: list[Way]) -> dict[str, Any]:
    """Compile each block of teacher and student; how long it took, and why it failed where it did."""
    started = time.perf_counter()
    torch.compiler.reset()  # shapes of an earlier pair
    for backbone in (bench.method.teacher, bench.method.student):
        for block in backbone.model.blocks:  # type: ignore[union-attr]
            block.compile(dynamic=False)
    bench.has_compiled_blocks = True
    error = None
    try:
        for way in ways:
            turn(bench, way, 1)
    except torch.OutOfMemoryError:
        raise
    except Exception as failure:  # compilers raise many kinds; each means that the ways without one are left
        error = f"{type(failure).__name__}: {str(failure).strip().splitlines()[0]}"
        bench.state.optimizer.zero_grad(set_to_none=True)
        print(f"\nnot compiled: {error}", flush=True)
    return {"seconds": round(time.perf_counter() - started, 1), "error": error}


def turn(bench: Bench, way: Way, steps: int) -> tuple[float, int | None]:
    """Seconds of some steps of a way, all that the device has to do included, and the most memory they took."""
    is_cuda = bench.device.type == "cuda"
    with contextlib.ExitStack() as stack:
        if bench.has_compiled_blocks:
            stack.enter_context(torch.compiler.set_stance("default" if way.is_compiled else "force_eager"))
        gc.collect()
        if is_cuda:
            torch.cuda.reset_peak_memory_stats(bench.device)
            torch.cuda.synchronize(bench.device)
        else:
            forget_peak()
        started = time.perf_counter()
        if way.name == "reference":
            paper_steps(bench, way.precision, steps)
        else:
            attar_steps(bench, way, steps)
        if is_cuda:
            torch.cuda.synchronize(bench.device)
        seconds = time.perf_counter() - started
    return seconds, torch.cuda.max_memory_allocated(bench.device) if is_cuda else peak_resident()


@dataclass
class Found:
    """Seconds of a step of each way in each round, the most memory of each, and the peak of each precision."""

    seconds: dict[Way, list[float]]
    memory: dict[Way, int]
    peaks: dict[str, list[float]]


def measure(bench: Bench, ways: list[Way], until: float, args: argparse.Namespace) -> Found:
    """Rounds in which all ways take turns, each round in the other order than the one before."""
    steps = args.steps or (12 if bench.device.type == "cuda" else 1)
    precisions = dict.fromkeys(way.precision for way in ways)
    found = Found({way: [] for way in ways}, {}, {precision: [] for precision in precisions})
    longest = 0.0
    for number in range(args.rounds):
        started = time.perf_counter()
        if number and started + longest > until:
            print(f"\n{number} rounds of {args.rounds}: there is no time for another one", flush=True)
            break
        for precision in precisions:
            found.peaks[precision].append(peak(bench.device, precision))
        for way in ways[:: 1 if number % 2 == 0 else -1]:
            seconds, memory = turn(bench, way, steps)
            found.seconds[way].append(seconds / steps)
            found.memory[way] = max(found.memory.get(way, 0), memory or 0)
        longest = max(longest, time.perf_counter() - started)
    return found


def peak(device: torch.device, precision: str) -> float:
    """FLOPs per second in the product of two large matrices, the best of three."""
    size, times = (8192, 20) if device.type == "cuda" else (2048, 1)
    one, other = (torch.randn(size, size, device=device, dtype=DTYPES[precision]) for _ in range(2))
    found = []
    for _ in range(4):
        wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
        wait()
        started = time.perf_counter()
        for _ in range(times):
            one @ other
        wait()
        found.append(2 * size**3 * times / (time.perf_counter() - started))
    return max(found[1:])


def profile(bench: Bench, way: Way) -> None:
    """Print the operations of one step that took longest, on a GPU its kernels."""
    with torch.profiler.profile() as found:
        turn(bench, way, 1)
    device = "cuda" if bench.device.type == "cuda" else "cpu"
    table = found.key_averages().table(sort_by=f"self_{device}_time_total", row_limit=12, max_name_column_width=60)
    print(f"\n{way}, {way.precision}\n{table}", flush=True)


def figures(bench: Bench, ways: list[Way], found: Found, work: dict[str, float]) -> dict[str, Any]:
    """A row: the reference and attar's ways in one precision."""
    batch_size = len(bench.batches[0].views)
    teacher = sum(p.numel() * p.element_size() for p in bench.method.teacher.parameters())
    sides, reference = {}, found.seconds[ways[0]]
    for way in ways:
        seconds, fastest = statistics.median(found.seconds[way]), statistics.median(found.peaks[way.precision])
        ratios = [theirs / ours for theirs, ours in zip(reference, found.seconds[way], strict=True)]
        memory = found.memory[way] - (teacher if way.name == "cached" else 0)
        sides[str(way)] = {
            "ms": round(1000 * seconds, 1),
            "images_per_s": round(batch_size / seconds, 2),
            "tflop": round(work[way.name] / 1e12, 4),
            "tflop_per_s": round(work[way.name] / seconds / 1e12, 4),
            "share_of_peak": round(work[way.name] / seconds / fastest, 3),
            "memory_gib": round(memory / 2**30, 2) if found.memory[way] else None,
            "reference_over_this": {
                "median": round(statistics.median(ratios), 3),
                "lowest": round(min(ratios), 3),
                "highest": round(max(ratios), 3),
            },
            "ms_of_rounds": [round(1000 * s, 1) for s in found.seconds[way]],
        }
    peaks = {way.precision: round(statistics.median(found.peaks[way.precision]) / 1e12, 4) for way in ways}
    ceilings = {name: round(work["reference"] / work[name], 3) for name in ("uncached", "cached")}
    return {"sides": sides, "peak_tflop_per_s": peaks, "ratio_of_flops": ceilings}


def lines_of(row: dict[str, Any]) -> str:
    """A row as a table."""
    peaks = ", ".join(f"{precision} {value:g} TFLOP/s" for precision, value in row["peak_tflop_per_s"].items())
    ceilings = ", ".join(f"{name} {value}" for name, value in row["ratio_of_flops"].items())
    lines = [
        f"\n{row['pair']}, {row['img_size']} px, batch {row['batch_size']}, attar in {row['precision']},"
        f" reference in {row['reference_precision']}",
        f"  matrix products: {peaks}; FLOPs of the reference over those of: {ceilings}",
        f"  losses differ by {row['agreement']['attar_loss_off_by']:.1e}, gradients by"
        f" {row['agreement']['attar_gradient_off_by']:.1e}; loss from the cache by"
        f" {row['agreement']['cached_loss_off_by']:.1e}",
        f"  {'':20}{'ms':>9}{'images/s':>10}{'TFLOP':>9}{'TFLOP/s':>9}{'of peak':>9}{'GiB':>7}  times as fast",
    ]
    for name, side in row["sides"].items():
        ratio = side["reference_over_this"]
        memory = "" if side["memory_gib"] is None else f"{side['memory_gib']:.2f}"
        lines.append(
            f"  {name:20}{side['ms']:9.1f}{side['images_per_s']:10.2f}{side['tflop']:9.3f}{side['tflop_per_s']:9.3f}"
            f"{side['share_of_peak']:9.1%}{memory:>7}  {ratio['median']:.2f} ({ratio['lowest']:.2f} to"
            f" {ratio['highest']:.2f})"
        )
    return "\n".join(lines) + "\n"


def free(device: torch.device) -> None:
    """Give back what the last pair held, so that the next one finds the memory empty."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
