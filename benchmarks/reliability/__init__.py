"""Attack dynprune where a user's day goes wrong, and count what it does: see `__main__`."""
