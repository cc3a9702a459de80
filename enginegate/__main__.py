"""`python -m enginegate` is the `enginegate` command."""

from enginegate.cli import main

if __name__ == "__main__":
    main()
