"""Generation: what comes next, how it is chosen, and how it is computed quickly."""
