"""What is measured: multiply-adds, milliseconds, neurons."""
