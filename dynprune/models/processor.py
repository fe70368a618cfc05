"""Find the settings of a model's own image processor, which lie beside its weights."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from dynprune.data import PROCESSOR_FILE, is_of_pictures
from dynprune.errors import InputError
from dynprune.models.pretrained import hub_is_reachable

__all__ = ["PROCESSOR_FILE", "find_processor", "processor_beside", "read_processor_file"]

logger = logging.getLogger(__name__)

_NESTED_FILE, _NESTED_KEY = "processor_config.json", "image_processor"
_MOST_BYTES = 1 << 20


def find_processor(name: str) -> dict[str, Any] | None:
    """Return the image processor's settings of a transformers directory or hub name, or None.

    Of a hub name they are taken from the local cache, or fetched as the weights are.

    Raises:
        InputError: if the file is there and cannot be read.
    """
    if Path(name).is_dir():
        return read_processor_file(Path(name))
    found = _of_hub(name, PROCESSOR_FILE) or _of_hub(name, _NESTED_FILE)
    return None if found is None else read_processor_file(found.parent)


def processor_beside(model: nn.Module) -> dict[str, Any] | None:
    """Return the settings that lie where transformers loaded a model from; None where none do.

    Nothing is fetched: a model of the hub left its file in the cache, or it is not known.

    Raises:
        InputError: if the file is there and cannot be read.
    """
    name = getattr(model, "name_or_path", None)
    if not isinstance(name, str) or not name:
        return None
    if Path(name).is_dir():
        return read_processor_file(Path(name))
    found = _cached(name, PROCESSOR_FILE) or _cached(name, _NESTED_FILE)
    return read_processor_file(Path(found).parent) if isinstance(found, str) else None


def read_processor_file(directory: Path) -> dict[str, Any] | None:
    """Return the image processor's settings that a directory holds; None where it has none.

    Raises:
        InputError: if the file is damaged.
    """
    values = _read_object(directory / PROCESSOR_FILE)
    if values is None:
        nested = (_read_object(directory / _NESTED_FILE) or {}).get(_NESTED_KEY)
        values = dict(nested) if isinstance(nested, Mapping) else None
    return values if values is not None and is_of_pictures(values) else None


def _read_object(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise InputError(f"{path} is larger than any processor's settings")
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path} cannot be read ({error}); it says how pictures go into the model, so mend it, "
            "or remove it to use ImageNet's mean and standard deviation"
        ) from error
    if not isinstance(values, dict):
        raise InputError(f"{path} holds {type(values).__name__}, not the settings of a processor")
    return values


def _of_hub(name: str, file: str) -> Path | None:
    """Return the path of a model's file in the hub's cache, fetched where it can be."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    cached = _cached(name, file)
    if isinstance(cached, str):
        return Path(cached)
    if cached is not None or not hub_is_reachable():  # known to have none, or not to be asked
        return None
    try:
        return Path(hf_hub_download(name, file))
    except EntryNotFoundError:
        return None
    except (HfHubHTTPError, OSError) as error:
        logger.warning("%s of %s cannot be fetched: %s", file, name, str(error).splitlines()[0])
        return None


def _cached(name: str, file: str) -> Any:
    """Return a file's path in the hub's cache, None, or a token that says that there is none."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        return try_to_load_from_cache(name, file)
    except HFValidationError:  # no name of the hub: a directory that is gone
        return None
