"""What each command looks like when it is used: the end of its help, and what to run next."""

from collections.abc import Mapping

__all__ = ["EXAMPLES", "START", "epilog"]

START = """Start here:

    dynprune demo                             see the whole job, no network
    dynprune inspect MODEL                    see what there is to prune
    dynprune apply MODEL --recipe any --data DATA -o DIR
    dynprune report all DIR --data DATA -o page.html"""

EXAMPLES: Mapping[str, tuple[str, ...]] = {
    "demo": ("dynprune demo -o runs/demo",),
    "inspect": (
        "dynprune inspect nvidia/segformer-b2-finetuned-ade-512-512",
        "dynprune inspect mine:make_model --all",
        "dynprune inspect gated --json",
    ),
    "apply": (
        "dynprune apply --recipe segformer-b2 --data ADEChallengeData2016 -o gated",
        "dynprune apply my_vit --recipe any --data photos -o gated",
        "dynprune apply my_vit --recipe any --set apply.gate.choose=fixed -o narrow",
        "dynprune apply vit --recipe any --data D --set apply.gate.choose=auto -o out",
    ),
    "consolidate": ("dynprune consolidate run --data photos -o routed",),
    "check": ("dynprune check gated --data photos",),
    "distill": (
        "dynprune distill --recipe segformer-b2 --data DATA --teacher MODEL -o run",
        "dynprune distill --recipe vit-classification --data DATA --teacher VIT -o run",
        "dynprune distill --recipe any-features --data mine:f --teacher mine:g -o run",
        "dynprune distill --data DATA --teacher MODEL -o run --resume",
    ),
    "eval": (
        "dynprune eval run --data ADEChallengeData2016",
        "dynprune eval run --data sentences.txt --teacher MODEL",
        "dynprune eval run --data ADEChallengeData2016 --fail-if 'miou<0.5'",
    ),
    "predict": ("dynprune predict run street.jpg harbour.jpg -o seen",),
    "export": (
        "dynprune export run --format onnx -o model.onnx",
        "dynprune export run --format openvino -o model.xml",
        "dynprune export run --format openvino --precision int8 --data DATA -o i8.xml",
    ),
    "report flops": (
        "dynprune report flops gated --input-size 512x512",
        "dynprune report flops segformer-b2 --weights random",
    ),
    "report latency": ("dynprune report latency gated --engines torch,openvino",),
    "report neurons": ("dynprune report neurons run --data ADEChallengeData2016",),
    "report all": ("dynprune report all run --data DATA --teacher MODEL -o page.html",),
    "recipe list": ("dynprune recipe list",),
    "recipe show": ("dynprune recipe show segformer-b2",),
    "recipe copy": ("dynprune recipe copy segformer-b2 -o mine.yaml",),
    "recipe validate": ("dynprune recipe validate mine.yaml",),
}


def epilog(verb: str) -> str | None:
    """Return what stands below a command's help: its examples, a line each."""
    examples = EXAMPLES.get(verb)
    return None if examples is None else "\n\n".join(["Examples:", *examples])
