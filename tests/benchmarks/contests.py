"""Tools that do the same work, timed in turns and held to the first one's results; what benches of detectors share."""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import ceil
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from detectors.base import Detector
from detectors.batching import make_batch
from detectors.optimize import OptimizationWarning, has_fast_bfloat16, optimize
from detectors.structures import Prediction
from tests.benchmarks.record import append_result, table

Found = list[tuple[Tensor, Tensor, Tensor]]  # boxes, scores, labels of each image
Tool = Callable[[], Any]
Measured = list[dict[str, tuple[float, float]]]  # of each round, each tool's wall and CPU seconds

TURN = 0.2
"""Seconds that the oracle's turn lasts about, or longer: one call of milliseconds is measured poorly."""


def disagreement(found: Found, expected: Found) -> str | None:
    """What differs beyond rounding, or None. Where an overlap lies at the threshold, another box may be left."""
    alone = every = 0
    for number, ((boxes, scores, labels), (their_boxes, their_scores, their_labels)) in enumerate(zip(found, expected)):
        if len(scores) != len(their_scores) or len(scores) < 50:
            return f"image {number}: {len(scores)} detections and {len(their_scores)}; want as many, 50 at least"
        partner = (boxes[:, None] - their_boxes[None]).abs().amax(-1) <= 0.1
        partner &= (scores[:, None] - their_scores[None]).abs() <= 1e-4
        partner &= labels[:, None] == their_labels[None]
        alone, every = alone + int((~partner.any(1)).sum()), every + len(scores)
    return f"{alone} of {every} detections have no partner within 0.1 px and 1e-4" if alone > 0.02 * every else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """Tools that do the same work; the first is the oracle.

    Attributes:
        name: of the work.
        tools: by name.
        exact: tools whose results must be the oracle's.
        bars: how many times as fast a tool must be; one that was left out misses it.
        differ: what is wrong about a result beside the oracle's, or None.
    """

    name: str
    tools: dict[str, Tool]
    exact: frozenset[str]
    bars: dict[str, float] = field(default_factory=dict)
    differ: Callable[[Any, Any], str | None] = disagreement


def optimized(detector: Detector, images: list[Tensor], *, compile: bool) -> dict[str, Tool]:
    """A detector optimized in fp32, compiled on request, and in bf16 where the processor has it."""
    tools = {"boxmill, fp32": of_detector(optimize(detector), images)}
    if compile:
        tools["boxmill, compiled"] = of_detector(optimize(detector, compile=True), images)
    if has_fast_bfloat16(torch.device("cpu")):
        tools["boxmill, bf16"] = of_detector(optimize(detector, dtype="bfloat16", compile=compile), images)
    return tools


def of_detector(detector: Detector, images: list[Tensor]) -> Tool:
    return lambda: of_predictions(detector.predict(make_batch(images, detector.preprocessing)))


def of_predictions(predictions: list[Prediction]) -> Found:
    return [(p.boxes, p.scores, p.labels) for p in predictions]


def of_torchvision(found: list[dict[str, Tensor]], first_label: int = 0) -> Found:
    return [(p["boxes"], p["scores"], p["labels"] - first_label) for p in found]


@torch.no_grad()
def tame(model: nn.Module) -> None:
    """Frozen statistics under which fifty random layers neither explode nor die out."""
    generator = torch.Generator().manual_seed(0)
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d | FrozenBatchNorm2d):
            gain = 0.3 if name.endswith("bn3") else 1.0
            module.weight.copy_(gain * (1 + 0.1 * torch.randn(module.weight.shape, generator=generator)))
            module.bias.copy_(0.1 * torch.randn(module.bias.shape, generator=generator))
            module.running_mean.copy_(0.1 * torch.randn(module.bias.shape, generator=generator))
            module.running_var.copy_(1 + 0.2 * torch.rand(module.bias.shape, generator=generator))


def random_images(count: int, size: int) -> list[Tensor]:
    return [torch.randint(0, 256, (3, size, size), dtype=torch.uint8) for _ in range(count)]


@torch.no_grad()
def run(contest: Contest, rounds: int) -> Measured:
    """The first call of each tool, which is checked, does not count; short work is done some times in each turn."""
    tools = list(contest.tools)
    expected = contest.tools[tools[0]]()
    for name in tools[1:]:
        found = contest.tools[name]()
        difference = contest.differ(found, expected)
        assert difference is None or name not in contest.exact, f"{contest.name}, {name}: {difference}"
    started = time.perf_counter()
    contest.tools[tools[0]]()
    times = ceil(TURN / (time.perf_counter() - started))
    measured = []
    for number in range(rounds):
        seconds = {}
        for name in tools[number % len(tools) :] + tools[: number % len(tools)]:
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(times):
                contest.tools[name]()
            seconds[name] = ((time.perf_counter() - wall) / times, (time.process_time() - cpu) / times)
        measured.append(seconds)
    return measured


def rows_of(contest: Contest, measured: Measured) -> list[dict[str, str]]:
    oracle = next(iter(contest.tools))
    return [
        {
            "work": contest.name,
            "tool": name,
            "wall ms": f"{1000 * median(r[name][0] for r in measured):.1f}",
            "cpu ms": f"{1000 * median(r[name][1] for r in measured):.1f}",
            "faster, wall": f"{speedup(measured, oracle, name):.2f}",
            "faster, cpu": f"{median(r[oracle][1] / r[name][1] for r in measured):.2f}",
            "bar": f"{contest.bars[name]:g}" if name in contest.bars else "",
        }
        for name in contest.tools
    ]


def speedup(measured: Measured, oracle: str, name: str) -> float:
    return median(r[oracle][0] / r[name][0] for r in measured)


def arguments_of(description: str, *, batch: int, size: int) -> argparse.Namespace:
    """The command line of such a bench; sets what torch runs on."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--size", type=int, default=size, help="of the images; the bars are for the default")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile, whose bars then are missed")
    parser.add_argument("--no-record", action="store_true", help="leave tests/benchmarks/results.md as it is")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    warnings.simplefilter("error", OptimizationWarning)  # what falls back would be measured as something else
    return arguments


def hold(title: str, contests: Sequence[Contest], arguments: argparse.Namespace, *, load_before: float) -> int:
    """Runs, tells and records all contests; 1 where a bar is missed."""
    rows, missed = [], []
    for contest in contests:
        measured = run(contest, arguments.rounds)
        rows += rows_of(contest, measured)
        print(table(rows_of(contest, measured)), flush=True)
        for name, bar in contest.bars.items():
            if name not in contest.tools:
                missed.append(f"{contest.name}, {name} was left out")
            elif (ratio := speedup(measured, next(iter(contest.tools)), name)) < bar:
                missed.append(f"{contest.name}, {name} {ratio:.2f} ({bar:g})")
    told = "" if has_fast_bfloat16(torch.device("cpu")) else "bf16: not on this processor. "
    told += f"Bars missed: {'; '.join(missed) or 'none'}."
    body = (
        f"{table(rows)}\n\nBatch {arguments.batch} at {arguments.size} px, {arguments.threads} threads, "
        f"{arguments.rounds} rounds. {told}"
    )
    if not arguments.no_record:
        append_result(title, body, load_before=load_before)
    print(f"{title}: {told}", flush=True)
    return 1 if missed else 0
