"""``python -m respodiff``."""

from respodiff.cli.main import main

main()
