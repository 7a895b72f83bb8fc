"""Provides ComfyUI nodes that steer Stable Diffusion 1.x, 2.x and XL with respodiff modules. Licence: Apache-2.0."""

from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
