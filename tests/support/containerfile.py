"""Reads a Containerfile: as much of its language as ours uses."""

import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

CONTAINERFILE = Path(__file__).resolve().parents[2] / "Containerfile"


@dataclass
class Stage:
    """What comes after one FROM."""

    base: str
    name: str
    steps: list[tuple[str, str]] = field(default_factory=list)
    """Instructions and their arguments, continued lines joined."""

    def all(self, instruction: str) -> list[str]:
        """Return the arguments of every such instruction."""
        return [argument for name, argument in self.steps if name == instruction]

    def one(self, instruction: str) -> str:
        """Return the argument of the one such instruction there is."""
        (argument,) = self.all(instruction)
        return argument

    def array(self, instruction: str) -> list[str]:
        """Return the words of the one such instruction, which has them as a JSON array."""
        words = json.loads(self.one(instruction))
        assert isinstance(words, list)
        return [str(word) for word in words]

    @property
    def environment(self) -> dict[str, str]:
        words = (word for argument in self.all("ENV") for word in shlex.split(argument))
        return dict(word.split("=", maxsplit=1) for word in words)

    @property
    def health_command(self) -> list[str]:
        """The words of HEALTHCHECK's command; its options are before it."""
        return [str(word) for word in json.loads(self.one("HEALTHCHECK").partition(" CMD ")[2])]


def stages() -> list[Stage]:
    """Return the stages of our Containerfile."""
    lines = CONTAINERFILE.read_text().splitlines()
    text = "\n".join(line for line in lines if line and not line.startswith("#"))
    found: list[Stage] = []
    for line in re.sub(r"\s*\\\n\s*", " ", text).splitlines():
        instruction, argument = line.split(maxsplit=1)
        if instruction == "FROM":
            base, _, name = argument.partition(" AS ")
            found.append(Stage(base, name))
        else:
            found[-1].steps.append((instruction, argument))
    return found
