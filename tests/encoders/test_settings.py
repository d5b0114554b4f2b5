"""What specs say to their encoders is what these read, of the types that they expect."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, get_args, get_origin, get_type_hints

import pytest

from asyncembed.catalogue.lookup import list_models
from asyncembed.catalogue.spec import ModelSpec
from asyncembed.encoders import registry
from asyncembed.encoders.settings import (
    ColPaliSettings,
    DenseSettings,
    MiniCoilSettings,
    Settings,
    StaticSettings,
    read_settings,
)
from asyncembed.encoders.stemming import Stemmer
from asyncembed.errors import OptionError, UnsupportedModelError
from asyncembed.results import HybridOutput

CATALOGUED = [spec for spec in list_models() if spec.settings]


def spec_with(encoder: str, **settings: object) -> ModelSpec:
    return ModelSpec(name="some", family="text", encoder=encoder, sources=(), settings=settings)


def settings_of(spec: ModelSpec) -> Settings:
    kind = registry.row_of(spec).settings
    assert kind is not None
    return read_settings(kind, spec)


@pytest.mark.parametrize("spec", CATALOGUED, ids=lambda spec: f"{spec.name}-{spec.family}")
def test_the_catalogue_says_nothing_that_nobody_reads(spec: ModelSpec) -> None:
    """Each setting reaches the record of its encoder, and is of the type that is declared there."""
    settings = settings_of(spec)
    hints = get_type_hints(type(settings), localns={"Stemmer": Stemmer, "HybridOutput": HybridOutput})
    for name, said in spec.settings.items():
        value = getattr(settings, name)
        assert value == (tuple(said) if isinstance(said, list) else said)
        assert is_of(value, hints[name]), name


def is_of(value: Any, hint: Any) -> bool:
    """Whether a plain value is of a type, which may be a union, a tuple of one type, or a mapping."""
    origin, arguments = get_origin(hint), list(get_args(hint))
    if origin is tuple:
        return isinstance(value, tuple) and all(is_of(each, arguments[0]) for each in value)
    if origin is Mapping:
        return all(is_of(key, arguments[0]) and is_of(each, arguments[1]) for key, each in value.items())
    if arguments:
        return any(is_of(value, each) for each in arguments)
    return type(value) is hint or (hint is float and type(value) is int)


def test_a_setting_that_no_encoder_knows_is_named() -> None:
    with pytest.raises(UnsupportedModelError, match="encoder 'dense' does not know: pad_to, query"):
        registry.check_settings(spec_with("dense", pad_to=3, query="x", lower_case=True), {})


def test_a_setting_that_an_encoder_needs_is_named() -> None:
    with pytest.raises(UnsupportedModelError, match="lacks the setting query_prefix_ids"):
        read_settings(ColPaliSettings, spec_with("colpali", query_pad_tokens=10))


def test_callers_come_before_the_spec_and_that_before_the_defaults() -> None:
    spec = spec_with("minicoil", k=3.0, b=0.5)
    settings = read_settings(MiniCoilSettings, spec, {"b": 0.25})
    assert (settings.k, settings.b, settings.avg_len) == (3.0, 0.25, 150.0)


@pytest.mark.parametrize(
    ("kind", "accepted"), [(MiniCoilSettings, "only k, b, avg_len, language"), (StaticSettings, "none")]
)
def test_callers_may_give_what_is_theirs_only(kind: type[Settings], accepted: str) -> None:
    for name in ("output_name", "folder", "nothing"):
        with pytest.raises(OptionError, match=f"no keyword '{name}': it takes {accepted}"):
            read_settings(kind, spec_with("some"), {name: "x"})


@pytest.mark.parametrize("name", registry.ROWS)
def test_a_record_is_made_without_a_word_from_anybody(name: str) -> None:
    kind = registry.ROWS[name].settings
    assert kind is not None
    needed: dict[str, object] = {each.name: 1 for each in fields(kind) if each.name in ColPaliSettings.__annotations__}
    needed |= {"query_suffix_token": "x", "query_suffix_count": 1} if name == "colmodernvbert" else {}
    assert read_settings(kind, spec_with(name, **needed)) == kind(**needed)


def test_a_list_of_the_data_file_is_a_tuple_of_the_record() -> None:
    assert read_settings(DenseSettings, spec_with("dense", projections=["a", "b"])).projections == ("a", "b")
