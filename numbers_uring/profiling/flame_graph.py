"""Draws sampled stacks as a flame graph: one SVG without scripts, coloured by whose code it is.

No maintained package draws folded stacks of Python, C and Linux in colours of their own without a
browser's help or Perl, so this does.
"""

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum
from html import escape
from typing import NamedTuple
from zlib import crc32


class Origin(Enum):
    """Whose code a frame is: its name in the legend, and a colour safe for the colour-blind."""

    PYTHON = ("Python", (86, 180, 233))
    NATIVE = ("numbers-uring's C", (230, 159, 0))
    LINUX = ("Linux", (60, 186, 150))
    LIBRARY = ("libraries", (190, 190, 190))

    @property
    def label(self) -> str:
        return self.value[0]


class Frame(NamedTuple):
    """A function that was running, or had called the next frame's."""

    name: str
    origin: Origin


Stacks = Counter[tuple[Frame, ...]]
"""How many samples had found each stack; the outermost frame is first."""

WIDTH = 1200
MARGIN = 10
ROW = 17
FONT = 11
CHARACTER = 0.602 * FONT
"""A character's width in the usual monospaced fonts; all lengths are pixels."""

HEADER = 62
NARROW = 1.0
"""Narrower frames are left out: they are too small to read, and most frames are so narrow."""


@dataclass(slots=True)
class _Node:
    samples: int = 0
    children: dict[Frame, "_Node"] = field(default_factory=dict)


def shares(stacks: Stacks) -> dict[Origin, float]:
    """Return, for each origin, the share of the samples that were taken in its own code.

    That is the innermost frame's; the shares add up to 1. Raises ValueError without samples.
    """
    samples = stacks.total()
    if not samples:
        raise ValueError("there are no samples")
    own: Counter[Origin] = Counter()
    for stack, count in stacks.items():
        own[stack[-1].origin] += count
    return {origin: own[origin] / samples for origin in Origin}


def without_common_frames(stacks: Stacks) -> Stacks:
    """Leave out the outermost frames that all stacks with the same first frame share, but the last.

    How a program got to its loop is the same in every sample, and only makes the picture high.
    """
    threads: dict[Frame, list[tuple[Frame, ...]]] = {}
    for stack in stacks:
        threads.setdefault(stack[0], []).append(stack)
    cut: Stacks = Counter()
    for same in threads.values():
        shared = 0
        while all(len(stack) > shared and stack[shared] == same[0][shared] for stack in same):
            shared += 1
        for stack in same:
            cut[stack[shared - 1 :]] += stacks[stack]
    return cut


def render(stacks: Stacks, *, title: str, subtitle: str) -> str:
    """Return the SVG: callers below, callees above, widths by samples, siblings by name.

    Hovering over a frame shows its whole name and its share. Raises ValueError without samples.
    """
    own = shares(stacks)
    root = _tree(without_common_frames(stacks))
    boxes: list[str] = []
    rows = _draw(root, 0, MARGIN, (WIDTH - 2 * MARGIN) / root.samples, root.samples, boxes)
    height = HEADER + rows * ROW + MARGIN
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
            f'width="{WIDTH}" height="{height}" '
            f'font-family="DejaVu Sans Mono,Menlo,Consolas,monospace" font-size="{FONT}">',
            f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
            f'<text x="{MARGIN}" y="20" font-size="15">{escape(title)}</text>',
            f'<text x="{MARGIN}" y="36" fill="#555">{escape(subtitle)}</text>',
            *_legend(own),
            # The frames' places count from the bottom up, as the callers do.
            f'<g transform="translate(0 {height - MARGIN})">',
            *boxes,
            "</g>",
            "</svg>\n",
        ]
    )


def _tree(stacks: Stacks) -> _Node:
    root = _Node()
    for stack, count in stacks.items():
        node = root
        node.samples += count
        for frame in stack:
            node = node.children.setdefault(frame, _Node())
            node.samples += count
    return root


def _draw(
    parent: _Node, row: int, left: float, scale: float, samples: int, boxes: list[str]
) -> int:
    """Add the boxes of all frames within `parent`; return how many rows they are high."""
    rows = row
    siblings = sorted(
        parent.children.items(), key=lambda child: (child[0].name, child[0].origin.label)
    )
    for frame, node in siblings:
        width = node.samples * scale
        if width >= NARROW:
            boxes.append(_box(frame, node, row, left, width, samples))
            rows = max(rows, row + 1, _draw(node, row + 1, left, scale, samples, boxes))
        left += width
    return rows


def _box(frame: Frame, node: _Node, row: int, left: float, width: float, samples: int) -> str:
    name, origin = escape(frame.name), frame.origin
    top = -(row + 1) * ROW
    fits = int((width - 4) / CHARACTER)
    shown = frame.name if len(frame.name) <= fits else f"{frame.name[: fits - 1]}…"
    text = f'<text x="{left + 2:.1f}" y="{top + 12}">{escape(shown)}</text>' if fits >= 3 else ""
    return (
        f"<g><title>{name} ({origin.label}): {node.samples} of {samples} samples, "
        f"{100 * node.samples / samples:.1f} %</title>"
        f'<rect x="{left:.1f}" y="{top}" width="{max(width - 0.5, 0.3):.1f}" height="{ROW - 1}" '
        f'fill="{_colour(frame)}"/>{text}</g>'
    )


def _colour(frame: Frame) -> str:
    """A shade of the origin's colour: neighbours differ, and a name always has the same one."""
    lighter = (crc32(frame.name.encode()) % 5) * 0.08
    red, green, blue = (round(part + (255 - part) * lighter) for part in frame.origin.value[1])
    return f"#{red:02x}{green:02x}{blue:02x}"


def _legend(own: dict[Origin, float]) -> list[str]:
    entries, left = [], float(MARGIN)
    for origin, share in own.items():
        text = f"{origin.label} {100 * share:.0f} %"
        red, green, blue = origin.value[1]
        entries.append(
            f'<rect x="{left:.0f}" y="44" width="11" height="11" '
            f'fill="#{red:02x}{green:02x}{blue:02x}"/>'
            f'<text x="{left + 16:.0f}" y="53">{escape(text)}</text>'
        )
        left += 16 + CHARACTER * (len(text) + 3)
    return entries
