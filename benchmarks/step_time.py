"""Time a distillation step against a plain fine-tuning step of the dense model.

The dense model is fine-tuned as it comes: unfolded, cross entropy, no teacher. The student is
folded and gated, runs masked (as training does) and learns from the folded teacher, in each stage
of the recipe. All take steps in turns, so that a busy machine slows all of them alike.

    python benchmarks/step_time.py --recipe segformer-b0 --crop 256 256 --batch 4
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch

from dynprune.distill import Execution, LossTerm, StagePlan, TrainingPlan, join_processes
from dynprune.distill.schedule import PruneSchedule
from dynprune.distill.step import Stepper
from dynprune.models import load_model
from dynprune.pipeline import apply_recipe, make_teacher
from dynprune.pipeline.arguments import model_arguments, training_arguments
from dynprune.recipe import load_recipe


def steppers(recipe_name: str, ratio: float) -> dict[str, Stepper]:
    recipe = load_recipe(recipe_name, [f"sparsity.final={ratio}"])
    arguments = training_arguments(recipe)
    execution = Execution(device="cpu", precision=recipe.runtime.precision)
    accelerator = join_processes("cpu")

    def load() -> object:
        return load_model(None, weights="random", **model_arguments(recipe))

    def stepper(student: object, teacher: object, stage: StagePlan) -> Stepper:
        plan = TrainingPlan(
            [stage],
            optimizer=arguments["optimizer"],
            learning_rate=arguments["learning_rate"],
            sparsity=PruneSchedule("constant"),
            penalties=arguments["penalties"] if teacher is not None else [],
            execution=execution,
        )
        return Stepper(student, teacher, accelerator, plan)

    plain = StagePlan("plain", 10**6, (LossTerm("ce"),))
    found = {"dense fine-tuning": stepper(load().module, None, plain)}
    for stage in arguments["stages"]:
        dense = load()
        teacher = make_teacher(dense, recipe.rewrite)
        found[f"distillation, {stage.name}"] = stepper(apply_recipe(dense, recipe), teacher, stage)
    return found


def seconds(call: Callable[[], object]) -> tuple[float, float]:
    """Wall-clock and processor seconds of a call."""
    wall, processor = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - processor


def row(
    name: str, measured: list[tuple[float, float]], plain: list[tuple[float, float]]
) -> dict[str, object]:
    """Medians, and medians of the ratios to the plain step of the same round."""
    found: dict[str, object] = {"step": name}
    for index, clock in enumerate(("wall", "processor")):
        values = [pair[index] for pair in measured]
        ratios = [pair[index] / other[index] for pair, other in zip(measured, plain, strict=True)]
        found[f"{clock}_seconds"] = round(statistics.median(values), 3)
        found[f"{clock}_ratio"] = round(statistics.median(ratios), 3)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="segformer-b0")
    parser.add_argument("--crop", type=int, nargs=2, default=(256, 256))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(options.batch, 3, *options.crop, generator=generator)
    labels = torch.randint(0, 19, (options.batch, *options.crop), generator=generator)
    variants = steppers(options.recipe, options.ratio)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
    for turn in range(options.rounds + 1):
        for name, stepper in variants.items():
            elapsed = seconds(lambda s=stepper, t=turn: s(t, (images, labels)))
            if turn:  # the first round warms up
                times[name].append(elapsed)
    plain = times["dense fine-tuning"]
    rows = [row(name, measured, plain) for name, measured in times.items()]
    if options.json:
        settings = vars(options) | {"torch": torch.__version__}
        print(json.dumps({"settings": settings, "rows": rows}, indent=1))
        return
    print(f"{'step':24} {'wall s':>8} {'of plain':>9} {'cpu s':>8} {'of plain':>9}")
    for found in rows:
        name, *figures = found.values()
        print(
            f"{name:24} "
            + " ".join(f"{f:{w}.3f}" for f, w in zip(figures, (8, 9, 8, 9), strict=True))
        )


if __name__ == "__main__":
    main()
