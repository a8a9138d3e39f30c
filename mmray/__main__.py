"""`python -m mmray`: the command line, for where the command `mmray` is not installed, as in a job's working folder."""

from mmray.cli import main

if __name__ == "__main__":
    main()
