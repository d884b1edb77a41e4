"""Types of option values that several commands have in common."""

import math
import re
from typing import Any

import click


class Whole(click.IntRange):
    """A whole number in a range."""

    name = "whole number"


class Flag(click.types.BoolParamType):
    """Whether a flag is given; in the environment, a word that says so."""

    name = "flag"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> bool:
        if isinstance(value, bool):
            return value
        found = self.str_to_bool(value)
        if found is None:
            self.fail(f"{value!r} is not a flag's value, such as 1, yes, 0 or no.", param, ctx)
        return found


class Fraction(click.FloatRange):
    """A number in a range; `nan`, which float() accepts and no range excludes, is not one."""

    name = "fraction"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        try:
            float(value)
        except ValueError:
            self.fail(f"{value!r} is not a number.", param, ctx)
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


class Sequences(click.ParamType):  # type: ignore[type-arg] # generic only in click's newest
    """A message's sequence in its stream, or a range of them: 17, 17-40."""

    name = "sequences"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r"([0-9]{1,19})(?:-([0-9]{1,19}))?", str(value))
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 1 <= first <= last < 2**63:
            self.fail(f"{value!r} is not a sequence such as 17, or 17-40.", param, ctx)
        return first, last
