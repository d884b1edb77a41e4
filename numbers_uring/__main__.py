"""`python -m numbers_uring` is the command `numbers-uring`."""

from numbers_uring.cli.main import main

if __name__ == "__main__":
    main()
