"""``python -m respodiff``."""

from respodiff.cli.main import main

if __name__ == "__main__":  # not in the workers that it starts
    main()
