"""`python -m raymarch.apps` is the `raymarch` command."""

from raymarch.apps.cli import main

main()
