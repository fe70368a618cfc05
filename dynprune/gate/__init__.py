"""Dynamic gated linear layers: selection, execution, injection and the way back."""
