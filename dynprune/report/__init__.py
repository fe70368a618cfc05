"""The proof: multiply-adds counted and executed, milliseconds, neurons."""
