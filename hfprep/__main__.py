"""`python -m hfprep`."""

from hfprep.cli import main

if __name__ == "__main__":
    main()
