"""Numbers on the command line that mean nothing."""

from __future__ import annotations

import math


def check_least(least: float, **options: float | None) -> None:
    """ConfigError names an option (its name in Python) below `least`, or not finite; None is not given."""
    from raymarch.config import ConfigError

    for name, value in options.items():
        if value is not None and not (least <= value < math.inf):
            raise ConfigError(f"--{name.replace('_', '-')} is {value:g}, expected at least {least:g}")


def check_above(bound: float, **options: float | None) -> None:
    """The same for options that must be more than a bound."""
    from raymarch.config import ConfigError

    for name, value in options.items():
        if value is not None and not (bound < value < math.inf):
            raise ConfigError(f"--{name.replace('_', '-')} is {value:g}, expected more than {bound:g}")


def check_port(port: int) -> None:
    """ConfigError for a number that no port has."""
    from raymarch.config import ConfigError

    if not 0 <= port <= 65535:
        raise ConfigError(f"--port is {port}, expected 0 to 65535")
