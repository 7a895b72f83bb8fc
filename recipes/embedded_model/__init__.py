"""How the shipped text-to-image model and its judges are made: public emoji, a planted bias, one driver (``python -m recipes.embedded_model``)."""
