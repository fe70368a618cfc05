"""`dynprune env`: what a bug report needs to know of this machine."""

from .options import Json
from .terminal import Terminal, table


def run(json: Json = False) -> None:
    """Show versions, processor and threads, for a bug report."""
    from dynprune.models.storage import environment

    found = environment()
    Terminal(json=json).result(found, table("", "", rows=list(found.items())))
