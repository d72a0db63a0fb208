"""`python -m noisyteacher`: the command line."""

from noisyteacher.cli import main

if __name__ == "__main__":
    main()
