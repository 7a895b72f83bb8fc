"""Whole experiments: methods compared, a model audited."""
