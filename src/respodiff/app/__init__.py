"""Provides the page of ``respodiff app``: views over the library for a browser on this machine."""
