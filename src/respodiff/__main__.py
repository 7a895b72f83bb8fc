"""``python -m respodiff``."""

from respodiff.cli import main

main()
