"""Files that inference engines run, still dynamic."""
