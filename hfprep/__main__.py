"""`python -m hfprep`."""

from hfprep.cli.app import main

if __name__ == "__main__":
    main()
