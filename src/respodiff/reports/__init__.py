"""Numbers as tables, charts and HTML pages."""
