"""Corpora: sources, readers, shards of token ids, and rows for training."""
