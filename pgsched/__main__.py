"""`python -m pgsched`: the command line."""

from pgsched.cli import main

if __name__ == "__main__":
    main()
