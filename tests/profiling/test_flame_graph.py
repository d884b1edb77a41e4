"""The flame graph: what is drawn where, how wide, and in whose colour."""

import re
from collections import Counter
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from numbers_uring.profiling.flame_graph import (
    Frame,
    Origin,
    Stacks,
    render,
    shares,
    without_common_frames,
)

SVG = "{http://www.w3.org/2000/svg}"
RUN, SERVE = Frame("run", Origin.PYTHON), Frame("serve", Origin.PYTHON)
PARSE, RECEIVE = Frame("nu_parse", Origin.NATIVE), Frame("tcp_recvmsg", Origin.LINUX)

_frames = st.builds(Frame, st.sampled_from("abcdef<&"), st.sampled_from(Origin))
_stacks = st.dictionaries(
    st.lists(_frames, min_size=1, max_size=5).map(tuple), st.integers(1, 50), min_size=1, max_size=8
).map(Counter)


def boxes(picture: str) -> dict[str, dict[str, float]]:
    """Return the frames drawn, by the text that hovering shows: place and size in pixels."""
    found = {}
    for group in ElementTree.fromstring(picture).iter(f"{SVG}g"):
        title, rect = group.find(f"{SVG}title"), group.find(f"{SVG}rect")
        if title is not None and rect is not None:
            found[str(title.text)] = {
                name: float(rect.attrib[name]) for name in ("x", "y", "width", "height")
            }
    return found


def drawn(stacks: Stacks) -> str:
    return render(stacks, title="a title", subtitle="a subtitle")


def test_widths_are_shares_and_callees_stand_on_their_callers() -> None:
    found = boxes(drawn(Counter({(RUN, PARSE): 3, (RUN, RECEIVE): 1})))
    base = found["run (Python): 4 of 4 samples, 100.0 %"]
    parse = found["nu_parse (numbers-uring's C): 3 of 4 samples, 75.0 %"]
    receive = found["tcp_recvmsg (Linux): 1 of 4 samples, 25.0 %"]
    assert parse["width"] == pytest.approx(0.75 * base["width"], abs=1)
    assert receive["width"] == pytest.approx(0.25 * base["width"], abs=1)
    assert parse["y"] == receive["y"] < base["y"]
    assert parse["x"] == base["x"]
    assert receive["x"] == pytest.approx(parse["x"] + parse["width"], abs=1)


@given(_stacks)
def test_any_stacks_make_one_well_formed_picture_that_is_always_the_same(stacks: Stacks) -> None:
    picture = drawn(stacks)
    assert picture == drawn(Counter(dict(reversed(stacks.items()))))
    root = ElementTree.fromstring(picture)
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    for box in boxes(picture).values():
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
        # Places are relative to the bottom.
        assert -height < box["y"]
        assert box["y"] + box["height"] <= 0
    assert "<script" not in picture


@given(_stacks)
def test_no_sample_is_lost_with_the_common_frames(stacks: Stacks) -> None:
    cut = without_common_frames(stacks)
    assert cut.total() == stacks.total()
    assert shares(cut) == shares(stacks)
    assert without_common_frames(cut) == cut


def test_of_the_frames_that_all_share_only_the_last_is_drawn() -> None:
    stacks: Stacks = Counter({(RUN, SERVE, PARSE): 1, (RUN, SERVE, RECEIVE): 1})
    assert set(without_common_frames(stacks)) == {(SERVE, PARSE), (SERVE, RECEIVE)}


def test_a_thread_of_its_own_keeps_its_own_frames() -> None:
    thread = Frame("thread", Origin.PYTHON)
    stacks = Counter({(RUN, SERVE, PARSE): 1, (RUN, SERVE): 1, (thread, RECEIVE): 1})
    assert set(without_common_frames(stacks)) == {(SERVE, PARSE), (SERVE,), (RECEIVE,)}


def test_the_legend_says_in_whose_own_code_the_samples_were_taken() -> None:
    stacks = Counter({(RUN, PARSE): 6, (RUN, RECEIVE): 3, (RUN,): 1})
    assert shares(stacks) == {
        Origin.PYTHON: 0.1,
        Origin.NATIVE: 0.6,
        Origin.LINUX: 0.3,
        Origin.LIBRARY: 0,
    }
    texts = [text.text for text in ElementTree.fromstring(drawn(stacks)).iter(f"{SVG}text")]
    assert {"Python 10 %", "numbers-uring's C 60 %", "Linux 30 %", "libraries 0 %"} <= set(texts)


def test_a_frame_too_narrow_to_see_is_left_out() -> None:
    found = boxes(drawn(Counter({(RUN, PARSE): 99_999, (RUN, RECEIVE): 1})))
    assert not [title for title in found if title.startswith("tcp_recvmsg")]
    assert len(found) == 2


def test_a_name_that_does_not_fit_is_cut_but_whole_on_hovering() -> None:
    long = Frame("n" * 300, Origin.PYTHON)
    picture = drawn(Counter({(long,): 1}))
    assert f"{long.name} (Python): 1 of 1 samples" in picture
    shown = re.search(r">(n+…)<", picture)
    assert shown
    assert len(shown[1]) < 200


def test_nothing_sampled_makes_no_picture() -> None:
    with pytest.raises(ValueError, match="no samples"):
        drawn(Counter())
