"""What the documentation site needs beside its pages: links that leave ``docs/``, and drawings."""
