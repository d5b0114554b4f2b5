from dataclasses import replace
from pathlib import Path

import pytest
from fastembed import (
    ImageEmbedding,
    LateInteractionMultimodalEmbedding,
    LateInteractionTextEmbedding,
    SparseTextEmbedding,
    TextEmbedding,
)
from fastembed.rerank.cross_encoder import TextCrossEncoder

from asyncembed.catalogue.lookup import describe, find_model, list_models, register, require_model
from asyncembed.catalogue.spec import Family, HubOrigin, LocalOrigin, ModelSpec
from asyncembed.encoders.registry import ROWS, check_settings
from asyncembed.errors import OptionError, UnknownModelError
from tests.support.models import forget_registered_models

REFERENCES: dict[Family, type] = {
    "text": TextEmbedding,
    "sparse": SparseTextEmbedding,
    "late_interaction": LateInteractionTextEmbedding,
    "image": ImageEmbedding,
    "late_interaction_multimodal": LateInteractionMultimodalEmbedding,
    "cross_encoder": TextCrossEncoder,
}


@pytest.mark.parametrize("family", REFERENCES)
def test_every_model_of_fastembed_is_known_with_its_files(family: Family) -> None:
    for theirs in REFERENCES[family].list_supported_models():  # type: ignore[attr-defined]
        ours = require_model(theirs["model"].upper(), family)
        assert ours.sources[0] == HubOrigin(theirs["sources"]["hf"])
        assert ours.dim == theirs.get("dim")
        assert ours.license == theirs["license"]
        files = {ours.model_file, *ours.additional_files} - {None}
        assert files == {theirs["model_file"], *theirs["additional_files"]}


def test_there_are_so_many_models_and_one_alias() -> None:
    assert len(list_models()) == 89  # 70 of fastembed
    assert len(list_models("text")) == 51
    alias = require_model("Prithvida/splade_pp_en_v1", "sparse")
    assert alias.name == "prithivida/Splade_PP_en_v1"


def test_whoever_chooses_a_model_learns_its_languages_limit_and_licence() -> None:
    for spec in list_models():
        assert spec.license, spec.name
        assert spec.languages or spec.family == "image", spec.name
        assert spec.size_in_gb, spec.name
        is_limited = spec.family in ("text", "late_interaction", "hybrid") and spec.name != "jinaai/jina-clip-v1"
        assert spec.stated_limit or not is_limited, spec.name
    described = describe(require_model("intfloat/multilingual-e5-small", "text"))
    assert (described["languages"], described["stated_limit"], described["dim"]) == (["multilingual"], 512, 384)


def test_models_that_their_own_repos_describe_have_no_files_of_their_own() -> None:
    """What they add is for people, or is in no file of theirs."""
    found = [spec for spec in list_models() if spec.reads_repo]
    assert len(found) == 18
    for spec in found:
        assert (spec.model_file, spec.additional_files, spec.pooling) == (None, (), "none"), spec.name
        check_settings(spec, {})
        assert spec.encoder in ROWS


def test_the_family_decides_between_files_of_one_name() -> None:
    assert require_model("jinaai/jina-clip-v1", "text").model_file == "onnx/text_model.onnx"
    assert require_model("jinaai/jina-clip-v1", "image").model_file == "onnx/vision_model.onnx"


def test_an_unknown_name_is_answered_with_names_like_it() -> None:
    with pytest.raises(UnknownModelError, match=r"did you mean BAAI/bge-small-en"):
        require_model("BAAI/bge-smal-en", "text")
    with pytest.raises(UnknownModelError, match="family sparse"):
        require_model("qdrant/BM25", "text")
    assert find_model("nobody/nothing", "text") is None


def test_a_registered_model_is_found_under_any_spelling(tmp_path: Path) -> None:
    spec = ModelSpec(name="Me/Mine", family="text", encoder="dense", sources=(LocalOrigin(tmp_path),))
    assert find_model("me/mine", "text") is None
    try:
        register(spec)
        assert require_model("me/MINE", "text") is spec
        assert list_models("text")[-1] is spec
        register(replace(spec))  # a cell that is run again
        assert list_models("text")[-1] is spec
        with pytest.raises(OptionError, match="already"):
            register(ModelSpec(name="me/mine", family="text", encoder="dense", sources=spec.sources))
    finally:
        forget_registered_models()
    assert find_model("me/mine", "text") is None


@pytest.mark.parametrize(("name", "family"), [("baai/BGE-small-en", "text"), ("Prithvida/Splade_PP_en_v1", "sparse")])
def test_built_in_models_cannot_be_replaced(name: str, family: Family) -> None:
    spec = ModelSpec(name=name, family=family, encoder="dense", sources=(HubOrigin("a/b"),))
    with pytest.raises(OptionError, match="already"):
        register(spec)


def test_a_model_needs_a_source_and_a_name() -> None:
    with pytest.raises(OptionError, match="source"):
        register(ModelSpec(name="a/b", family="text", encoder="dense", sources=()))
    with pytest.raises(OptionError, match="name"):
        register(ModelSpec(name="", family="text", encoder="dense", sources=(HubOrigin("a/b"),)))


def test_what_0_1_called_the_output_means_the_same() -> None:
    made = ModelSpec(name="a/b", family="text", encoder="dense", sources=(HubOrigin("a/b"),), output="states")
    assert made.graph_output == "states"
    assert replace(made, dim=3).graph_output == "states"
