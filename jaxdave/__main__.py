"""`python -m jaxdave` is the command `jaxdave`."""

from jaxdave.cli.main import main

if __name__ == "__main__":
    main()
