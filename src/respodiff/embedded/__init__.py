"""The shipped text-to-image model, its judge and the table of the bias planted in it (see CARD.md)."""
