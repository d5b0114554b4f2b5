"""Charts are well-formed pictures of the numbers that they are given."""

from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncembed.cli.charts import WIDTH, Bar, Bars, Lines, draw, number, ticks

SVG = "{http://www.w3.org/2000/svg}"
BARS = Bars("texts a second, more is better", "texts/s", [Bar("ours", 50, colour=0), Bar("a < b & c", 5)])


def parsed(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def bars_of(svg: str) -> list[ElementTree.Element]:
    return [each for each in parsed(svg).iter(f"{SVG}rect") if each.get("class", "") != "card"]


def test_a_bar_is_as_long_as_its_value_beside_the_others() -> None:
    ours, theirs = bars_of(draw("Ingest", [BARS]))
    assert float(ours.attrib["width"]) == pytest.approx(10 * float(theirs.attrib["width"]), rel=0.01)
    assert (ours.attrib["class"], theirs.attrib["class"]) == ("c0", "c1")


def test_a_bar_of_two_values_has_a_lighter_rest() -> None:
    rest, median = bars_of(draw("Latency", [Bars("ms", "ms", [Bar("ours", 10, 40)])]))
    assert rest.attrib["class"] == "c1 rest"
    assert float(rest.attrib["width"]) == pytest.approx(4 * float(median.attrib["width"]), rel=0.01)


def test_a_chart_says_in_words_what_it_shows() -> None:
    svg = parsed(draw("Ingest", [BARS], note="Measured once."))
    assert svg.findtext(f"{SVG}title") == "Ingest"
    words = "texts a second, more is better: ours: 50 texts/s; a < b & c: 5 texts/s. Measured once."
    assert svg.findtext(f"{SVG}desc") == words
    assert svg.attrib["role"] == "img"


def test_a_chart_fetches_nothing_and_runs_nothing() -> None:
    svg = draw("Ingest", [BARS, Lines("rate", "s", "texts/s", {"ours": [(0, 1), (1, 2)]})])
    assert svg.count("http") == 1, "the name of the format"
    assert "script" not in svg
    assert "prefers-color-scheme: dark" in svg


def test_all_stays_on_the_card() -> None:
    lines = Lines("latency", "ms", "%", {"alone": [(3, 0), (9.7, 100)], "in an ingest": [(5, 0), (251, 100)]})
    svg = parsed(draw("All", [BARS, lines], note="word " * 60))
    height = float(svg.attrib["height"])
    for each in svg.iter():
        if "x" in each.attrib:
            assert 0 <= float(each.attrib["x"]) <= WIDTH - 10
            assert 0 <= float(each.attrib["y"]) + float(each.get("height", 0)) <= height
    for each in svg.iter(f"{SVG}polyline"):
        for point in each.attrib["points"].split():
            x, y = map(float, point.split(","))
            assert 0 < x < WIDTH
            assert 0 < y < height


def test_nothing_measured_makes_an_empty_chart_and_no_error() -> None:
    parsed(draw("Nothing", [Lines("rate", "s", "texts/s", {"ours": []}), Bars("ms", "ms", [Bar("ours", 0)])]))


@pytest.mark.parametrize(
    ("value", "shown"), [(0, "0"), (0.123, "0.12"), (3, "3"), (3.14159, "3.1"), (17.84, "17.8"), (15282.4, "15,282")]
)
def test_numbers_have_no_digits_that_say_nothing(value: float, shown: str) -> None:
    assert number(value) == shown


@given(st.floats(1e-6, 1e12))
def test_an_axis_has_few_round_steps_and_holds_all(maximum: float) -> None:
    found = ticks(maximum)
    assert found[0] == 0
    assert found[-1] >= maximum * 0.99
    assert 2 <= len(found) <= 7
