"""What a model is for: scores, predictions and embeddings."""
