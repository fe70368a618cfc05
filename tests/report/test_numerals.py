"""Numbers keep three digits, and their sign."""

from dynprune.report.numerals import giga, mega, share, signed


def test_numbers_are_written_for_people() -> None:
    assert [giga(n) for n in (1.234e9, 5.6e7, 1.255e11)] == ["1.23", "0.056", "125.50"]
    assert [mega(n) for n in (3.0481e9, 1.234e6, 0)] == ["3,048", "1.23", "0"]
    assert [signed(n) for n in (-0.5, 0.25)] == ["\N{MINUS SIGN}0.50", "+0.25"]
    assert signed(-73.26, 1) == "\N{MINUS SIGN}73.3"
    assert (share(1, 3), share(1, 0)) == ("33.3%", "-")
