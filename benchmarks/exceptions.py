"""Count what the type checker, the error tree and other libraries' interfaces are not asked about.

    python benchmarks/exceptions.py [COMMIT] [--unsaid]

Casts, ignored types and lints, excepts that catch everything, and reaches into what others
keep private: in COMMIT and in the working tree. ``--unsaid`` lists those without a reason: a
comment in the same line or in one beside it, or one of `REASONS`.
"""

import argparse
import ast
import io
import re
import subprocess
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("dynprune", "cli")
KINDS = ("cast", "type: ignore", "noqa", "broad except", "private reach")
BROAD = {"Exception", "BaseException"}

FX = "fx types an argument as anything; the operator's schema, which was matched, says what it is"
PARTS = "modules are looked into and put together anew, which torch has no public name for"
REASONS = {
    r"_pytree": "torch's own trees, by which export and its exporters lay calls out",
    r"_dynamo|_orig_mod": "how torch.compile wraps a module is public in this name alone",
    r"_BatchNorm|_DropoutNd|_ConvNd": "torch's common class of a layer in one, two and three axes",
    r"\._(parameters|buffers|modules)\b": PARTS,
    r"_(forward|backward)(_pre)?_hooks": "hooks of the user's are looked for, and handed on",
    r"_schema|_ops\.OpOverload|_python_dispatch": "an operator is named there alone",
    r"_get_current_function_mode": "which mode is on top is said by this alone",
    r"_hf_hook": "where accelerate puts the hook that moves a layer",
    r"B010": "an assignment to sys.stderr would be checked for a whole TextIO",
    r"_functorch": "a value under vmap must be told from a plain one",
    r"sys\._getframe": "the line of the host's code that asks about a value",
    r"_model_mapping": "which class transformers would build, without building it",
    r"_qkv_same_embed_dim": "how nn.MultiheadAttention packs its weights",
    r"_ATEN\._|aten\._": "the names of ATen's own operators",
    r"PyYAML": "PyYAML's own attribute and signature",
    r"type: ignore\[(union-attr|arg-type|assignment|index|operator)": FX,
    r"cast\((fx\.Node|list\[int\]|Sequence\[Any\]|Any|int),?": FX,
    r"cast\((fx\.Node \| None|_BatchNorm|FoldedDecoder)": "found by what was matched before",
    r"cast\(Tensor": "torch types a module's tensors as tensors or modules",
    r"SIM118": "a file of safetensors is no dict",
    r"except BaseException": "the change is taken back, and the error raised again",
}
"""What a line says -> why it stays, for what is written in many places for one reason."""


def found_in(text: str) -> Iterator[tuple[str, int]]:
    """Yield the kind and line of everything that is counted in a source."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            for kind in ("type: ignore", "noqa"):
                if kind in token.string:
                    yield kind, token.start[0]
    for node in ast.walk(ast.parse(text)):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("cast", "typing.cast"):
            yield "cast", line
        elif isinstance(node, ast.ExceptHandler):
            kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            if any(kind is None or ast.unparse(kind) in BROAD for kind in kinds):
                yield "broad except", line
        elif isinstance(node, ast.ImportFrom):
            foreign = not (node.module or "").startswith("dynprune")
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            if foreign and any(is_private(name) for name in names):
                yield "private reach", line
        elif isinstance(node, ast.Attribute) and is_private(node.attr):
            owner = ast.unparse(node.value)
            if owner not in ("self", "cls", "super()"):
                yield "private reach", line


def is_private(name: str) -> bool:
    """Whether a name is meant for its own module or class alone."""
    return name.startswith("_") and not name.endswith("__") and name != "_"


def says_why(text: str, line: int) -> bool:
    """Whether one of `REASONS` fits a line, or a comment stands in it or beside it."""
    said = text.splitlines()[line - 1]
    if any(re.search(pattern, said) for pattern in REASONS):
        return True
    comments: dict[int, str] = {}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            comments[token.start[0]] = token.string
    for place in (line - 1, line, line + 1):
        comment = comments.get(place, "")
        bare = comment.startswith(("# type: ignore", "# noqa")) and " - " not in comment
        if comment and not (bare and comment.count("#") == 1):
            return True
    return False


def sources(commit: str | None) -> dict[str, str]:
    """Read every source of a commit, or of the working tree."""
    if commit is None:
        paths = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
        return {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in paths}
    listed = git("ls-tree", "-r", "--name-only", commit, *FOLDERS).split()
    return {name: git("show", f"{commit}:{name}") for name in listed if name.endswith(".py")}


def git(*arguments: str) -> str:
    """Run git in this repository and return what it prints."""
    done = subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout


def main() -> None:
    """Print the table, and what is without a reason."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("commit", nargs="?", default="07b25fc", help="that is compared with")
    parser.add_argument("--unsaid", action="store_true", help="list what has no reason")
    asked = parser.parse_args()
    now = sources(None)
    before = Counter(kind for text in sources(asked.commit).values() for kind, _ in found_in(text))
    after = Counter(kind for text in now.values() for kind, _ in found_in(text))
    unsaid = [
        (name, line, kind)
        for name, text in now.items()
        for kind, line in found_in(text)
        if not says_why(text, line)
    ]
    bare = Counter(kind for _, _, kind in unsaid)
    print(f"| what | {asked.commit} | now | of these without a reason |\n|---|---|---|---|")
    for kind in KINDS:
        print(f"| {kind} | {before[kind]} | {after[kind]} | {bare[kind]} |")
    if asked.unsaid:
        for name, line, kind in unsaid:
            print(f"{name}:{line}: {kind}")


if __name__ == "__main__":
    main()
