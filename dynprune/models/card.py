"""The model card: README.md beside the weights, as model hubs show it.

It says what is known when the model is written, and how to load it; nothing is measured for it.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from dynprune.errors import RecipeError
from dynprune.gate import GroupPlan, gates
from dynprune.models.provenance import Provenance
from dynprune.recipe.source import dump_yaml, parse_yaml
from dynprune.rewrite.cuts import expert_groups, fixed_groups

__all__ = ["model_card"]

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_MOST = 256 << 10  # bytes of another card that is read
_TASKS = {
    "ForSemanticSegmentation": "image-segmentation",
    "ForImageClassification": "image-classification",
    "ForObjectDetection": "object-detection",
    "ForSequenceClassification": "text-classification",
    "ForMaskedLM": "fill-mask",
}

_LOADING = """## Load it

```python
{code}
```

The model is called as its dense form is, and gives the same shapes. Where it has gates, each input
computes the neurons that they choose; the rest is skipped, not masked. Loading needs
`pip install dynprune`, and neither a recipe nor training code.

    dynprune inspect DIRECTORY              # which neuron groups are gated, and how
    dynprune report flops DIRECTORY         # multiply-adds: dense, rewritten, pruned
    dynprune eval DIRECTORY --data DATA     # accuracy on your own data
"""


def model_card(
    model: nn.Module,
    provenance: Provenance,
    plans: Sequence[GroupPlan],
    *,
    scores: Mapping[str, float] | None = None,
    steps: int | None = None,
) -> str:
    """Write a model's card as Markdown with YAML front matter.

    Args:
        model: gated, rewritten or dense.
        provenance: where it came from.
        plans: its groups; none where it is dense.
        scores: of the last validation, where there was one.
        steps: optimizer steps of training, where there was any.
    """
    name = Path(provenance.name).name or provenance.name
    fixed = fixed_groups(provenance.rewrites)
    routed = expert_groups(provenance.rewrites)
    title = (
        f"{name}, dynamically pruned" if plans or routed else f"{name}, pruned" if fixed else name
    )
    parts = [f"---\n{dump_yaml(_front(provenance, bool(plans or routed)))}---\n", f"# {title}\n"]
    if plans:
        kept = [gate.keep_ratio for gate in gates(model).values()]
        share = f"{1 - sum(kept) / len(kept):.0%}" if kept else "none"
        parts.append(
            f"[dynprune](https://pypi.org/project/dynprune/) gated `{name}`: every input computes "
            f"only the neurons that it needs. {share} of the neurons are skipped, on average over "
            "its gates.\n"
        )
    if fixed:
        kept = [len(group["kept"]) / group["neurons"] for group in fixed]
        parts.append(
            f"[dynprune](https://pypi.org/project/dynprune/) removed neurons of `{name}` for good: "
            f"{1 - sum(kept) / len(kept):.0%} on average over {len(fixed)} groups. Its layers are "
            "plain and narrow, the same for every input.\n"
        )
    if routed:
        kept = [len(group["sets"][0]) / group["neurons"] for group in routed]
        parts.append(
            f"[dynprune](https://pypi.org/project/dynprune/) gave {len(routed)} hidden layers of "
            f"`{name}` experts: every input, or every token, computes one of a few sets of "
            f"neurons, {sum(kept) / len(kept):.0%} of the layer on average.\n"
        )
    rows = "\n".join(f"| {key} | {value} |" for key, value in _rows(model, plans, scores, steps))
    parts.append(f"| | |\n|---|---|\n{rows}\n")
    parts.append(_LOADING.format(code=_code(provenance.source.factory)))
    parts.append(
        "## Licence\n\nThe weights, and the data that they were made from, keep their own "
        "licences: see those of the dense model.\n"
    )
    return "\n".join(parts)


def _code(factory: str | None) -> str:
    """Return the Python that loads the model; the user brings what makes its architecture."""
    if factory is None:
        return 'import dynprune\n\nmodel = dynprune.load("DIRECTORY")'
    module, _, function = factory.partition(":")
    return (
        f"import dynprune\nimport {module}\n\n"
        f'model = dynprune.load("DIRECTORY", factory={module}.{function})'
    )


def _front(provenance: Provenance, gated: bool) -> dict[str, Any]:
    """Return the front matter; the licence is the dense model's, where its card tells."""
    front: dict[str, Any] = {"library_name": "dynprune"}
    licence = _licence(Path(provenance.name) / "README.md")
    front |= licence or {"license": "other", "license_name": "as-the-dense-model"}
    if _HUB_NAME.fullmatch(provenance.name) and not Path(provenance.name).exists():
        front["base_model"] = provenance.name
    architecture = provenance.source.architecture or ""
    task = next((task for end, task in _TASKS.items() if architecture.endswith(end)), None)
    if task is not None:
        front["pipeline_tag"] = task
    front["tags"] = ["dynprune", *(["dynamic-pruning"] if gated else [])]
    return front


def _licence(card: Path) -> dict[str, Any]:
    """Read the licence fields of another card's front matter; nothing where there are none."""
    try:
        with card.open(encoding="utf-8") as file:
            text = file.read(_MOST)
        matched = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
        front = parse_yaml(matched[1], origin=str(card)) if matched else None
    except (OSError, UnicodeDecodeError, RecipeError):
        return {}
    if not isinstance(front, dict) or not isinstance(front.get("license"), str):
        return {}
    keys = ("license", "license_name", "license_link")
    return {key: front[key] for key in keys if isinstance(front.get(key), str)}


def _rows(
    model: nn.Module,
    plans: Sequence[GroupPlan],
    scores: Mapping[str, float] | None,
    steps: int | None,
) -> list[tuple[str, str]]:
    """Return what is known, a figure a row."""
    total = sum(parameter.numel() for parameter in model.parameters())
    rows = [("parameters", f"{total / 1e6:.2f} M")]
    if plans:
        own = sum(p.numel() for gate in gates(model).values() for p in gate.parameters())
        modes = Counter(plan.mode for plan in plans)
        found = ", ".join(f"{count} {mode}" for mode, count in modes.items())
        rows += [("of them in gates", f"{own / 1e6:.3f} M"), ("neuron groups", found)]
    if steps is not None:
        rows.append(("distillation", f"{steps} steps"))
    for name, value in (scores or {}).items():
        rows.append((f"{name.replace('_', ' ')}, last validation", f"{value:.4f}"))
    return rows
