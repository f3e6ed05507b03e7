"""What a model says comes next: tokens, whole words, scores, neighbours, and races between models."""
