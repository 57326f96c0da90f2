"""`python -m raymarch.apps` is the `raymarch` command."""

import sys


def main() -> None:
    """The command; Ctrl-C is answered even while it is being imported."""
    try:
        from raymarch.apps.cli import main as run
    except KeyboardInterrupt:
        print("raymarch: stopped", file=sys.stderr)
        raise SystemExit(130) from None
    run()


if __name__ == "__main__":
    main()
