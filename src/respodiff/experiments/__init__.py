"""Whole studies: methods compared, a model audited."""
