"""How a small diffusion transformer learns the world of the embedded model by flow matching (``python -m recipes.embedded_dit``)."""
