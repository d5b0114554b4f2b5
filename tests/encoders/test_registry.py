"""Which encoder computes a model, and what is known of it before it is loaded."""

from importlib import import_module
from pathlib import Path

import pytest

from asyncembed.catalogue.lookup import list_models
from asyncembed.catalogue.spec import ModelSpec
from asyncembed.encoders import build, registry
from asyncembed.encoders.encoder import EncoderConfig
from asyncembed.errors import UnsupportedModelError
from asyncembed.options import MAX_BATCH_TOKENS


def spec_with(encoder: str, **settings: object) -> ModelSpec:
    return ModelSpec(name="some", family="text", encoder=encoder, sources=(), settings=settings)


@pytest.mark.parametrize("name", registry.ROWS)
def test_every_row_leads_to_a_factory(name: str) -> None:
    """Workers import it by name, so no import says whether it is there."""
    module, _, attribute = registry.ROWS[name].factory.partition(":")
    assert callable(getattr(import_module(module), attribute))


def test_catalogued_models_without_a_file_are_those_that_need_no_graph() -> None:
    for spec in list_models():
        has_graph = spec.model_file is not None or spec.reads_repo
        assert registry.row_of(spec).needs_graph == has_graph, spec.name


def test_an_encoder_of_somebody_elses_may_have_any_settings_and_needs_no_graph() -> None:
    spec = spec_with("package.module:factory", anything=1)
    registry.check_settings(spec, {"more": 2})
    row = registry.row_of(spec)
    assert (row.is_foreign, row.needs_graph, row.is_cheap) == (True, False, False)


def test_queries_are_computed_as_documents_where_the_encoder_knows_of_no_roles() -> None:
    def reads_roles(encoder: str, **settings: object) -> bool:
        return registry.row_of(spec_with(encoder)).reads_roles_of(spec_with(encoder, **settings))

    assert not reads_roles("dense")
    assert not reads_roles("static")
    assert reads_roles("dense", tasks={"retrieval.query": 0})
    assert reads_roles("colbert")
    assert reads_roles("bm25")
    assert reads_roles("package.module:factory")


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        ("densse", "no encoder is called 'densse'"),
        ("no_such_package:factory", "'no_such_package:factory' cannot be imported in a worker"),
        (f"{__name__}:absent", "absent' cannot be imported in a worker"),
    ],
)
def test_an_encoder_that_is_nowhere_is_named(encoder: str, message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        build(EncoderConfig(spec=spec_with(encoder), directory=Path()))


def test_an_encoder_made_by_hand_has_the_budget_of_the_classes() -> None:
    assert EncoderConfig(spec=spec_with("dense"), directory=Path()).max_batch_tokens == MAX_BATCH_TOKENS
