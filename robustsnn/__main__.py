"""`python -m robustsnn`."""

from robustsnn.cli.main import main

if __name__ == "__main__":
    main()
