"""Numbers as people read them on the page."""

__all__ = ["giga", "mega", "share", "signed"]


def giga(macs: float) -> str:
    """Write a count in units of 1e9, to three digits or more."""
    value = macs / 1e9
    return f"{value:.2f}" if value >= 1 else f"{value:.3g}"


def mega(macs: float) -> str:
    """Write a count in units of 1e6."""
    value = macs / 1e6
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def signed(value: float, digits: int = 2) -> str:
    """Write a change with its sign."""
    return f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


def share(part: float, whole: float) -> str:
    """Write a part in percent."""
    return f"{part / whole:.1%}" if whole else "-"
