"""Files made to harm: each must be refused, and nothing run or written that was not asked for."""

import json
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from benchmarks.reliability.process import Ended, command
from benchmarks.reliability.section import Section
from benchmarks.reliability.world import World

__all__ = ["CASES", "hostile_input"]

Case = Callable[[World, Path], list[str]]


def hostile_input(world: World, work: Path, *, run: Callable[..., Ended] = command) -> Section:
    """Try every case; all are to be refused."""
    section = Section("hostile input")
    for case in CASES:
        fault = fault_of(case, world, work / case.__name__, run=run)
        section.add("refused" if fault is None else "not refused", fault)
    return section


def fault_of(
    case: Case, world: World, work: Path, *, run: Callable[..., Ended] = command
) -> str | None:
    """Try one case; say what is wrong, or None where it was refused and did no harm."""
    work.mkdir(parents=True)
    outside = work / "outside"
    outside.mkdir()
    (outside / "precious.txt").write_text("mine")
    ended = run(case(world, work))
    fault = ended.fault((2, 3, 4))
    if fault is None and (work / "harm").exists():
        fault = "code of a file was run"
    if fault is None and [path.read_text() for path in outside.iterdir()] != ["mine"]:
        fault = "something was written outside of the output directory"
    return fault and f"{case.__name__}: {fault}: {ended.err[-300:]}"


def _recipe(work: Path, text: str) -> list[str]:
    path = work / "hostile.yaml"
    path.write_text(text)
    return ["recipe", "validate", str(path)]


def yaml_tag_that_runs_code(_: World, work: Path) -> list[str]:
    """A tag that PyYAML's unsafe loaders turn into a call."""
    return _recipe(work, f"name: !!python/object/apply:os.mkdir ['{work / 'harm'}']\n")


def yaml_tag_that_imports(_: World, work: Path) -> list[str]:
    """A tag that imports a module."""
    return _recipe(work, "name: !!python/name:antigravity.fly ''\n")


def yaml_anchors_that_explode(_: World, work: Path) -> list[str]:
    """Nine levels of nine aliases: a thousand million values in half a kilobyte."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [
        f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]" for level in range(1, 10)
    ]
    return _recipe(work, "\n".join(lines) + "\n")


def yaml_that_contains_itself(_: World, work: Path) -> list[str]:
    """An anchor that holds its own alias."""
    return _recipe(work, "name: &a [*a]\n")


def yaml_without_an_end(_: World, work: Path) -> list[str]:
    """Brackets a hundred thousand deep."""
    return _recipe(work, "[" * 100_000)


def recipe_of_a_gigabyte(_: World, work: Path) -> list[str]:
    """A sparse file that claims to be a recipe."""
    path = work / "hostile.yaml"
    with path.open("wb") as file:
        file.truncate(1 << 30)
    return ["recipe", "validate", str(path)]


def recipe_with_a_pattern_that_never_ends(world: World, work: Path) -> list[str]:
    """A regular expression whose backtracking doubles with every letter."""
    path = work / "hostile.yaml"
    text = world.recipe.read_text()
    path.write_text(text.replace("{kind: qk}", r"{match: 're:(([a-z0-9._]+)+)+!'}"))
    return ["inspect", str(world.dense), "--recipe", str(path), "--device", "cpu"]


def recipe_that_names_code(world: World, work: Path) -> list[str]:
    """A recipe whose model is a function beside it."""
    _plant(work)
    path = work / "hostile.yaml"
    start, end = world.recipe.read_text().split("model:")[0], "rewrite: []\n"
    rest = world.recipe.read_text().split("rewrite: [fold-decoder]\n")[1]
    path.write_text(f"{start}model: {{source: factory, factory: 'planted:make'}}\n{end}{rest}")
    return ["apply", "--recipe", str(path), "-o", str(work / "out")]


def recipe_named_by_a_path_outside(_: World, work: Path) -> list[str]:
    """A recipe whose name climbs out of a directory."""
    return _recipe(work, "schema: dynprune/1\nname: ../../outside/precious\n")


def manifest_that_names_code(world: World, work: Path) -> list[str]:
    """A downloaded model whose architecture is a function beside it."""
    _plant(work)
    return _manifest(world, work, source={"kind": "factory", "factory": "planted:make"})


def manifest_with_a_path_as_architecture(world: World, work: Path) -> list[str]:
    """A downloaded model whose architecture is a path."""
    config = json.loads((world.gated / "config.json").read_text())
    source = {"kind": "transformers", "architecture": "../../outside/precious", "config": config}
    return _manifest(world, work, source=source)


def manifest_with_another_librarys_function(world: World, work: Path) -> list[str]:
    """A downloaded model whose architecture is some name of the transformers library."""
    config = json.loads((world.gated / "config.json").read_text())
    source = {"kind": "transformers", "architecture": "os.system", "config": config}
    return _manifest(world, work, source=source)


def manifest_with_remote_code(world: World, work: Path) -> list[str]:
    """A transformers directory that asks for code of its own."""
    model = work / "model"
    shutil.copytree(world.dense, model)
    (model / "planted.py").write_text(f"import os\nos.mkdir({str(work / 'harm')!r})\n")
    path = model / "config.json"
    config = json.loads(path.read_text())
    config["auto_map"] = {"AutoConfig": "planted.Config", "AutoModel": "planted.Model"}
    path.write_text(json.dumps({**config, "model_type": "planted"}))
    return ["inspect", str(model), "--device", "cpu"]


def manifest_of_a_terabyte(world: World, work: Path) -> list[str]:
    """A downloaded model that declares layers of a terabyte."""
    manifest = json.loads((world.gated / "dynprune.json").read_text())
    manifest["source"]["config"]["decoder_hidden_size"] = 2**30
    return _manifest(world, work, source=manifest["source"])


def manifest_with_a_layer_for_ever(world: World, work: Path) -> list[str]:
    """A downloaded model that declares a thousand million layers."""
    manifest = json.loads((world.gated / "dynprune.json").read_text())
    manifest["source"]["config"]["depths"] = [1, 10**9]
    return _manifest(world, work, source=manifest["source"])


def manifest_that_reaches_into_modules(world: World, work: Path) -> list[str]:
    """A downloaded model whose group names an attribute that is no size of heads."""
    manifest = json.loads((world.gated / "dynprune.json").read_text())
    group = next(group for group in manifest["groups"] if group["mode"] != "refused")
    group["heads"] = [{"module": "", "attribute": "__class__", "per_head": True}]
    return _manifest(world, work, groups=manifest["groups"])


def index_with_a_shard_outside(world: World, work: Path) -> list[str]:
    """A transformers directory whose index names a file above it."""
    model = work / "model"
    shutil.copytree(world.dense, model)
    shutil.move(model / "model.safetensors", work / "stolen.safetensors")
    index = {"weight_map": {"a": "../stolen.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    return ["inspect", str(model), "--device", "cpu"]


def pickle_in_the_place_of_weights(world: World, work: Path) -> list[str]:
    """A transformers directory whose weights are a pickle that runs code."""
    model = work / "model"
    shutil.copytree(world.dense, model)
    (model / "model.safetensors").unlink()
    harm = f"cos\nmkdir\n(S'{work / 'harm'}'\ntR.".encode()
    (model / "pytorch_model.bin").write_bytes(harm)
    return ["inspect", str(model), "--device", "cpu"]


def output_that_is_a_symlink(world: World, work: Path) -> list[str]:
    """An output that leads out of the directory it seems to be in."""
    (work / "out").symlink_to(work / "outside")
    return world.apply(work / "out", "--overwrite")


def run_with_a_symlink_in_it(world: World, work: Path) -> list[str]:
    """A run's directory whose checkpoints lead elsewhere."""
    run = work / "run"
    run.mkdir()
    (run / "checkpoints").symlink_to(work / "outside")
    return world.distill(run, "--resume")


def overwriting_a_symlink(world: World, work: Path) -> list[str]:
    """An output that holds a link to somebody's file, to be overwritten."""
    out = work / "out"
    out.mkdir()
    (out / "thesis.txt").symlink_to(work / "outside" / "precious.txt")
    return world.distill(out, "--overwrite")


def png_of_a_gigapixel(world: World, work: Path) -> list[str]:
    """A few bytes that declare a thousand million pixels."""
    path = work / "bomb.png"
    _write_png(path, 32_768, 32_768, zlib.compress(b"\0" * (1 << 26), 9))
    return _predict(world, work, path)


def png_that_holds_nothing(world: World, work: Path) -> list[str]:
    """A hundred bytes that declare sixty million pixels."""
    path = work / "bomb.png"
    _write_png(path, 8000, 7900, zlib.compress(b"\0" * 100))
    return _predict(world, work, path)


def png_with_a_text_bomb(world: World, work: Path) -> list[str]:
    """A comment that inflates to sixty-four megabytes."""
    path = work / "bomb.png"
    text = b"Comment\0\0" + zlib.compress(b"\0" * (1 << 26), 9)
    _write_png(path, 8, 8, zlib.compress(b"\0" * 200), (b"zTXt", text))
    return _predict(world, work, path)


def jpeg_of_a_gigapixel(world: World, work: Path) -> list[str]:
    """A few hundred bytes that declare a picture of 65,500 x 65,500."""
    path = work / "bomb.jpg"
    Image.new("RGB", (16, 16)).save(path)
    data = path.read_bytes()
    at = data.index(b"\xff\xc0") + 5
    path.write_bytes(data[:at] + struct.pack(">HH", 65_500, 65_500) + data[at + 4 :])
    return _predict(world, work, path)


def picture_that_is_a_program(world: World, work: Path) -> list[str]:
    """A PostScript program named as a picture."""
    path = work / "picture.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    return _predict(world, work, path)


CASES: tuple[Case, ...] = (
    yaml_tag_that_runs_code,
    yaml_tag_that_imports,
    yaml_anchors_that_explode,
    yaml_that_contains_itself,
    yaml_without_an_end,
    recipe_of_a_gigabyte,
    recipe_with_a_pattern_that_never_ends,
    recipe_that_names_code,
    recipe_named_by_a_path_outside,
    manifest_that_names_code,
    manifest_with_a_path_as_architecture,
    manifest_with_another_librarys_function,
    manifest_with_remote_code,
    manifest_of_a_terabyte,
    manifest_with_a_layer_for_ever,
    manifest_that_reaches_into_modules,
    index_with_a_shard_outside,
    pickle_in_the_place_of_weights,
    output_that_is_a_symlink,
    run_with_a_symlink_in_it,
    overwriting_a_symlink,
    png_of_a_gigapixel,
    png_that_holds_nothing,
    png_with_a_text_bomb,
    jpeg_of_a_gigapixel,
    picture_that_is_a_program,
)
"""Each prepares its files in a directory and gives the command that is handed them."""


def _plant(work: Path) -> None:
    """Put code beside a file that names it."""
    (work / "planted.py").write_text(f"import os\nos.mkdir({str(work / 'harm')!r})\n")


def _manifest(world: World, work: Path, **changes: object) -> list[str]:
    model = work / "model"
    shutil.copytree(world.gated, model)
    path = model / "dynprune.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return ["inspect", str(model), "--device", "cpu"]


def _predict(world: World, work: Path, picture: Path) -> list[str]:
    return ["predict", str(world.gated), str(picture), "-o", str(work / "seen"), "--device", "cpu"]


def _write_png(path: Path, width: int, height: int, stream: bytes, *more: tuple) -> None:
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)), *more]
    chunks += [(b"IDAT", stream), (b"IEND", b"")]
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
            for kind, body in chunks
        )
    )
