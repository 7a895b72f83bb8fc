"""Provides the tabs of the page as Gradio components. What a tab does is in the modules of `respodiff.app`."""
