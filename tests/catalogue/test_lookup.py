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

from asyncembed.catalogue.lookup import Catalogue
from asyncembed.catalogue.spec import Family, HubSource, LocalSource, ModelSpec
from asyncembed.errors import OptionError, UnknownModelError

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
        ours = Catalogue.builtin().lookup(theirs["model"].upper(), family)
        assert ours.sources[0] == HubSource(theirs["sources"]["hf"])
        assert ours.dim == theirs.get("dim")
        assert ours.license == theirs["license"]
        files = {ours.model_file, *ours.additional_files} - {None}
        assert files == {theirs["model_file"], *theirs["additional_files"]}


def test_there_are_seventy_models_and_one_alias() -> None:
    assert len(Catalogue.builtin().list_models()) == 70
    assert len(Catalogue.builtin().list_models("text")) == 41
    alias = Catalogue.builtin().lookup("Prithvida/splade_pp_en_v1", "sparse")
    assert alias.name == "prithivida/Splade_PP_en_v1"


def test_the_family_decides_between_files_of_one_name() -> None:
    builtin = Catalogue.builtin()
    assert builtin.lookup("jinaai/jina-clip-v1", "text").model_file == "onnx/text_model.onnx"
    assert builtin.lookup("jinaai/jina-clip-v1", "image").model_file == "onnx/vision_model.onnx"


def test_an_unknown_name_is_answered_with_names_like_it() -> None:
    with pytest.raises(UnknownModelError, match=r"did you mean BAAI/bge-small-en"):
        Catalogue.builtin().lookup("BAAI/bge-smal-en", "text")
    with pytest.raises(UnknownModelError, match="family sparse"):
        Catalogue.builtin().lookup("qdrant/BM25", "text")
    assert Catalogue.builtin().find("nobody/nothing", "text") is None


def test_a_registered_model_is_found_until_it_is_removed(tmp_path: Path) -> None:
    catalogue = Catalogue(Catalogue.builtin().list_models())
    spec = ModelSpec(name="Me/Mine", family="text", encoder="dense", sources=(LocalSource(tmp_path),))
    catalogue.register(spec)
    assert catalogue.lookup("me/MINE", "text") is spec
    assert catalogue.list_models("text")[-1] is spec
    assert Catalogue.builtin().find("me/mine", "text") is None
    with pytest.raises(OptionError, match="already"):
        catalogue.register(ModelSpec(name="me/mine", family="text", encoder="dense", sources=spec.sources))
    catalogue.unregister("ME/mine", "text")
    assert catalogue.find("me/mine", "text") is None


def test_built_in_models_cannot_be_replaced_or_removed() -> None:
    catalogue = Catalogue.builtin()
    spec = ModelSpec(name="baai/BGE-small-en", family="text", encoder="dense", sources=(HubSource("a/b"),))
    with pytest.raises(OptionError, match="already"):
        catalogue.register(spec)
    with pytest.raises(UnknownModelError):
        catalogue.unregister("BAAI/bge-small-en", "text")


def test_a_model_needs_a_source() -> None:
    with pytest.raises(OptionError, match="source"):
        Catalogue().register(ModelSpec(name="a/b", family="text", encoder="dense", sources=()))
