"""A run folder in, numbers out: judges, metrics, summaries, comparisons."""
