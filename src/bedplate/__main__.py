"""`python -m bedplate`: the `bedplate` command."""

from bedplate.cli.main import main

if __name__ == "__main__":
    main()
