"""What is gated, how much of it, and where the gates start."""
