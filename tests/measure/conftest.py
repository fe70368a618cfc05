"""The pair of models that the report is written of, measured once."""

from tests.report.conftest import measured, pair

__all__ = ["measured", "pair"]
