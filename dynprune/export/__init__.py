"""Files for inference engines, still dynamic, each checked against PyTorch before it is kept."""
