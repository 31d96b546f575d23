"""`python -m volary_cli`."""

from volary_cli.main import main

if __name__ == "__main__":
    main()
