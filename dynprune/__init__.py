"""Dynamic pruning of trained PyTorch transformers: every input computes what it needs."""
