"""Load models of the transformers library, and prove that every weight was really there.

Weights come from safetensors alone: nothing is unpickled, no code of a checkpoint is run. A
checkpoint from which a weight is missing is refused rather than filled with random numbers.
"""

import copy
import json
import logging
import socket
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import nn

from dynprune.errors import InputError
from dynprune.files import written_directory
from dynprune.host.quiet import without_logs
from dynprune.models.limits import (
    Header,
    check_architecture,
    check_numbers,
    machine_elements,
    read_header,
)

__all__ = [
    "build_architecture",
    "configuration_of",
    "hub_is_reachable",
    "load_pretrained",
    "read_configuration",
    "write_pretrained",
]

logger = logging.getLogger(__name__)

_CONFIG = "config.json"
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_SHOWN = 5
_LONGEST = 300  # characters of a third party's message
_MOST_BYTES = 16 << 20  # of a configuration
_SLACK = 1 << 20  # parameters that an architecture may have and its file need not hold


def load_pretrained(name: str) -> nn.Module:
    """Load a transformers directory or hub name, with the class that its configuration names.

    Args:
        name: a directory with ``config.json`` and safetensors, or a model's name on the hub.

    Returns:
        the model in float32 and evaluation mode.

    Raises:
        InputError: if the configuration or a weight is missing, damaged or of the wrong shape,
            declares more than the weights' files hold, or the hub cannot be reached.
    """
    headers = _check_weights(Path(name)) if Path(name).is_dir() else []
    config = _configuration(name)
    architecture = _class_of(config, name)
    if headers:
        held = sum(header.elements for header in headers)
        _check_size(name, architecture, config, held + _SLACK, "its weights' file")

    def read(*, online: bool) -> Any:
        return architecture.from_pretrained(
            name,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
            local_files_only=not online,
        )

    model, report = _read(name, read, "weights")
    _check_report(name, architecture.__name__, report)
    return model.eval()


def read_configuration(name: str) -> dict[str, Any]:
    """Read the configuration of a transformers directory or hub name as a plain dict.

    Raises:
        InputError: if there is none, or the hub cannot be reached.
    """
    config = _configuration(name)
    _class_of(config, name)
    return _plain(config)


def configuration_of(model: nn.Module) -> dict[str, Any] | None:
    """Return the transformers configuration of ``model``, its class among it; else ``None``.

    A part of a model, or a class that somebody derived, cannot be built again by its name.
    """
    import transformers

    if not isinstance(model, transformers.PreTrainedModel):
        return None
    if getattr(transformers, type(model).__name__, None) is not type(model):
        return None
    return {**_plain(model.config), "architectures": [type(model).__name__]}


def build_architecture(
    architecture: str, config: Mapping[str, Any], *, most: int | None = None
) -> nn.Module:
    """Build a transformers model without weights: parameters are as freshly initialised.

    Args:
        architecture: name of a model class of the transformers library.
        config: its configuration, ``model_type`` among it.
        most: parameters that are believed; by default as many as this machine's memory holds.

    Raises:
        InputError: if there is no such class or model type, or the configuration is not valid or
            asks for more parameters than ``most``.
    """
    import transformers

    kind = config.get("model_type")
    if kind not in transformers.CONFIG_MAPPING:
        raise InputError(
            f"model_type={kind!r} is none of transformers {transformers.__version__}'s model types"
        )
    named = {**config, "architectures": [architecture]}
    check_numbers(config, where=f"the configuration of {architecture}")
    try:
        with _quiet():
            parsed = transformers.CONFIG_MAPPING[kind].from_dict(named)
            found = _class_of(parsed, architecture)
            limit = "this machine's memory" if most is None else "its weights' file"
            _check_size(architecture, found, parsed, most or machine_elements(), limit)
            model: nn.Module = found(parsed)
    except InputError:
        raise
    except Exception as error:  # every configuration class has its own checks
        raise InputError(
            f"{architecture} cannot be built from its configuration: {_first(error)}"
        ) from error
    return model.eval()


def write_pretrained(model: nn.Module, directory: Path, *, overwrite: bool = False) -> None:
    """Write a transformers model as ``config.json`` and ``model.safetensors``, or nothing.

    Raises:
        OutputError: if the directory is not empty or cannot be written.
    """
    with written_directory(directory, overwrite=overwrite) as beside, _quiet():
        model.save_pretrained(beside)  # type: ignore[operator]
        for path in beside.iterdir():
            path.chmod(0o644)  # safetensors keeps its files from everyone else


def _check_size(name: str, architecture: Any, config: Any, most: int, limit: str) -> None:
    try:
        check_architecture(lambda: architecture(copy.deepcopy(config)), most, limit)
    except InputError as error:
        raise InputError(f"the configuration of {name} is not believed: {error}") from error


def _configuration(name: str) -> Any:
    import transformers

    if (Path(name) / _CONFIG).is_file():
        _check_configuration(Path(name) / _CONFIG)

    def read(*, online: bool) -> Any:
        return transformers.AutoConfig.from_pretrained(
            name, local_files_only=not online, trust_remote_code=False
        )

    return _read(name, read, "configuration")


def _read(name: str, read: Callable[..., Any], part: str) -> Any:
    """Read a part of a model from its directory or the hub's cache, and else from the hub.

    Transformers raises many kinds for a bad checkpoint, so all of them are caught.
    """
    with _quiet():
        try:
            return read(online=False)
        except Exception as error:  # transformers raises many kinds
            if Path(name).is_dir():
                raise InputError(f"the {part} of {name} cannot be read: {_first(error)}") from error
            _check_hub(name, error)
        try:
            return read(online=True)
        except Exception as error:  # likewise
            raise InputError(
                f"no {part} of a model {name!r}: there is no such directory, and the hub "
                f"answered: {_first(error)}"
            ) from error


def hub_is_reachable() -> bool:
    """Whether the hub may be asked and its name resolves: its client would retry for long."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    if not urllib.request.getproxies():
        try:
            socket.getaddrinfo(_hub_host(), 443)
        except OSError:
            return False
    return True


def _hub_host() -> str | None:
    from huggingface_hub import constants

    return urlsplit(constants.ENDPOINT).hostname


def _check_hub(name: str, error: Exception) -> None:
    """Refuse at once where the hub cannot be reached."""
    if not hub_is_reachable():
        raise InputError(
            f"no model {name!r}: there is no such directory, it is not in the hub's local cache, "
            f"and {_hub_host()} cannot be reached; give a directory, or download the model first"
        ) from error


def _class_of(config: Any, name: str) -> Any:
    """Find the model class that a configuration names; it must be transformers' own."""
    import transformers

    names = config.architectures or []
    if not names:
        return transformers.AutoModel._model_mapping[type(config)]
    found = getattr(transformers, names[0], None)
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        raise InputError(
            f"{name}: the architecture {names[0]!r} is no model class of transformers "
            f"{transformers.__version__}; code that comes with a checkpoint is never run, "
            "so give it as module:factory"
        )
    return found


def _check_configuration(path: Path) -> None:
    """Check a configuration's size and numbers, before transformers builds anything from it."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise InputError(f"{path} is larger than any configuration")
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"the configuration of {path.parent} cannot be read: {_first(error)}"
        ) from error
    check_numbers(values, where=str(path))


def _check_weights(directory: Path) -> list[Header]:
    """Check that every safetensors file of a directory is there and whole, by its header."""
    if not (directory / _CONFIG).is_file():
        raise InputError(f"{directory} is no model's directory: it holds no config.json")
    if (directory / _INDEX).is_file():
        try:
            shards = json.loads((directory / _INDEX).read_text("utf-8"))["weight_map"].values()
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(f"{directory / _INDEX} is no index of weights: {error}") from error
        files = sorted({_beside(directory, str(shard)) for shard in shards})
    else:
        files = [directory / _WEIGHTS]
    for path in files:
        if not path.is_file():
            pickles = sorted(found.name for found in directory.glob("*.bin"))
            advice = (
                f"{', '.join(pickles)} may run code when it is read, so convert it to safetensors"
                if pickles
                else "add the file, or build random weights with --weights random"
            )
            raise InputError(f"weights missing: {path} does not exist; {advice}")
    return [read_header(path) for path in files]


def _beside(directory: Path, shard: str) -> Path:
    """Return the path of a shard; an index names files of its own directory alone."""
    if Path(shard).name != shard:
        raise InputError(
            f"{directory / _INDEX} names {shard[:80]!r}, a file outside of {directory}"
        )
    return directory / shard


def _check_report(name: str, architecture: str, report: Mapping[str, Any]) -> None:
    """Refuse a load that left a parameter at its random start."""
    missing = sorted(map(str, report["missing_keys"]))
    mismatched = sorted(str(key) for key in report["mismatched_keys"])
    for kind, keys in (("missing", missing), ("of another shape", mismatched)):
        if keys:
            shown = ", ".join(keys[:_SHOWN]) + (", ..." if len(keys) > _SHOWN else "")
            raise InputError(
                f"{name} does not hold every weight of {architecture}: {len(keys)} {kind} "
                f"({shown}); give a complete checkpoint of this architecture"
            )
    if report["unexpected_keys"]:
        logger.info("%s: %d weights are not used", name, len(report["unexpected_keys"]))


def _plain(config: Any) -> dict[str, Any]:
    values = json.loads(config.to_json_string(use_diff=False))
    for key in ("_name_or_path", "transformers_version"):
        values.pop(key, None)
    return values


def _first(error: Exception) -> str:
    """Return the part of a third party's message that fits in ours: its first two lines."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:_LONGEST] or type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers' bars and tables: what matters of them is raised."""
    from transformers.utils import logging as hub_logging

    bars = hub_logging.is_progress_bar_enabled()
    hub_logging.disable_progress_bar()  # transformers knows no other way than the process's own
    try:
        with without_logs("transformers"):
            yield
    finally:
        if bars:
            hub_logging.enable_progress_bar()
