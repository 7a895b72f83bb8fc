"""Whole ablations: methods compared, a model audited."""
