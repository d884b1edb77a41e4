"""What a client accepts, by the Accept headers of RFC 9110: quoted parameters, q-values and all."""

import re
from collections.abc import Mapping
from typing import NamedTuple

# One that is not closed ends with the text, so that any input is read in linear time.
_QUOTED = r'"(?:[^"\\]|\\.|\\$)*(?:"|$)'
_ELEMENT = re.compile(rf'(?:[^,"]|{_QUOTED})+', re.DOTALL)
_PART = re.compile(rf'(?:[^;"]|{_QUOTED})+', re.DOTALL)
_QUALITY = re.compile(r"0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?")


class Accepted(NamedTuple):
    """One element of such a header: `name` is a media type or a coding, in lower case."""

    name: str
    parameters: Mapping[str, str]


def accepted(header: str) -> list[Accepted]:
    """Return what the header accepts, the most wanted first; leave out what has a quality of 0.

    Elements that are malformed are left out, too.
    """
    found: list[tuple[float, Accepted]] = []
    for element in _ELEMENT.findall(header):
        name, *rest = (part.strip() for part in _PART.findall(element) or [""])
        parameters = dict(map(_parameter, rest))
        quality = parameters.pop("q", "1")
        if name and _QUALITY.fullmatch(quality) and float(quality):
            found.append((float(quality), Accepted(name.lower(), parameters)))
    found.sort(key=lambda pair: -pair[0])
    return [element for _, element in found]


def _parameter(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    value = value.strip()
    if len(value) > 1 and value[0] == value[-1] == '"':
        value = re.sub(r"\\(.)", r"\1", value[1:-1])
    return name.strip().lower(), value
