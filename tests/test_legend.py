"""A legend says the same before and after a file, and refuses what contradicts itself."""

from __future__ import annotations

import json
import pickle
import tomllib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gimseg.errors import LegendError
from gimseg.legend import BACKGROUND, UNLABELLED, Legend, LegendClass, default_colour

ROOFS = Legend.from_dict(
    {
        "field": "roof:material",
        "classes": [{"name": "concrete", "values": ["concrete", "concerte"], "colour": "#808080"}, {"name": "tin"}],
    }
)

_names = st.lists(
    st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=8),
    min_size=1,
    max_size=20,
    unique_by=lambda text: text.casefold().rstrip("0").rstrip("."),
)


@given(_names)
def test_json_gives_the_legend_back(names: list[str]) -> None:
    legend = Legend.from_dict({"field": "class", "classes": names})
    assert Legend.from_dict(json.loads(json.dumps(legend.to_dict()))) == legend
    assert legend.values == tuple(range(1, len(names) + 1))
    assert [legend.value_of(name) for name in names] == list(legend.values)


def test_toml_gives_the_legend_of_the_dataset_file() -> None:
    text = """
    [legend]
    field = "roof:material"
    classes = [{ name = "concrete", values = ["concrete", "concerte"], colour = "#808080" }, { name = "tin" }]
    """
    legend = Legend.from_dict(tomllib.loads(text)["legend"])
    assert legend == ROOFS
    assert legend.colours[1] == (128, 128, 128, 255)
    assert legend.colours[BACKGROUND][3] == legend.colours[UNLABELLED][3] == 0


def test_binary_is_one_class_and_one_channel() -> None:
    legend = Legend.binary()
    assert (legend.names, legend.values, legend.is_binary, legend.n_channels) == (("object",), (1,), True, 1)
    assert (ROOFS.is_binary, ROOFS.n_channels) == (False, 3)
    assert "field" not in legend.to_dict() and Legend.from_dict(legend.to_dict()) == legend


@pytest.mark.parametrize("attribute", ["1", 1, 1.0, np.int64(1), np.float32(1), "1.0", " 1 ", "1."])
def test_a_number_is_a_number_however_it_is_stored(attribute: object) -> None:
    assert Legend.from_dict({"classes": [{"name": "wood", "values": [1]}]}).value_of(attribute) == 1


@pytest.mark.parametrize("attribute", [None, float("nan"), np.float64("nan"), "", "  ", "thatch", 3, "11"])
def test_nulls_and_strangers_have_no_class(attribute: object) -> None:
    assert ROOFS.value_of(attribute) is None
    assert Legend.from_dict({"classes": [{"name": "wood", "values": [1, 10]}]}).value_of(attribute) is None


def test_case_and_blanks_do_not_matter() -> None:
    assert [ROOFS.value_of(text) for text in (" TIN", "Concerte ", "concrete")] == [2, 1, 1]


@given(st.lists(st.integers(1, 254), min_size=1, max_size=30, unique=True))
def test_channels_and_values_are_inverse(values: list[int]) -> None:
    legend = Legend(tuple(LegendClass(f"c{value}", value, "#000000") for value in values))
    channels = np.array([*range(len(values) + 1), 255], np.uint8)
    labels = legend.to_values(channels)
    assert labels.tolist() == [0, *values, 255]
    assert (legend.to_channels(labels) == channels).all()
    strangers = [value for value in range(1, 255) if value not in values]
    assert (legend.to_channels(np.array(strangers, np.uint8)) == 255).all()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"classes": []}, "one class"),
        ({"classes": "tin"}, "list"),
        ({"classes": ["tin", "Tin"]}, "more than once"),
        ({"classes": [{"name": "a", "value": 2}, {"name": "b"}]}, "value 2 more than once"),
        ({"classes": [{"name": "a", "values": ["x"]}, {"name": "b", "values": ["X "]}]}, "'x' more than once"),
        ({"classes": [{"name": "a", "value": 255}]}, "1 to 254"),
        ({"classes": [{"name": "a", "value": 0}]}, "1 to 254"),
        ({"classes": [{"name": "a", "value": True}]}, "1 to 254"),
        ({"classes": [{"name": "a", "colour": "red"}]}, "#rrggbb"),
        ({"classes": [{"name": "a", "color": "#ff0000"}]}, "did you mean 'colour'"),
        ({"classes": [{"name": "a", "values": [""]}]}, "empty"),
        ({"classes": [{"name": " "}]}, "give each class a name"),
        ({"classes": [{"value": 1}]}, "name ="),
        ({"feild": "x", "classes": ["a"]}, "did you mean 'field'"),
        ({"field": "", "classes": ["a"]}, "name of an attribute"),
    ],
)
def test_contradictions_are_refused(table: dict, message: str) -> None:
    with pytest.raises(LegendError, match=message):
        Legend.from_dict(table)


def test_an_unknown_name_gets_the_nearest() -> None:
    assert ROOFS.find("TIN").value == 2
    with pytest.raises(LegendError, match="did you mean 'concrete'"):
        ROOFS.find("concret")


def test_default_colours_differ() -> None:
    assert len({default_colour(order) for order in range(60)}) == 60


def test_a_pickled_legend_still_knows() -> None:
    copy = pickle.loads(pickle.dumps(ROOFS))
    assert copy == ROOFS and copy.value_of("tin") == 2
    assert hash(copy) == hash(ROOFS)
