"""Take packed attention apart, and put it back."""
