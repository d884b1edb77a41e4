"""Types of option values that several commands have in common."""

import math
from typing import Any

import click


class Fraction(click.FloatRange):
    """A number in a range; `nan`, which float() accepts and no range excludes, is not one."""

    name = "fraction"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        number = float(super().convert(value, param, ctx))
        if math.isnan(number):
            self.fail(f"{value!r} is not a number.", param, ctx)
        return number


class Seconds(Fraction):
    """A time in seconds, with a fraction; `inf` is not one."""

    name = "seconds"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        seconds = super().convert(value, param, ctx)
        if not seconds < 1e9:
            self.fail(f"{value!r} is not a number of seconds.", param, ctx)
        return seconds
