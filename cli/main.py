"""The `dynprune` command: its verbs, and the one place where errors become exit codes."""

import errno
import logging
import sys
import traceback
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from dynprune.errors import DynpruneError

from .examples import START, epilog

__all__ = ["app", "main"]

# What typer raises for itself: a clean exit, and the usage errors that it prints and exits 2 on.
_TYPERS_OWN: tuple[type[BaseException], ...] = (
    typer.Exit,
    typer.Abort,
    *typer.BadParameter.__bases__,
)


_LONGEST_LINE = 1000  # characters
_OUT_OF_MEMORY = "out of memory; use a smaller input, batch or model"
_TORCHS_OUT_OF_MEMORY = ("not enough memory", "can't allocate memory", "out of memory")


class _Boundary(TyperGroup):
    """Turn whatever a command raises into one message on stderr and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except _TYPERS_OWN:
            raise
        except DynpruneError as error:
            raise _exit(str(error), error.exit_code) from error
        except KeyboardInterrupt as error:
            raise _exit(str(error) or "interrupted", 130) from error
        except BrokenPipeError as error:
            raise typer.Exit(0) from error
        except MemoryError as error:
            raise _exit(_OUT_OF_MEMORY, 4) from error
        except OSError as error:
            raise _exit(_explain(error), 4) from error
        except Exception as error:  # a bug, which is said in one line
            if any(words in str(error) for words in _TORCHS_OUT_OF_MEMORY):
                raise _exit(_OUT_OF_MEMORY, 4) from error
            raise _exit(
                f"{type(error).__name__}: {error}\nThis is a bug in dynprune, or in the model's "
                "own code. Run the command again with -v to see where.",
                1,
            ) from error


def _exit(message: str, code: int) -> typer.Exit:
    """Print one message, and on demand the traceback; give what ends the command."""
    from .terminal import Terminal

    verbose = logging.getLogger("dynprune").isEnabledFor(logging.DEBUG)
    if verbose and code == 1:
        sys.stderr.write(traceback.format_exc())
    Terminal(verbose=verbose).error("\n".join(map(_shortened, message.splitlines())))
    return typer.Exit(code)


def _shortened(line: str) -> str:
    """Cut what a file made endless: messages repeat what they found in it."""
    if len(line) <= _LONGEST_LINE:
        return line
    return f"{line[:_LONGEST_LINE]}... ({len(line) - _LONGEST_LINE} characters more)"


def _explain(error: OSError) -> str:
    """Say what the system refused, and about which file."""
    what = error.strerror or str(error)
    where = f"{error.filename}: " if error.filename else ""
    hint = " Free some space, or write elsewhere." if error.errno == errno.ENOSPC else ""
    return f"{where}{what}.{hint}"


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"dynprune {version('dynprune')}")
        raise typer.Exit


app = typer.Typer(
    name="dynprune",
    cls=_Boundary,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Dynamic pruning of trained PyTorch transformers: every input computes what it needs.",
    epilog=START,
)


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def _register() -> None:
    """Register the app's verbs. Their modules import torch only when they run."""
    from . import (
        apply,
        check,
        consolidate,
        demo,
        distill,
        env,
        evaluate,
        export,
        inspect,
        predict,
        recipe,
        report,
        report_latency,
        report_neurons,
        report_page,
    )

    verbs: dict[str, tuple[Callable[..., None] | typer.Typer, str]] = {
        "demo": (demo.run, "Start"),
        "inspect": (inspect.run, "Start"),
        "recipe": (recipe.app, "Start"),
        "apply": (apply.run, "Prune"),
        "distill": (distill.run, "Prune"),
        "consolidate": (consolidate.run, "Prune"),
        "export": (export.run, "Prune"),
        "check": (check.run, "Prove and use"),
        "eval": (evaluate.run, "Prove and use"),
        "predict": (predict.run, "Prove and use"),
        "report": (report.app, "Prove and use"),
        "env": (env.run, "Prove and use"),
    }
    report.app.command("latency", epilog=epilog("report latency"))(report_latency.run)
    report.app.command("neurons", epilog=epilog("report neurons"))(report_neurons.run)
    report.app.command("all", epilog=epilog("report all"))(report_page.run)
    for verb, (command, panel) in verbs.items():
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=verb, rich_help_panel=panel)
        else:
            app.command(verb, rich_help_panel=panel, epilog=epilog(verb))(command)


_register()


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":  # as `accelerate launch -m dynprune.cli.main` runs it
    main()
