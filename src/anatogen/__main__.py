"""`python -m anatogen`: the same as the `anatogen` command."""

from anatogen.cli.app import main

if __name__ == "__main__":
    main()
