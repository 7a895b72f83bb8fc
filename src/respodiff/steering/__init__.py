"""The module: RAM and SAM, their file, and how they act on a pipeline."""
