"""Types of option values that several commands have in common."""

import math
import re
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


class Duration(Seconds):
    """A time in seconds, or with a unit: 90, 30s, 15m, 12h, 7d."""

    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)([smhd]?)", str(value))
        if match is None:
            self.fail(f"{value!r} is not a duration such as 90, 30s, 15m, 12h or 7d.", param, ctx)
        unit_s = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]
        return super().convert(float(match[1]) * unit_s, param, ctx)
