"""Time dense, folded, fixed, expert and gated forms on one GPU; one file, without a network.

Random weights do: time depends on shapes alone. Every form runs eagerly and compiled: its blocks by
`torch.compile`, the whole call as one CUDA graph. Forms of a row run in turns, and medians count.
Each output is held against the dense model with the same neurons masked. Rows come in the order of
their worth, and results are written as they come, so that a run that is cut off is still of use.

    python benchmarks/gpu.py --minutes 7 --workers 6 --output gpu.json
    python benchmarks/gpu.py --tiny                 # the same on a CPU, at sizes of a test
"""

# ruff: noqa: E402 - the package is registered before its rooms are imported
import argparse
import copy
import gc
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).parents[1]
if "dynprune" not in sys.modules:
    # The package itself imports recipes and reports, whose libraries a GPU machine may lack.
    bare = types.ModuleType("dynprune")
    bare.__path__ = [str(ROOT / "dynprune")]
    sys.modules["dynprune"] = bare

from dynprune.example import Example
from dynprune.gate import GateConfig, gates, inject, plan_groups, set_execution
from dynprune.gate.fixed import KeptNeurons, fix_groups
from dynprune.gate.plan import GroupPlan
from dynprune.gate.route import Experts, put_experts, why_not_experts
from dynprune.gate.topr import kept_count
from dynprune.graph import find_groups
from dynprune.rewrite import FoldedDecoder, Rewrite, reapply, rewrite

RATIO, ALIGN, EXPERTS = 0.5, 16, 4
FORMS = ("dense", "folded", "fixed", "experts", "neurons")
UNCOMPILED = ("neurons",)  # each of its blocks compiles anew: minutes; its CUDA graph counts
MOST_ERROR = 0.05  # of a bfloat16 output's norm; a wrong set of neurons moves it by more


@dataclass(frozen=True)
class Row:
    """One setting: a model, the side of its square pictures in pixels, and the batch."""

    model: str
    side: int
    batch: int

    def __str__(self) -> str:
        """Name the row."""
        return f"{self.model} {self.side} x{self.batch}"


# In the order of their worth.
ROWS = [
    Row("b2", 512, 1),
    Row("vit-l", 224, 1),
    Row("vit-l", 224, 32),
    Row("b2", 512, 32),
    Row("b5", 512, 1),
    Row("b2", 1024, 1),
    Row("vit-l", 518, 1),
    Row("b5", 1024, 1),
    Row("vit-l", 518, 8),
    Row("b2", 512, 8),
    Row("vit-l", 224, 8),
    Row("b2", 1024, 8),
    Row("b5", 512, 8),
    Row("vit-l", 518, 32),
    Row("b5", 1024, 8),
    Row("b5", 512, 32),
    Row("b2", 1024, 32),
    Row("b5", 1024, 32),
]
TUNED = (Row("vit-l", 224, 32),)  # timed as whole models under max-autotune, too
TINY_ROWS = [Row("b2", 64, 1), Row("b2", 64, 3), Row("vit-l", 32, 1), Row("vit-l", 32, 3)]

DEPTHS = {"b2": (3, 4, 6, 3), "b5": (3, 6, 40, 3), "vit-l": (24,)}
FIRST_BLOCK = {
    "b2": r"stages\.(\d+)\.blocks\.0(?=\.)",
    "b5": r"stages\.(\d+)\.blocks\.0(?=\.)",
    "vit-l": r"layers\.(?=0\.)()0",
}


def build(row: Row, depths: Sequence[int], *, tiny: bool = False) -> nn.Module:
    """Make a model with random weights, in eval mode."""
    import transformers as hf

    if row.model == "vit-l":
        vit: dict[str, Any] = {
            "hidden_size": 64 if tiny else 1024,
            "intermediate_size": 256 if tiny else 4096,
            "num_attention_heads": 2 if tiny else 16,
            "num_hidden_layers": depths[0],
            "image_size": row.side,
            "patch_size": 14 if row.side % 14 == 0 and row.side % 16 else 16,
        }
        return hf.ViTModel(hf.ViTConfig(**vit), add_pooling_layer=False).eval()
    config = hf.SegformerConfig(
        depths=list(depths),
        hidden_sizes=[32, 64, 64, 96] if tiny else [64, 128, 320, 512],
        num_attention_heads=[1, 2, 2, 3] if tiny else [1, 2, 5, 8],
        decoder_hidden_size=32 if tiny else 768,
        num_labels=150,
        drop_path_rate=0.0,
    )
    return hf.SegformerForSemanticSegmentation(config).eval()


@dataclass(frozen=True)
class Plan:
    """What is known of a model before it runs: its groups, and how its decoder folds."""

    groups: list[GroupPlan]
    rewrites: list[Rewrite]


def plan_model(row: Row, depths: Sequence[int], *, tiny: bool = False) -> Plan:
    """Plan one block of each kind on the CPU, and all others after it."""
    short = replace(row, side=min(row.side, 64 if row.model != "vit-l" else 32))
    model = build(short, [1] * len(depths), tiny=tiny)
    example = Example((torch.randn(1, 3, short.side, short.side),))
    rewrites = []
    if row.model != "vit-l":
        rewrites = [r for r in rewrite(model, example, ("fold-decoder",)) if r.reason is None]
    found = find_groups(model, example).groups
    config = GateConfig(prune_ratio=RATIO, align=ALIGN, order="fixed")
    plans = plan_groups(model, example, found, {group.name: config for group in found})
    spread = [p for plan in plans if plan.mode == "compact" for p in _spread(plan, row, depths)]
    return Plan(spread, rewrites)


def _spread(plan: GroupPlan, row: Row, depths: Sequence[int]) -> Iterator[GroupPlan]:
    """Repeat the plan of a first block for every block of its stage."""
    text = json.dumps(plan.to_json())
    first = re.search(FIRST_BLOCK[row.model], text)
    if first is None:
        raise SystemExit(f"{plan.group.name} lies in no block that repeats")
    for number in range(depths[int(first[1] or 0)]):
        yield GroupPlan.from_json(json.loads(text.replace(first[0], first[0][:-1] + str(number))))


# Forms


def make_form(
    name: str, dense: nn.Module, plan: Plan, x: Tensor
) -> tuple[nn.Module, dict[str, Tensor]]:
    """Make one form of a dense model, and tell which neurons its groups keep: (M, K) each."""
    model = copy.deepcopy(dense)
    if name == "dense":
        return model, {}
    reapply(model, plan.rewrites)
    if name == "folded":
        return model, {}
    random = torch.Generator().manual_seed(0)
    if name == "neurons":
        config = GateConfig(prune_ratio=RATIO, align=ALIGN)
        inject(model, [replace(p, config=config) for p in plan.groups])
        for p in plan.groups:  # no ties, which half precision is full of
            prior = gates(model)[p.group.name].prior
            prior.zero_()[_random_sets(p, 1, random)[0].to(prior.device)] = 1.0
        return model, {}
    several = name == "experts"
    sets = {
        p.group.name: _random_sets(
            p, EXPERTS if several and why_not_experts(model, p) is None else 1, random
        )
        for p in plan.groups
    }
    routed = [p for p in plan.groups if len(sets[p.group.name]) > 1]
    if routed:
        put_experts(model, routed, _random_experts(model, routed, sets, x))
    fixed = [p for p in plan.groups if len(sets[p.group.name]) == 1]
    fix_groups(model, fixed, {p.group.name: KeptNeurons(sets[p.group.name][0]) for p in fixed})
    return model, sets


def _random_sets(plan: GroupPlan, count: int, random: torch.Generator) -> Tensor:
    group = plan.group
    width = group.neurons // group.segments
    kept = kept_count(width, RATIO, ALIGN)
    scores = torch.rand(count, group.segments, width, generator=random)
    index = scores.topk(kept).indices + torch.arange(group.segments)[:, None] * width
    return index.flatten(1).sort(1).values


def _random_experts(
    model: nn.Module, plans: Sequence[GroupPlan], sets: dict[str, Tensor], x: Tensor
) -> dict[str, Experts]:
    """Put the centres of every router at what it gets from a few pictures."""
    pooled: dict[str, Tensor] = {}

    def noted(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            pooled[name] = args[0].mean(1).float()

        return hook

    handles = [
        model.get_submodule(p.group.producers[0].module).register_forward_pre_hook(
            noted(p.group.name)
        )
        for p in plans
    ]
    model(pictures(x.shape[-1]).to(x))
    for handle in handles:
        handle.remove()
    return {
        name: Experts(sets[name], centres, 1.0 / centres.std(0).clamp_min(1e-3), {})
        for name, centres in pooled.items()
    }


def pictures(side: int) -> Tensor:
    """Make a picture for each expert, near which all others lie."""
    generator = torch.Generator().manual_seed(7)
    return torch.randn(EXPERTS, 3, side, side, generator=generator)


# Checks


def reference(
    form: str, model: nn.Module, folded: nn.Module, plan: Plan, sets: dict[str, Tensor], x: Tensor
) -> Tensor:
    """Compute a form's output the long way: all neurons, of which the skipped ones are masked."""
    if form == "neurons":
        set_execution(model, "masked")
        try:
            return output_of(model(x))
        finally:
            set_execution(model, "compact")
    with masked(folded, plan, sets, experts_chosen(model, plan, x)):
        return output_of(folded(x))


def experts_chosen(model: nn.Module, plan: Plan, x: Tensor) -> dict[str, Tensor]:
    """Run a model, and return which expert of each group every input got."""
    chosen: dict[str, Tensor] = {}
    handles = []
    for group in (p.group for p in plan.groups):
        router = getattr(model.get_submodule(group.producers[0].module), "router", None)
        if router is not None:

            def note(
                _module: nn.Module, _args: Any, selection: Any, name: str = group.name
            ) -> None:
                chosen[name] = selection.index[:, 0]

            handles.append(router.register_forward_hook(note))
    try:
        model(x)
    finally:
        for handle in handles:
            handle.remove()
    return chosen


@contextmanager
def masked(
    folded: nn.Module, plan: Plan, sets: dict[str, Tensor], chosen: dict[str, Tensor]
) -> Iterator[None]:
    """Mask a dense model's neurons as a form chose them for the same inputs."""
    handles: list[Any] = []
    for group in (p.group for p in plan.groups if p.group.name in sets):
        index = sets[group.name]
        weight = folded.get_submodule(group.producers[0].module).get_parameter("weight")
        mask = torch.zeros(len(index), group.neurons).scatter(1, index, 1.0).to(weight)
        if len(index) > 1:
            mask = mask[chosen[group.name]]
        mask = mask[:, None]  # (B or 1, 1, neurons)
        made = group.producers if group.kind == "qk" else ()
        handles += [
            folded.get_submodule(channels.module).register_forward_hook(
                lambda _m, _a, y, mask=mask: y * mask
            )
            for channels in made
        ]
        handles += [
            folded.get_submodule(channels.module).register_forward_pre_hook(
                lambda _m, a, mask=mask: (a[0] * mask, *a[1:])
            )
            for channels in group.consumers
        ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def output_of(result: Any) -> Tensor:
    """Return the first tensor of a model's result."""
    first: Tensor = result[0] if isinstance(result, tuple) else next(iter(result.values()))
    return first


def distance(found: Tensor, wanted: Tensor) -> float:
    """Return the norm of the difference over that of what was wanted."""
    found, wanted = found.float(), wanted.float()
    return float((found - wanted).norm() / wanted.norm())


# Runs


@dataclass
class Machine:
    """Where forms run and how they are timed."""

    device: str
    dtype: torch.dtype
    backend: str = "inductor"
    repeats: int = 15

    @property
    def name(self) -> str:
        """The card's name."""
        return torch.cuda.get_device_name() if self.device == "cuda" else "CPU"

    def blocks(self, model: nn.Module, row: Row) -> list[nn.Module]:
        """Return the modules that are compiled: blocks that repeat, and what stands around them."""
        if row.model == "vit-l":
            return [model.get_submodule("embeddings"), *model.get_submodule("layers").children()]
        stages = list(model.get_submodule("segformer.stages").children())
        inner = [m for stage in stages for m in stage.get_submodule("blocks").children()]
        return [*inner, model.get_submodule("decode_head")]

    @contextmanager
    def compiled(self, model: nn.Module, row: Row, mode: str | None = None) -> Iterator[None]:
        """Compile the blocks of a model for a while; equal blocks share their code."""
        blocks = self.blocks(model, row)
        for block in blocks:
            block.compile(dynamic=False, backend=self.backend, **({"mode": mode} if mode else {}))
        try:
            yield
        finally:
            for block in blocks:
                block._compiled_call_impl = None

    def graph(self, call: Callable[[], Any], pool: Any) -> tuple[Callable[[], Any], Tensor]:
        """Record a call as a CUDA graph; on a CPU it is the call itself."""
        if self.device != "cuda":
            return call, output_of(call())
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(side)
        recorded = torch.cuda.CUDAGraph()
        gc.collect()
        gc.disable()  # a graph that is freed during a capture ends it
        try:
            with torch.cuda.graph(recorded, pool=pool):
                output = output_of(call())
        finally:
            gc.enable()
        recorded.replay()
        torch.cuda.synchronize()
        return recorded.replay, output

    def once(self, call: Callable[[], Any]) -> float:
        """Time one call, in milliseconds."""
        if self.device != "cuda":
            start = time.perf_counter()
            call()
            return 1e3 * (time.perf_counter() - start)
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        call()
        last.record()
        last.synchronize()
        return first.elapsed_time(last)

    def medians(self, calls: dict[str, Callable[[], Any]], seconds: float) -> dict[str, float]:
        """Time calls in turns and return the median of each, in milliseconds."""
        for call in calls.values():
            call()
        rounds = {name: [self.once(call)] for name, call in calls.items()}
        each = sum(times[0] for times in rounds.values()) / 1e3
        count = max(3, min(self.repeats, int(seconds / max(each, 1e-6))))
        for _ in range(count):
            for name, call in calls.items():
                rounds[name].append(self.once(call))
        return {name: statistics.median(times[1:]) for name, times in rounds.items()}

    def peak(self, model: nn.Module, x: Tensor) -> float:
        """Return the most memory that a call took, its weights included, in MB."""
        if self.device != "cuda":
            return weights_mb(model)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        model(x)
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 1e6 + weights_mb(model)


def weights_mb(model: nn.Module) -> float:
    """Return the size of a model's parameters, without what is kept for a way back alone."""
    folded = [m for m in model.modules() if isinstance(m, FoldedDecoder)]
    idle = {p for m in folded for kept in m.frozen_modules() for p in kept.parameters()}
    return sum(p.numel() * p.element_size() for p in model.parameters() if p not in idle) / 1e6


@dataclass
class Result:
    """What was measured of one row.

    Attributes:
        row: the setting.
        ms: (form, execution) -> median in milliseconds.
        error: form -> relative error to the masked dense model, eager and compiled.
        peak_mb: form -> most memory of an eager call.
        weights_mb: form -> memory of its parameters.
        faults: what failed, in the words of what failed.
    """

    row: Row
    ms: dict[str, float] = field(default_factory=dict)
    error: dict[str, float] = field(default_factory=dict)
    peak_mb: dict[str, float] = field(default_factory=dict)
    weights_mb: dict[str, float] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {**vars(self), "row": vars(self.row)}


def forms_of(row: Row) -> list[str]:
    """Name the forms of a row; a ViT has no decoder to fold."""
    return [form for form in FORMS if form != "folded" or row.model != "vit-l"]


@torch.no_grad()
def measure(row: Row, machine: Machine, plan: Plan, *, tiny: bool, seconds: float) -> Result:
    """Make, check and time every form of a row."""
    torch._dynamo.reset()
    result = Result(row)
    dense, x = inputs(row, machine, tiny=tiny)
    folded, _ = make_form("folded", dense, plan, x)
    calls: dict[str, Callable[[], Any]] = {}
    pool = torch.cuda.graph_pool_handle() if machine.device == "cuda" else None
    for form in forms_of(row):
        try:
            model, sets = make_form(form, dense, plan, x)
            found = output_of(model(x))
            wanted = reference(form, model, folded, plan, sets, x)
            result.error[form] = distance(found, wanted)
            result.peak_mb[form] = machine.peak(model, x)
            result.weights_mb[form] = weights_mb(model)
            calls[f"{form} eager"] = lambda model=model: model(x)
            graphed, output = machine.graph(calls[f"{form} eager"], pool)
            calls[f"{form} graph"] = graphed
            if form in UNCOMPILED:
                continue
            with machine.compiled(model, row):
                graphed, output = machine.graph(calls[f"{form} eager"], pool)
            calls[f"{form} compiled"] = graphed
            result.error[f"{form} compiled"] = distance(output, wanted)
        except Exception as error:  # one form's failure is a result, and others go on
            result.faults[form] = f"{type(error).__name__}: {str(error)[:300]}"
    result.ms = machine.medians(calls, seconds)
    return result


def inputs(row: Row, machine: Machine, *, tiny: bool) -> tuple[nn.Module, Tensor]:
    """Make the dense model and its pictures where they run."""
    torch.manual_seed(0)
    with torch.device(machine.device):
        dense = build(row, depths_of(row, tiny=tiny), tiny=tiny).to(machine.dtype)
    x = pictures(row.side)[torch.arange(row.batch) % EXPERTS]  # every expert is chosen as often
    x = x + 0.2 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    return dense, x.to(machine.device, machine.dtype)


def depths_of(row: Row, *, tiny: bool) -> Sequence[int]:
    """Return the blocks of every stage."""
    return tuple(min(2, depth) for depth in DEPTHS[row.model]) if tiny else DEPTHS[row.model]


@torch.no_grad()
def autotuned(row: Row, machine: Machine, plan: Plan, form: str) -> dict[str, float]:
    """Time one form compiled as a whole by ``max-autotune``, as users compile a model."""
    torch._dynamo.reset()
    dense, x = inputs(row, machine, tiny=False)
    model, _ = make_form(form, dense, plan, x)
    whole = torch.compile(model, mode="max-autotune", dynamic=False)
    for _ in range(3):
        whole(x)
    return machine.medians({f"{form} max-autotune": lambda: whole(x)}, 3.0)


# Workers that compile ahead


@torch.no_grad()
def warm(rows: Sequence[Row], machine: Machine, place: int, count: int, *, tiny: bool) -> None:
    """Compile every ``count``-th form of the rows, so that the measuring process finds its code."""
    plans: dict[str, Plan] = {}
    every = [(row, form) for row in rows for form in forms_of(row)]
    every = [(row, form) for row, form in every if form != "folded" and form not in UNCOMPILED]
    for row, form in every[place::count]:
        try:
            torch._dynamo.reset()
            if row.model not in plans:
                plans[row.model] = plan_model(row, depths_of(row, tiny=tiny), tiny=tiny)
            dense, x = inputs(row, machine, tiny=tiny)
            model, _ = make_form(form, dense, plans[row.model], x)
            del dense
            with machine.compiled(model, row):
                model(x)
            print(f"  compiled {row} {form}", file=sys.stderr, flush=True)
        except Exception as error:  # the measuring process compiles what is missing
            print(f"  {row} {form}: {str(error)[:200]}", file=sys.stderr, flush=True)
        finally:
            if machine.device == "cuda":
                torch.cuda.empty_cache()


def compile_ahead(workers: int, seconds: float, extra: Sequence[str]) -> None:
    """Run workers for a while; those that are not done by then are stopped."""
    command = [sys.executable, __file__, *extra]
    environment = {**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": "4"}
    running = [
        subprocess.Popen([*command, "--warm", f"{place}/{workers}"], env=environment)
        for place in range(workers)
    ]
    end = time.monotonic() + seconds
    try:
        while time.monotonic() < end and any(worker.poll() is None for worker in running):
            time.sleep(0.2)
    finally:
        for worker in running:
            worker.kill()
            worker.wait()


# The whole run


class TimeIsUpError(BaseException):
    """The minutes that were given are over."""


def _stop(_signal: int, _frame: Any) -> None:
    raise TimeIsUpError


def table(results: Sequence[Result]) -> str:
    """Show compiled times, eager ones in brackets, and how many times dense folded is slower.

    What is not compiled has its eager CUDA graph's time.
    """
    lines = [
        "| row | " + " | ".join(FORMS) + " | fixed | experts | neurons | error | peak MB |",
        "|---" * (len(FORMS) + 6) + "|",
    ]
    for result in results:
        ms = result.ms
        cells = [_times(ms, form) for form in FORMS]
        base = ms.get("folded compiled", ms.get("dense compiled"))
        for form in FORMS[2:]:
            own = ms.get(f"{form} compiled", ms.get(f"{form} graph"))
            cells.append(f"{base / own:.2f}" if base and own else "")
        worst = max(result.error.values(), default=0.0)
        cells.append(f"{worst:.3f}" + (" WRONG" if worst > MOST_ERROR else ""))
        cells.append(
            " / ".join(f"{result.peak_mb.get(form, 0):.0f}" for form in forms_of(result.row))
        )
        lines.append(f"| {result.row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _times(ms: dict[str, float], form: str) -> str:
    best = ms.get(f"{form} compiled", ms.get(f"{form} graph"))
    if best is None:
        return f"({ms[f'{form} eager']:.2f})" if f"{form} eager" in ms else ""
    tuned = ms.get(f"{form} max-autotune")
    whole = f", {tuned:.3f} tuned" if tuned else ""
    return f"{best:.3f} ({ms.get(f'{form} eager', 0.0):.2f}{whole})"


def write(path: Path | None, machine: Machine, results: Sequence[Result]) -> None:
    """Write what is known so far."""
    if path is not None:
        document = {
            "card": machine.name,
            "torch": torch.__version__,
            "dtype": str(machine.dtype),
            "ratio": RATIO,
            "experts": EXPERTS,
            "rows": [result.to_json() for result in results],
        }
        path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def run(rows: Sequence[Row], machine: Machine, arguments: argparse.Namespace) -> list[Result]:
    """Measure rows until the time is up; whole models, autotuned, after the first rows."""
    start, results, plans = time.monotonic(), list[Result](), dict[str, Plan]()
    tiny = arguments.tiny
    try:
        for row in rows:
            if row.model not in plans:
                plans[row.model] = plan_model(row, depths_of(row, tiny=tiny), tiny=tiny)
            begun = time.monotonic()
            results.append(measure(row, machine, plans[row.model], tiny=tiny, seconds=2.0))
            write(arguments.output, machine, results)
            line = table(results[-1:]).splitlines()[-1]
            print(f"{line}  {time.monotonic() - begun:.0f} s", flush=True)
            for form, fault in results[-1].faults.items():
                print(f"  {row} {form}: {fault}", flush=True)
            if machine.device == "cuda":
                gc.collect()
                torch.cuda.empty_cache()
            if arguments.autotune and row in TUNED:
                for form in ("dense", "fixed"):
                    results[-1].ms |= autotuned(row, machine, plans[row.model], form)
                    write(arguments.output, machine, results)
                    print(
                        f"  {row} {form} {results[-1].ms[f'{form} max-autotune']:.3f} ms as a whole"
                    )
    except TimeIsUpError:
        print(f"stopped after {time.monotonic() - start:.0f} s", flush=True)
    return results


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 1 where an output is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=7.0, help="after which the run stops")
    parser.add_argument("--workers", type=int, default=0, help="processes that compile ahead")
    parser.add_argument("--ahead", type=float, default=130.0, help="seconds that workers get")
    parser.add_argument("--rows", nargs="*", help="such as 'b2 512 x1'; all where left out")
    parser.add_argument("--output", type=Path, help="JSON file, written as results come")
    parser.add_argument("--autotune", action="store_true", help="one model as a whole, too")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes on the CPU")
    parser.add_argument("--warm", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    rows = [
        r for r in (TINY_ROWS if given.tiny else ROWS) if not given.rows or str(r) in given.rows
    ]
    if given.tiny:
        machine = Machine("cpu", torch.float32, backend="aot_eager", repeats=3)
    elif torch.cuda.is_available():
        machine = Machine("cuda", torch.bfloat16)
    else:
        raise SystemExit("There is no GPU; --tiny runs the same on a CPU.")
    torch._dynamo.config.recompile_limit = 256
    torch._dynamo.config.accumulated_recompile_limit = 4096
    if given.warm:
        place, count = map(int, given.warm.split("/"))
        warm(rows, machine, place, count, tiny=given.tiny)
        return 0
    start = time.monotonic()
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, _stop)
        signal.setitimer(signal.ITIMER_REAL, 60 * given.minutes)
    print(f"{machine.name}, torch {torch.__version__}, {machine.dtype}", flush=True)
    results: list[Result] = []
    try:
        if given.workers:
            extra = ["--tiny"] if given.tiny else []
            compile_ahead(given.workers, given.ahead, [*extra, *_chosen(given.rows)])
            print(f"compiled ahead for {time.monotonic() - start:.0f} s", flush=True)
        results = run(rows, machine, given)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    print(table(results))
    write(given.output, machine, results)
    return int(any(error > MOST_ERROR for r in results for error in r.error.values()))


def _chosen(rows: Sequence[str] | None) -> list[str]:
    return ["--rows", *rows] if rows else []


if __name__ == "__main__":
    raise SystemExit(main())
