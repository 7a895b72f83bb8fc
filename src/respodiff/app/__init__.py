"""Provides the page of ``respodiff app``: views over the library for a browser on this machine."""

import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # Gradio reads it at import: it would ask another machine for the newest version
