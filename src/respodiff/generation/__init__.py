"""Prompts and a policy in, a run folder out."""
