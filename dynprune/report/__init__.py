"""The report page: what was found, its figures and its pictures."""
