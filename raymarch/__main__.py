"""`python -m raymarch` is the `raymarch` command."""

from raymarch.apps.__main__ import main

if __name__ == "__main__":
    main()
