"""What clients accept, as they write it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from numbers_uring.metrics.accept import accepted


@pytest.mark.parametrize(
    ("header", "names"),
    [
        ("", []),
        ("a/b", ["a/b"]),
        (" A/B ; x=y , c/d", ["a/b", "c/d"]),
        ("a;q=0.5, b, c;q=0.75", ["b", "c", "a"]),
        ("a;q=0.2, b;q=0.2", ["a", "b"]),
        ("a;q=0, b;Q=1.000, c;q=0.000", ["b"]),
        ("a;q=2, b;q=-1, c;q=x, d;q=, e;q=nan, f", ["f"]),
        ('a;x="b, c;q=0", d', ["a", "d"]),
        (", ,a,", ["a"]),
    ],
)
def test_the_most_wanted_is_first_and_the_unwanted_is_left_out(
    header: str, names: list[str]
) -> None:
    assert [element.name for element in accepted(header)] == names


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("v=1.0.0", "1.0.0"),
        ('v="1.0.0"', "1.0.0"),
        ('V = "1.0.0"', "1.0.0"),
        (r'v="a\"b\\c;,"', r"a\"b\c;,".replace('\\"', '"')),
        ("v", ""),
        ('v="x;,', '"x;,'),
    ],
)
def test_parameters_may_be_quoted(text: str, value: str) -> None:
    (element,) = accepted(f"a/b; {text}")
    assert element.parameters == {"v": value}


@given(st.text(st.sampled_from('ab/*;,="\\ q01.\t') | st.characters()))
def test_any_header_is_read(header: str) -> None:
    assert all(element.name for element in accepted(header))


@pytest.mark.parametrize("text", ['"', '\\"', '"\\', '",', ";", ",", "\\"])
def test_a_long_header_is_read_at_once(text: str) -> None:
    accepted('"' + text * 20_000)
    accepted("a;" + text * 20_000)
