"""Lets ``python -m galen`` do what the console script does."""

from galen.cli import main

if __name__ == "__main__":
    main()
