"""Passes over a program to export: the same values by operators that engines run faster."""
