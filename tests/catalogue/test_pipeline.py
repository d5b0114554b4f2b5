import json
import re
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncembed.catalogue.described import Overrides
from asyncembed.catalogue.limits import most_tokens
from asyncembed.catalogue.lookup import require_model
from asyncembed.catalogue.onnx_choice import choose_onnx_file
from asyncembed.catalogue.pipeline import configuration_files, spec_from_directory
from asyncembed.catalogue.spec import Family, HubOrigin, LocalOrigin, Pooling
from asyncembed.errors import ModelLoadError, OptionError, UnsupportedModelError
from asyncembed.repo_files import list_directory

MODULE = "sentence_transformers.models."


def write_repo(
    directory: Path,
    *,
    modules: list[tuple[str, str]] | None = None,
    pooling: dict[str, Any] | None = None,
    files: tuple[str, ...] = ("onnx/model.onnx", "tokenizer.json"),
    **configs: dict[str, Any],
) -> Path:
    """A directory as sentence-transformers lays it out; the files that hold no configuration are empty."""
    if modules is None:
        modules = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
    contents: dict[str, Any] = {
        "modules.json": [
            {"idx": index, "name": str(index), "path": path, "type": kind if "." in kind else MODULE + kind}
            for index, (kind, path) in enumerate(modules)
        ],
        "config.json": {"model_type": "bert", "hidden_size": 8},
        "sentence_bert_config.json": {"max_seq_length": 128, "do_lower_case": False},
        "1_Pooling/config.json": pooling or {"word_embedding_dimension": 8, "pooling_mode_mean_tokens": True},
    }
    contents |= {f"{name}.json": value for name, value in configs.items()}
    for path, content in contents.items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_text(json.dumps(content), encoding="utf-8")
    for path in files:
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).touch()
    return directory


def test_a_plain_repo_is_read_as_it_stands(tmp_path: Path) -> None:
    spec = spec_from_directory(write_repo(tmp_path))
    assert spec.sources == (LocalOrigin(tmp_path),)
    assert (spec.encoder, spec.model_file, spec.additional_files) == ("dense", "onnx/model.onnx", ())
    assert (spec.pooling, spec.normalize, spec.dim, spec.max_length) == ("mean", True, 8, 128)


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_max_tokens": True}, "max"),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, "mean_sqrt_len"),
        ({"pooling_mode_weightedmean_tokens": True}, "weighted_mean"),
        ({"pooling_mode_lasttoken": True}, "last_token"),
        ({"pooling_mode": "lasttoken"}, "last_token"),
        ({"pooling_mode": ["mean"]}, "mean"),
    ],
)
def test_every_pooling_mode_is_understood(config: dict[str, Any], pooling: Pooling, tmp_path: Path) -> None:
    assert spec_from_directory(write_repo(tmp_path, pooling=config)).pooling == pooling


@pytest.mark.parametrize(
    "config",
    [
        {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True},
        {"word_embedding_dimension": 8},
        {"pooling_mode": "attention"},
    ],
)
def test_a_pooling_that_is_not_clear_is_asked_for(config: dict[str, Any], tmp_path: Path) -> None:
    directory = write_repo(tmp_path, pooling=config)
    with pytest.raises(UnsupportedModelError, match="pooling="):
        spec_from_directory(directory)
    declared = Overrides(pooling="cls", normalize=False)
    assert spec_from_directory(directory, overrides=declared).pooling == "cls"


def test_prompts_projections_and_the_rest_are_carried_over(tmp_path: Path) -> None:
    spec = spec_from_directory(
        write_repo(
            tmp_path,
            modules=[("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", "2_Dense")],
            pooling={"pooling_mode_mean_tokens": True, "include_prompt": False},
            files=("onnx/model.onnx", "2_Dense/model.safetensors"),
            sentence_bert_config={"max_seq_length": None, "do_lower_case": True},
            config_sentence_transformers={
                "prompts": {"query": "query: ", "document": "passage: ", "empty": ""},
                "default_prompt_name": "query",
            },
        )
    )
    assert spec.prompts == {"query": "query: ", "document": "passage: ", "passage": "passage: ", "empty": ""}
    assert spec.default_prompt == "query"
    assert spec.max_length is None
    assert not spec.normalize
    assert spec.settings == {
        "lower_case": True,
        "include_prompt": False,
        "projections": ("2_Dense",),
    }
    assert spec.additional_files == ("2_Dense/model.safetensors", "2_Dense/config.json")


NEW_TYPES = [
    ("sentence_transformers.base.modules.transformer.Transformer", ""),
    ("sentence_transformers.sentence_transformer.modules.pooling.Pooling", "1_Pooling"),
    ("sentence_transformers.base.modules.dense.Dense", "2_Dense"),
    ("sentence_transformers.base.modules.normalize.Normalize", "3_Normalize"),
]
NEW_SENTENCE: dict[str, Any] = {
    "transformer_task": "feature-extraction",
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    "module_output_name": "token_embeddings",
}


def write_new_repo(directory: Path, **sentence: Any) -> Path:
    """As sentence-transformers from 5.4 on saves a dense model."""
    dense: dict[str, Any] = {
        "in_features": 8,
        "out_features": 4,
        "bias": True,
        "activation_function": "torch.nn.modules.activation.Tanh",
        "module_input_name": "sentence_embedding",
        "module_output_name": None,
    }
    configs: dict[str, dict[str, Any]] = {
        "config": {"model_type": "bert", "hidden_size": 8, "max_position_embeddings": 512},
        "sentence_bert_config": NEW_SENTENCE | sentence,
        "tokenizer_config": {"model_max_length": 96, "tokenizer_class": "TokenizersBackend", "backend": "tokenizers"},
        "config_sentence_transformers": {
            "model_type": "SentenceTransformer",
            "prompts": {"query": "", "document": ""},
            "default_prompt_name": None,
        },
        "2_Dense/config": dense,
        "3_Normalize/config": {"module_input_name": "sentence_embedding"},
    }
    return write_repo(
        directory,
        modules=NEW_TYPES,
        pooling={"embedding_dimension": 8, "pooling_mode": "mean", "include_prompt": True},
        files=("onnx/model.onnx", "tokenizer.json", "2_Dense/model.safetensors"),
        **configs,
    )


def test_a_repo_of_sentence_transformers_from_5_4_on_is_read_as_one_before(tmp_path: Path) -> None:
    spec = spec_from_directory(write_new_repo(tmp_path))
    assert (spec.pooling, spec.normalize, spec.dim) == ("mean", True, 4)
    assert spec.settings["projections"] == ("2_Dense",)
    # The tokenizer's limit is read with the tokenizer.
    assert spec.max_length is None
    assert spec.prompts == {"query": "", "document": "", "passage": ""}


@pytest.mark.parametrize(
    ("sentence", "message"),
    [
        ({"transformer_task": "fill-mask"}, "for the task fill-mask"),
        ({"transformer_task": ["any-to-any"]}, "for the task"),
        ({"modality_config": {"image": {"method": "get_image_features"}}}, "no plain text, only image"),
        ({"modality_config": {"text": {"method": "get_text_features"}}}, "by its method get_text_features"),
        ({"modality_config": {"text": "forwards"}}, "by its method forwards"),
    ],
)
def test_a_transformer_that_computes_no_text_is_refused(sentence: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        spec_from_directory(write_new_repo(tmp_path, **sentence))


def test_vectors_of_tokens_that_are_scaled_are_no_vector_of_a_text(tmp_path: Path) -> None:
    write_new_repo(tmp_path)
    (tmp_path / "3_Normalize/config.json").write_text('{"module_input_name": "token_embeddings"}', encoding="utf-8")
    with pytest.raises(UnsupportedModelError, match="Normalize is one of token_embeddings"):
        spec_from_directory(tmp_path)


def test_the_adapters_of_a_model_are_its_tasks(tmp_path: Path) -> None:
    tasks = ["retrieval.query", "retrieval.passage", "separation", "classification", "text-matching"]
    config = {"model_type": "xlm-roberta", "hidden_size": 8, "lora_adaptations": tasks}
    modules = [("custom_st.Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
    write_repo(tmp_path, modules=modules, config=config)
    spec = spec_from_directory(tmp_path, overrides=Overrides(pooling="mean", normalize=True))
    catalogued = require_model("jinaai/jina-embeddings-v3", "text").settings
    assert catalogued.items() <= spec.settings.items()
    write_repo(tmp_path, config=config | {"lora_adaptations": [1, 2]})
    assert "tasks" not in spec_from_directory(tmp_path).settings


def test_a_linear_layer_that_is_pickled_is_refused(tmp_path: Path) -> None:
    modules = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", "2_Dense")]
    write_repo(tmp_path, modules=modules, files=("onnx/model.onnx", "2_Dense/pytorch_model.bin"))
    with pytest.raises(UnsupportedModelError, match=r"2_Dense/model\.safetensors"):
        spec_from_directory(tmp_path)


@pytest.mark.parametrize(
    "modules",
    [
        [("Transformer", ""), ("Pooling", "1_Pooling"), ("LSTM", "2_LSTM")],
        [("custom_st.Transformer", ""), ("Pooling", "1_Pooling")],
        [("Transformer", ""), ("Normalize", "2"), ("Pooling", "1_Pooling")],
        [("Transformer", "")],
        [("Transformer", "0_Transformer"), ("Pooling", "1_Pooling")],
        [("CLIPModel", "")],
        [],
    ],
)
def test_modules_that_we_do_not_compute_are_refused(modules: list[tuple[str, str]], tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError):
        spec_from_directory(write_repo(tmp_path, modules=modules))


def test_without_sentence_transformers_files_the_caller_decides(tmp_path: Path) -> None:
    directory = write_repo(tmp_path)
    (directory / "modules.json").unlink()
    with pytest.raises(UnsupportedModelError, match="say pooling= and normalize="):
        spec_from_directory(directory)
    with pytest.raises(UnsupportedModelError, match="say normalize="):
        spec_from_directory(directory, overrides=Overrides(pooling="cls"))
    spec = spec_from_directory(directory, overrides=Overrides(pooling="cls", normalize=True, max_length=16))
    assert (spec.pooling, spec.normalize, spec.dim, spec.max_length) == ("cls", True, 8, 16)


def test_what_the_caller_says_wins(tmp_path: Path) -> None:
    overrides = Overrides(normalize=False, max_length=5, graph_output="text_embeds")
    spec = spec_from_directory(write_repo(tmp_path), overrides=overrides)
    assert (spec.pooling, spec.normalize, spec.max_length, spec.graph_output) == ("mean", False, 5, "text_embeds")


WITH_LINEAR = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", "2_Dense"), ("Normalize", "3_Normalize")]


def write_with_linear(directory: Path) -> Path:
    write_repo(directory, modules=WITH_LINEAR, files=("onnx/model.onnx", "2_Dense/model.safetensors"))
    (directory / "2_Dense/config.json").write_text(json.dumps({"in_features": 8, "out_features": 4}), "utf-8")
    return directory


@pytest.mark.parametrize(
    "overrides",
    [Overrides(pooling="mean"), Overrides(normalize=True), Overrides(pooling="mean", normalize=True)],
)
def test_a_keyword_that_restates_what_the_repo_says_changes_nothing(overrides: Overrides, tmp_path: Path) -> None:
    write_with_linear(tmp_path)
    assert spec_from_directory(tmp_path, overrides=overrides) == spec_from_directory(tmp_path)


@pytest.mark.parametrize("normalize", [None, True, False])
@pytest.mark.parametrize("pooling", [None, "cls", "last_token", "none"])
def test_a_keyword_overrides_its_own_module_and_no_other(
    pooling: Pooling | None, normalize: bool | None, tmp_path: Path
) -> None:
    spec = spec_from_directory(write_with_linear(tmp_path), overrides=Overrides(pooling=pooling, normalize=normalize))
    assert spec.pooling == (pooling or "mean")
    assert spec.normalize == (True if normalize is None else normalize)
    # A graph that pools by itself has been through the linear layer, too.
    has_linear = pooling != "none"
    assert ("2_Dense/model.safetensors" in spec.additional_files) == has_linear
    assert spec.settings.get("projections", ()) == (("2_Dense",) if has_linear else ())
    assert spec.dim == (4 if has_linear else None)
    assert spec.max_length == 128


def test_modules_of_the_repos_own_are_the_graphs_where_the_caller_says_the_rest(tmp_path: Path) -> None:
    write_with_linear(tmp_path)
    modules = json.loads((tmp_path / "modules.json").read_text("utf-8"))
    modules[0]["type"] = "custom_st.Transformer"
    (tmp_path / "modules.json").write_text(json.dumps(modules), "utf-8")
    with pytest.raises(
        UnsupportedModelError, match=r"custom_st.Transformer is none that we compute.*pooling= and norm"
    ):
        spec_from_directory(tmp_path, overrides=Overrides(pooling="mean"))
    spec = spec_from_directory(tmp_path, overrides=Overrides(pooling="mean", normalize=True))
    assert (spec.settings["projections"], spec.dim) == (("2_Dense",), 4)


def test_a_linear_layer_that_cannot_be_read_is_not_left_out_because_of_a_keyword(tmp_path: Path) -> None:
    (write_with_linear(tmp_path) / "2_Dense/model.safetensors").unlink()
    with pytest.raises(UnsupportedModelError, match=r"lacks 2_Dense/model\.safetensors"):
        spec_from_directory(tmp_path, overrides=Overrides(pooling="mean", normalize=True))
    assert spec_from_directory(tmp_path, overrides=Overrides(pooling="none")).pooling == "none"


@pytest.mark.parametrize("as_module", [True, False])
def test_keywords_leave_a_static_model_static(as_module: bool, tmp_path: Path) -> None:
    write_repo(
        tmp_path,
        modules=[("StaticEmbedding", ""), ("Normalize", "1_Normalize")],
        files=("model.safetensors", "tokenizer.json"),
        config={"model_type": "model2vec", "normalize": True},
    )
    if not as_module:
        (tmp_path / "modules.json").unlink()
    plain = spec_from_directory(tmp_path)
    assert spec_from_directory(tmp_path, overrides=Overrides(pooling="mean", normalize=True)) == plain
    assert not spec_from_directory(tmp_path, overrides=Overrides(normalize=False)).normalize
    with pytest.raises(UnsupportedModelError, match="leave out pooling="):
        spec_from_directory(tmp_path, overrides=Overrides(pooling="cls"))


@pytest.mark.parametrize("mode", [5, [5], {"mean": True}, ["mean", ["cls"]], True, 1e999, "x" * 10_000, "\ud800"])
def test_a_pooling_mode_of_any_shape_is_our_error_unless_the_caller_says_another(mode: object, tmp_path: Path) -> None:
    write_repo(tmp_path, pooling={"pooling_mode": mode})
    with pytest.raises(UnsupportedModelError, match="say pooling=") as caught:
        spec_from_directory(tmp_path)
    assert len(str(caught.value)) < 1000
    assert spec_from_directory(tmp_path, overrides=Overrides(pooling="cls")).pooling == "cls"


@pytest.mark.slow
@pytest.mark.parametrize(
    "folder", ["../elsewhere", "/etc", "a/../..", "C:\\x", "\ud800", "x" * 5000, 5, None, ["1_Pooling"]]
)
@pytest.mark.parametrize("position", [0, 1, 2])
def test_no_module_leads_out_of_the_repo(folder: object, position: int, tmp_path: Path) -> None:
    repo = write_with_linear(tmp_path / "repo")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "config.json").write_text(json.dumps({"pooling_mode": "cls"}), "utf-8")
    modules = json.loads((repo / "modules.json").read_text("utf-8"))
    modules[position]["path"] = folder
    (repo / "modules.json").write_text(json.dumps(modules), "utf-8")
    with pytest.raises(ModelLoadError):
        spec_from_directory(repo)


def test_names_in_a_listing_that_lead_elsewhere_count_as_absent(tmp_path: Path) -> None:
    write_repo(tmp_path, files=())
    listing = [
        "../config.json",
        "/etc/config.json",
        "a\\config.json",
        "onnx/model.onnx",
        "../model.onnx",
        "x/../model.onnx",
    ]
    assert configuration_files(listing) == ()
    assert spec_from_directory(tmp_path, files=listing).model_file == "onnx/model.onnx"
    with pytest.raises(UnsupportedModelError):
        spec_from_directory(tmp_path, files=listing, overrides=Overrides(onnx_file="../model.onnx"))


@pytest.mark.parametrize(
    ("family", "output"), [("image", "image_embeds"), ("cross_encoder", "logits"), ("sparse", "logits")]
)
def test_the_output_that_a_family_computes_with_is_preferred_unless_the_caller_names_one(
    family: Family, output: str, tmp_path: Path
) -> None:
    directory = write_repo(tmp_path, files=("onnx/model.onnx", "preprocessor_config.json"))
    (directory / "modules.json").unlink()
    assert spec_from_directory(directory, family=family).settings == {"output_name": output}
    named = spec_from_directory(directory, family=family, overrides=Overrides(graph_output="states"))
    assert (named.settings, named.graph_output) == ({}, "states")


def test_a_repo_that_says_nothing_of_images_is_no_image_model(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"no preprocessor_config\.json"):
        spec_from_directory(write_repo(tmp_path), family="image")


def test_a_listing_stands_for_files_that_are_not_there_yet(tmp_path: Path) -> None:
    write_repo(tmp_path, files=())
    listing = ["README.md", "tokenizer.json", "onnx/model.onnx", "onnx/model.onnx_data", "onnx/model_q4.onnx"]
    spec = spec_from_directory(tmp_path, name="org/name", files=listing, origin=HubOrigin("org/name"))
    # The graph itself tells which files it needs, once it is there.
    assert (spec.model_file, spec.additional_files) == ("onnx/model.onnx", ())
    assert spec.name == "org/name"


def test_weights_without_a_graph_are_named_for_the_export(tmp_path: Path) -> None:
    spec = spec_from_directory(write_repo(tmp_path, files=("model.safetensors",)))
    assert (spec.model_file, spec.additional_files) == (None, ("model.safetensors",))
    shards = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    sharded = spec_from_directory(tmp_path, files=[*shards, "model.safetensors.index.json"])
    # The index itself tells which files hold the weights, once it is there.
    assert sharded.additional_files == ("model.safetensors.index.json",)


@pytest.mark.parametrize("as_module", [True, False])
def test_static_models_have_no_graph(as_module: bool, tmp_path: Path) -> None:
    modules = [("StaticEmbedding", ""), ("Normalize", "1_Normalize")]
    directory = write_repo(
        tmp_path,
        modules=modules,
        files=("model.safetensors", "tokenizer.json"),
        config={"model_type": "model2vec", "normalize": True, "hidden_dim": 4},
    )
    if not as_module:
        (directory / "modules.json").unlink()
    spec = spec_from_directory(directory)
    assert (spec.encoder, spec.model_file, spec.pooling, spec.normalize) == ("static", None, "mean", True)
    assert spec.settings.get("drop_unknown", False) == (not as_module)


def test_a_reranker_needs_no_pooling(tmp_path: Path) -> None:
    (write_repo(tmp_path) / "modules.json").unlink()
    spec = spec_from_directory(tmp_path, family="cross_encoder")
    assert (spec.encoder, spec.model_file) == ("cross_encoder", "onnx/model.onnx")
    with pytest.raises(UnsupportedModelError, match="catalogue"):
        spec_from_directory(tmp_path, family="late_interaction_multimodal")


def test_broken_and_missing_directories_say_so(tmp_path: Path) -> None:
    write_repo(tmp_path)
    (tmp_path / "modules.json").write_text("[", encoding="utf-8")
    with pytest.raises(ModelLoadError, match=r"modules\.json"):
        spec_from_directory(tmp_path)
    with pytest.raises(ModelLoadError, match="no directory"):
        spec_from_directory(tmp_path / "absent")


HUB_FILES = ["onnx/model.onnx", "onnx/model_O2.onnx", "onnx/model_O4.onnx", "onnx/model_fp16.onnx"]


@pytest.mark.parametrize(
    ("files", "keywords", "chosen"),
    [
        (HUB_FILES, {}, "onnx/model.onnx"),
        (HUB_FILES, {"precision": "fp32"}, "onnx/model.onnx"),
        (HUB_FILES, {"onnx_file": "onnx/model_O2.onnx"}, "onnx/model_O2.onnx"),
        ([*HUB_FILES, "model.onnx"], {}, "onnx/model.onnx"),
        (["model_optimized.onnx"], {}, "model_optimized.onnx"),
        (
            ["onnx/model.onnx", "onnx/model_quantized.onnx"],
            {"precision": "int8"},
            "onnx/model_quantized.onnx",
        ),
        (["onnx/model_qint8_avx512_vnni.onnx"], {"precision": "int8"}, "onnx/model_qint8_avx512_vnni.onnx"),
        (["onnx/model_q4.onnx", "onnx/model_q4f16.onnx"], {"precision": "q4"}, "onnx/model_q4.onnx"),
        (["onnx/model_fp16.onnx", "model.safetensors"], {}, None),
    ],
)
def test_the_plain_graph_is_taken_unless_another_is_asked_for(
    files: list[str], keywords: dict[str, str], chosen: str | None
) -> None:
    assert choose_onnx_file(files, **keywords) == chosen


@pytest.mark.parametrize(
    ("files", "keywords", "message"),
    [
        (["onnx/model_fp16.onnx"], {}, "onnx_file="),
        (["a/model.onnx", "b/model.onnx"], {}, "several"),
        (["onnx/model.onnx", "model.safetensors"], {"precision": "int8"}, "no ONNX file of precision int8"),
        (["onnx/model.onnx"], {"onnx_file": "model.onnx"}, r"its ONNX files: onnx/model\.onnx"),
        (["model.safetensors"], {"precision": "int8"}, "no ONNX file; its weights can be exported"),
        (["model.safetensors"], {"precision": "fp16"}, 'leave it out for fp32, or say precision="int8"'),
        (["pytorch_model.bin"], {}, r"neither an ONNX file nor model\.safetensors; `save_pretrained`"),
    ],
)
def test_a_graph_that_is_not_clear_is_asked_for(files: list[str], keywords: dict[str, str], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        choose_onnx_file(files, **keywords)


def test_an_unknown_precision_is_an_option_error() -> None:
    with pytest.raises(OptionError, match="fp16"):
        choose_onnx_file(["onnx/model.onnx"], precision="half")


def test_only_small_files_are_needed_to_decide() -> None:
    listing = [
        "modules.json",
        "1_Pooling/config.json",
        "model.safetensors",
        "onnx/model.onnx",
        "a/b/config.json",
    ]
    assert configuration_files(listing) == ("1_Pooling/config.json", "modules.json")


@pytest.mark.parametrize(
    "config",
    [
        {"architectures": ["XLMRobertaForSequenceClassification"], "num_labels": 1},
        {"architectures": ["NewForSequenceClassification"], "id2label": {"0": "LABEL_0"}},
        {"model_type": "bert"},
    ],
)
def test_a_classifier_of_one_label_is_a_reranker(config: dict[str, Any], tmp_path: Path) -> None:
    (write_repo(tmp_path, config=config) / "modules.json").unlink()
    spec = spec_from_directory(tmp_path, family="cross_encoder")
    assert (spec.family, spec.encoder, spec.model_file) == ("cross_encoder", "cross_encoder", "onnx/model.onnx")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"architectures": ["BertForSequenceClassification"], "num_labels": 2}, "a classifier of 2 labels"),
        ({"id2label": {"0": "a", "1": "b", "2": "c"}}, "a classifier of 3 labels"),
        ({"architectures": ["BertModel"]}, "BertModel, not a model ForSequenceClassification"),
    ],
)
def test_what_is_no_reranker_is_refused_as_one(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        spec_from_directory(write_repo(tmp_path, config=config), family="cross_encoder")


def test_a_reranker_without_a_graph_gets_one_from_its_weights(tmp_path: Path) -> None:
    config = {"architectures": ["ModernBertForSequenceClassification"], "num_labels": 1}
    write_repo(tmp_path, files=("model.safetensors",), config=config)
    spec = spec_from_directory(tmp_path, family="cross_encoder")
    assert (spec.model_file, spec.additional_files) == (None, ("model.safetensors",))


def test_sparse_encoders_of_sentence_transformers_are_splade(tmp_path: Path) -> None:
    prefix = "sentence_transformers.sparse_encoder.models."
    modules = [(f"{prefix}MLMTransformer", ""), (f"{prefix}SpladePooling", "1_SpladePooling")]
    write_repo(tmp_path, modules=modules)
    pooling = tmp_path / "1_SpladePooling" / "config.json"
    pooling.parent.mkdir()
    pooling.write_text(json.dumps({"pooling_strategy": "max", "activation_function": "relu"}), "utf-8")
    spec = spec_from_directory(tmp_path, family="sparse")
    assert (spec.encoder, spec.max_length) == ("splade", 128)
    pooling.write_text(json.dumps({"pooling_strategy": "mean", "activation_function": "relu"}), "utf-8")
    with pytest.raises(UnsupportedModelError, match="mean of relu"):
        spec_from_directory(tmp_path, family="sparse")
    write_repo(tmp_path, modules=[("Transformer", ""), ("Pooling", "1_Pooling")])
    with pytest.raises(UnsupportedModelError, match="MLMTransformer and SpladePooling"):
        spec_from_directory(tmp_path, family="sparse")
    (tmp_path / "modules.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["BertForMaskedLM"]}), "utf-8")
    assert spec_from_directory(tmp_path, family="sparse").encoder == "splade"


SPARSE_REPOS = Path(__file__).parents[1] / "embedders" / "data" / "sparse"


def sparse_repo(name: str, directory: Path) -> Path:
    """A copy of a repo as sentence-transformers has it."""
    return shutil.copytree(SPARSE_REPOS / name, directory, dirs_exist_ok=True)


def rewrite(path: Path, **entries: object) -> None:
    """Change entries of an object in a file."""
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | entries), "utf-8")


@pytest.mark.parametrize("name", ["splade", "splade_mlm"])
def test_splade_is_read_in_the_layout_of_any_version(name: str, tmp_path: Path) -> None:
    spec = spec_from_directory(sparse_repo(name, tmp_path), family="sparse")
    assert (spec.encoder, spec.max_length or 16, spec.folder) == ("splade", 16, "")
    assert (spec.model_file, spec.additional_files) == (None, ("model.safetensors",))
    rewrite(tmp_path / "1_SpladePooling" / "config.json", activation_function="log1p_relu")
    rewrite(tmp_path / "config_sentence_transformers.json", max_active_dims=7)
    settings = spec_from_directory(tmp_path, family="sparse").settings
    assert (settings["activation"], settings["word_pooling"], settings["max_active_dims"]) == ("log1p_relu", "max", 7)


def test_a_transformer_without_logits_is_no_splade(tmp_path: Path) -> None:
    sparse_repo("splade", tmp_path)
    rewrite(tmp_path / "sentence_bert_config.json", transformer_task="feature-extraction")
    with pytest.raises(UnsupportedModelError, match="hidden states, not logits"):
        spec_from_directory(tmp_path, family="sparse")
    rewrite(tmp_path / "sentence_bert_config.json", transformer_task="fill-mask", modality_config={"image": {}})
    with pytest.raises(UnsupportedModelError, match="takes no plain text"):
        spec_from_directory(tmp_path, family="sparse")


def test_sums_of_weights_need_a_graph_of_all_logits(tmp_path: Path) -> None:
    sparse_repo("splade", tmp_path)
    rewrite(tmp_path / "1_SpladePooling" / "config.json", pooling_strategy="sum")
    with pytest.raises(UnsupportedModelError, match="not the sum"):
        spec_from_directory(tmp_path, family="sparse")
    (tmp_path / "model.onnx").touch()
    assert spec_from_directory(tmp_path, family="sparse").settings["word_pooling"] == "sum"


def test_a_table_without_modules_is_not_guessed_at(tmp_path: Path) -> None:
    write_repo(tmp_path, files=("model.onnx", "idf.json"))
    (tmp_path / "modules.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["BertForMaskedLM"]}), "utf-8")
    with pytest.raises(UnsupportedModelError, match="inference_free_splade"):
        spec_from_directory(tmp_path, family="sparse")


@pytest.mark.parametrize(
    ("name", "files", "folder"),
    [
        (
            "router",
            ("document_0_Transformer/model.safetensors", "query_0_SparseStaticEmbedding/model.safetensors"),
            "document_0_Transformer",
        ),
        ("idf", ("model.safetensors", "idf.json"), ""),
    ],
)
def test_a_router_names_the_folders_of_documents_and_queries(
    name: str, files: tuple[str, str], folder: str, tmp_path: Path
) -> None:
    spec = spec_from_directory(sparse_repo(name, tmp_path), family="sparse")
    assert (spec.encoder, spec.folder, spec.model_file) == ("inference_free_splade", folder, None)
    assert spec.additional_files == files
    assert spec.settings["query_folder"] == "query_0_SparseStaticEmbedding"
    assert spec.settings["activation"] == "log1p_relu"
    assert configuration_files(list_directory(tmp_path)) == tuple(
        sorted(path for path in list_directory(tmp_path) if path.endswith(".json") and path != "idf.json")
    )
    (tmp_path / folder / "onnx").mkdir()
    (tmp_path / folder / "onnx" / "model.onnx").touch()
    graph = f"{folder}/onnx/model.onnx".lstrip("/")
    assert spec_from_directory(tmp_path, family="sparse").model_file == graph


def test_the_limit_of_a_router_is_that_of_its_documents(tmp_path: Path) -> None:
    sparse_repo("router", tmp_path)
    rewrite(tmp_path / "document_0_Transformer" / "config.json", max_position_embeddings=12)
    assert spec_from_directory(tmp_path, family="sparse").max_length == 12


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"structure": {"document": ["document_0_Transformer"]}}, "no modules for the route query"),
        ({"structure": {"query": [], "document": []}}, "no modules for the route query"),
        ({"structure": {"query": ["document_0_Transformer"], "document": ["document_0_Transformer"]}}, "modules are"),
        ({"types": []}, "no modules for the route query"),
        ({"parameters": {"route_mappings": {"('query', None)": "query"}}}, "mappings of routes"),
    ],
)
def test_a_router_that_is_not_computed_is_refused(entries: dict[str, object], message: str, tmp_path: Path) -> None:
    sparse_repo("router", tmp_path)
    rewrite(tmp_path / "router_config.json", **entries)
    with pytest.raises(UnsupportedModelError, match=message):
        spec_from_directory(tmp_path, family="sparse")


def test_queries_with_a_graph_of_their_own_are_refused(tmp_path: Path) -> None:
    sparse_repo("router", tmp_path)
    shutil.copytree(tmp_path / "document_0_Transformer", tmp_path / "query_0_Transformer")
    config = json.loads((tmp_path / "router_config.json").read_text("utf-8"))
    config["types"]["query_0_Transformer"] = config["types"]["document_0_Transformer"]
    routes = ["document_0_Transformer", "document_1_SpladePooling"]
    structure = {"query": ["query_0_Transformer", routes[1]], "document": routes}
    rewrite(tmp_path / "router_config.json", types=config["types"], structure=structure)
    with pytest.raises(UnsupportedModelError, match="its queries go through Transformer, SpladePooling"):
        spec_from_directory(tmp_path, family="sparse")
    rewrite(tmp_path / "router_config.json", structure={"query": routes, "document": routes})
    assert spec_from_directory(tmp_path, family="sparse").encoder == "splade"


@pytest.mark.parametrize("name", ["splade", "router"])
def test_a_sparse_encoder_names_the_class_that_opens_it(name: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="a SparseEncoder: open it with SparseTextEmbedding"):
        spec_from_directory(sparse_repo(name, tmp_path))


@pytest.mark.parametrize("folder", ["../elsewhere", "/tmp", "a\\b"])
def test_no_route_leads_out_of_the_repo(folder: str, tmp_path: Path) -> None:
    sparse_repo("router", tmp_path)
    types = {folder: "sentence_transformers.models.SparseStaticEmbedding"}
    rewrite(tmp_path / "router_config.json", types=types, structure={"query": [folder], "document": [folder]})
    with pytest.raises(ModelLoadError):
        spec_from_directory(tmp_path, family="sparse")
    rewrite(tmp_path / "router_config.json", types={}, structure={"query": [folder], "document": [folder]})
    with pytest.raises(ModelLoadError, match="without a type"):
        spec_from_directory(tmp_path, family="sparse")


def test_weights_of_queries_that_are_missing_are_named(tmp_path: Path) -> None:
    sparse_repo("idf", tmp_path)
    (tmp_path / "idf.json").unlink()
    with pytest.raises(UnsupportedModelError, match=r"idf\.json, are missing"):
        spec_from_directory(tmp_path, family="sparse")


@pytest.mark.parametrize("content", ["{}", "[1]", '[{"idx": "first"}]', "["])
def test_a_broken_list_of_modules_is_told(content: str, tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text(content, "utf-8")
    with pytest.raises(ModelLoadError, match="modules.json"):
        spec_from_directory(tmp_path)


@pytest.mark.parametrize(
    ("config", "most"),
    [
        ({"model_type": "bert", "max_position_embeddings": 512}, 512),
        ({"model_type": "distilbert", "max_position_embeddings": 512}, 512),
        ({"model_type": "xlm-roberta", "max_position_embeddings": 514}, 512),
        ({"model_type": "mpnet", "max_position_embeddings": 514}, 512),
        ({"model_type": "bert", "max_position_embeddings": 512, "position_embedding_type": "absolute"}, 512),
        ({"model_type": "bert", "max_position_embeddings": 8192, "position_embedding_type": "alibi"}, None),
        ({"model_type": "modernbert", "max_position_embeddings": 8192}, None),
        ({"model_type": "bert"}, None),
        ({}, None),
    ],
)
def test_learnt_positions_bound_an_input(config: dict[str, object], most: int | None) -> None:
    """Where positions are computed, as by rotation, a longer input can be computed all the same."""
    assert most_tokens(config) == most


@given(
    kinds=st.lists(st.sampled_from(["Transformer", "StaticEmbedding", "Pooling", "Dense", "Normalize"]), max_size=5),
    pooling=st.sampled_from([None, "mean"]),
)
def test_modules_are_computed_in_the_one_order_in_which_they_mean_something(
    kinds: list[str], pooling: Pooling | None
) -> None:
    with TemporaryDirectory() as folder:
        modules = [(kind, "" if kind in ("Transformer", "StaticEmbedding") else kind) for kind in kinds]
        files = ("onnx/model.onnx", "model.safetensors", "tokenizer.json", "Dense/model.safetensors")
        flags = {"pooling_mode_mean_tokens": True}
        directory = write_repo(Path(folder), modules=modules, files=files)
        (directory / "Pooling").mkdir()
        (directory / "Pooling/config.json").write_text(json.dumps(flags), "utf-8")
        overrides = Overrides(pooling=pooling, normalize=None if pooling is None else True)
        # Where the caller says all, modules of the repo's own may stand for the first two.
        first = "(Transformer )?(Pooling )?" if pooling else "Transformer Pooling "
        order = f"({first}|StaticEmbedding )(Dense )*(Normalize )*"
        is_computed = re.fullmatch(order, "".join(f"{kind} " for kind in kinds)) is not None
        if not is_computed:
            with pytest.raises(UnsupportedModelError, match="in an order that we do not compute"):
                spec_from_directory(directory, overrides=overrides)
        else:
            spec = spec_from_directory(directory, overrides=overrides)
            assert spec.normalize == (True if pooling else "Normalize" in kinds)
            assert spec.settings.get("projections", ()) == ("Dense",) * kinds.count("Dense")


MULTI_VECTOR = Path(__file__).parents[1] / "embedders" / "data" / "multi_vector"


def multi_vector_repo(name: str, directory: Path) -> Path:
    shutil.copytree(MULTI_VECTOR / name, directory, dirs_exist_ok=True)
    return directory


@pytest.mark.parametrize(
    ("name", "limits", "dim", "layers"),
    [
        ("pylate", (20, 12), 4, ("1_Dense", "2_Dense", "3_Dense")),
        ("pylate_no_expansion", (16, 9), 4, ("1_Dense",)),
        ("multi_vector", (20, 12), 4, ("1_Dense",)),
        ("multi_vector_pooled", (None, 14), 4, ("1_Dense",)),
        ("stanford", (18, 10), None, ()),
    ],
)
def test_multi_vector_models_are_read_in_every_layout(
    name: str, limits: tuple[int | None, int], dim: int | None, layers: tuple[str, ...]
) -> None:
    spec = spec_from_directory(MULTI_VECTOR / name, family="late_interaction")
    assert (spec.encoder, spec.model_file, spec.normalize, spec.dim) == ("colbert", None, True, dim)
    assert (spec.max_length, spec.settings["query_max_length"]) == limits
    assert spec.settings.get("projections", ()) == layers
    assert {"model.safetensors", *(f"{layer}/model.safetensors" for layer in layers)} <= {*spec.additional_files}
    for family in ("text", "sparse"):
        with pytest.raises(UnsupportedModelError):
            spec_from_directory(MULTI_VECTOR / name, family=family)


def test_pylate_has_values_for_what_its_files_leave_out(tmp_path: Path) -> None:
    repo = multi_vector_repo("pylate", tmp_path)
    (repo / "config_sentence_transformers.json").write_text("{}", encoding="utf-8")
    spec = spec_from_directory(repo, family="late_interaction")
    assert (spec.max_length, spec.settings["query_max_length"], spec.settings["query_pad_length"]) == (180, 32, 31)
    assert (spec.settings["query_marker"], spec.settings["document_marker"]) == ("[Q] ", "[D] ")
    assert set("!,.") <= {*spec.settings["skip_words"]}  # type: ignore[misc]


def test_a_default_prompt_of_pylate_is_for_both_roles(tmp_path: Path) -> None:
    repo = multi_vector_repo("pylate", tmp_path)
    rewrite(
        repo / "config_sentence_transformers.json",
        prompts={"query": "", "document": "", "all": "it: "},
        default_prompt_name="all",
    )
    spec = spec_from_directory(repo, family="late_interaction")
    assert (spec.prompts["query"], spec.prompts["document"]) == ("it: ", "it: ")


@pytest.mark.parametrize(
    ("name", "path", "entries", "message"),
    [
        ("pylate", "config_sentence_transformers.json", {"skiplist_words": "the"}, "skiplist_words"),
        ("pylate", "config_sentence_transformers.json", {"query_prefix": 3}, "query_prefix"),
        ("multi_vector", "sentence_bert_config.json", {"query_expansion": {"strategy": "all"}}, "query_expansion"),
        ("multi_vector", "2_MultiVectorMask/config.json", {"keep_only_token_ids": [3]}, "some tokens"),
        ("multi_vector", "1_Dense/config.json", {"module_input_name": "sentence_embedding"}, "token_embeddings"),
        ("multi_vector_pooled", "4_HierarchicalTokenPooling/config.json", {"tasks": ["query"]}, "documents alone"),
        ("multi_vector_pooled", "4_HierarchicalTokenPooling/config.json", {"pool_factor": 0}, "pool_factor"),
    ],
)
def test_a_multi_vector_model_that_is_not_computed_is_refused(
    name: str, path: str, entries: dict[str, object], message: str, tmp_path: Path
) -> None:
    repo = multi_vector_repo(name, tmp_path)
    rewrite(repo / path, **entries)
    with pytest.raises(UnsupportedModelError, match=message):
        spec_from_directory(repo, family="late_interaction")


def test_what_says_nothing_of_tokens_is_no_multi_vector_model(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="add_custom_model"):
        spec_from_directory(write_repo(tmp_path), family="late_interaction")


def test_a_graph_of_colberts_own_format_is_one_that_has_the_layer(tmp_path: Path) -> None:
    repo = multi_vector_repo("stanford", tmp_path)
    (repo / "model.onnx").touch()
    spec = spec_from_directory(repo, family="late_interaction")
    assert (spec.model_file, spec.additional_files) == ("model.onnx", ())
    assert (spec.settings["finishes"], spec.settings["projection_in_weights"]) == (True, False)
