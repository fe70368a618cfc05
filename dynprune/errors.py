"""Everything that dynprune raises on a user's mistake, in one tree.

.. code-block:: text

    DynpruneError                 exit code
      RecipeError (ValueError)         2    a recipe or an option is invalid
      UsageError (ValueError)          2    a call that cannot be meant
      NoMatchError (ValueError)        3    a recipe's target matched nothing
      InputError (OSError)             4    data, weights or a file is missing or unreadable
      OutputError (OSError)            4    an output cannot be written
      GateError (RuntimeError)         1    a gated model was driven in an impossible way
      BoundError (AssertionError)      5    a bound given with ``--fail-if`` is broken
      LawError (AssertionError)        5    a pruned model does not do what its dense form does

A message says what was asked, what was found, and what to do.
"""

__all__ = [
    "BoundError",
    "DynpruneError",
    "GateError",
    "InputError",
    "LawError",
    "NoMatchError",
    "OutputError",
    "RecipeError",
    "UsageError",
]


class DynpruneError(Exception):
    """The root of the tree: catch it to catch every mistake that dynprune reports."""

    exit_code = 1


class RecipeError(DynpruneError, ValueError):
    """A recipe does not follow the schema; the message lists every error with its key."""

    exit_code = 2


class UsageError(DynpruneError, ValueError):
    """A command or call whose arguments cannot be meant together."""

    exit_code = 2


class NoMatchError(DynpruneError, ValueError):
    """A target or ignore pattern of a recipe matched no neuron group."""

    exit_code = 3


class InputError(DynpruneError, OSError):
    """Data, weights or a file is missing, truncated or not what it should be."""

    exit_code = 4


class OutputError(DynpruneError, OSError):
    """An output directory or file cannot be written, or would overwrite something."""

    exit_code = 4


class GateError(DynpruneError, RuntimeError):
    """A gated layer was run where its gate had not selected neurons for this input."""

    exit_code = 1


class BoundError(DynpruneError, AssertionError):
    """A bound that the user gave with ``--fail-if`` does not hold."""

    exit_code = 5


class LawError(DynpruneError, AssertionError):
    """A pruned model breaks a law that its dense form has: it would be wrong in silence."""

    exit_code = 5
