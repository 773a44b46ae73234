"""``python -m kvsup``."""

from kvsup.cli import main

if __name__ == "__main__":
    main()
