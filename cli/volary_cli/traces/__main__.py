"""`python -m volary_cli.traces`."""

from volary_cli.traces.service import main

if __name__ == "__main__":
    main()
