"""The bodies of Text Embeddings Inference: what its routes take, and what they answer."""

from typing import Annotated, Literal, TypeAlias

import msgspec

from asyncembed.server.jina_dialect import JinaDocument

Id: TypeAlias = Annotated[int, msgspec.Meta(ge=0, lt=2**32)]

NOT_EMPTY = msgspec.Meta(extra_json_schema={"minItems": 1})
"""What the document says; an empty list is refused by name, not as one of a wrong form."""

_IDS = msgspec.Meta(
    extra_json_schema={"minItems": 1, "anyOf": [{"items": {"type": "integer"}}, {"items": {"type": "array"}}]}
)

_PAIRS = msgspec.Meta(
    extra_json_schema={
        "type": "array",
        "minItems": 1,
        "oneOf": [
            {"items": {"type": "string"}, "minItems": 2, "maxItems": 2},
            {"items": {"type": "array", "minItems": 2, "maxItems": 2}},
        ],
    }
)

_TEXTS_OR_IDS = msgspec.Meta(
    extra_json_schema={
        "minItems": 1,
        "anyOf": [{"items": {"type": "integer"}}, {"items": {"not": {"type": "integer"}}}],
    }
)

Inputs: TypeAlias = str | Annotated[list[str | Id | list[Id]], _TEXTS_OR_IDS]
"""A text, the token ids of one, or a list of either."""


class TeiRequest(msgspec.Struct, kw_only=True):
    """What all have in common: the model, which its own servers know by themselves."""

    model: str | None = None


class CuttingRequest(TeiRequest, kw_only=True):
    """Of what computes: what becomes of inputs over the limit. None: what the model was opened with."""

    truncate: bool | None = None
    truncation_direction: Literal["Right", "right", "Left", "left"] = "Right"


class EmbedAllRequest(CuttingRequest, kw_only=True):
    """What `/embed_all` takes."""

    inputs: Inputs
    prompt_name: str | None = None


class EmbedSparseRequest(EmbedAllRequest, kw_only=True):
    """What `/embed_sparse` takes."""


class EmbedRequest(EmbedAllRequest, kw_only=True):
    """What `/embed` takes."""

    normalize: bool = True
    dimensions: Annotated[int, msgspec.Meta(ge=1)] | None = None


class RerankRequest(CuttingRequest, kw_only=True):
    """What `/rerank` takes: `texts`, or, with what belongs to them in Jina's form and Infinity's, `documents`."""

    query: str
    texts: Annotated[list[str], NOT_EMPTY] | msgspec.UnsetType = msgspec.UNSET
    raw_scores: bool = False
    return_text: bool = False
    documents: Annotated[list[str | JinaDocument], NOT_EMPTY] | msgspec.UnsetType = msgspec.UNSET
    top_n: Annotated[int, msgspec.Meta(ge=1)] | None = None
    return_documents: bool = False
    instruction: str | None = None


class PredictRequest(CuttingRequest, kw_only=True):
    """What `/predict` takes: a pair of texts, or a list of pairs. A text alone is refused by name."""

    inputs: Annotated[str | list[str | list[str]], _PAIRS]
    raw_scores: bool = False


class SimilarityInputs(msgspec.Struct):
    """A sentence, and those that are compared with it."""

    source_sentence: str
    sentences: Annotated[list[str], NOT_EMPTY]


class SimilarityParameters(CuttingRequest, kw_only=True):
    """Of `/similarity`."""

    prompt_name: str | None = None


class SimilarityRequest(TeiRequest, kw_only=True):
    """What `/similarity` takes."""

    inputs: SimilarityInputs
    parameters: SimilarityParameters | None = None


class TokenizeRequest(TeiRequest, kw_only=True):
    """What `/tokenize` takes."""

    inputs: str | Annotated[list[str], NOT_EMPTY]
    add_special_tokens: bool = True
    prompt_name: str | None = None


class DecodeRequest(TeiRequest, kw_only=True):
    """What `/decode` takes."""

    ids: Annotated[list[Id | list[Id]], _IDS]
    skip_special_tokens: bool = True


class SparseValue(msgspec.Struct):
    """An entry of a sparse vector."""

    index: int
    value: float


class Rank(msgspec.Struct, omit_defaults=True):
    """A text that was compared with the query."""

    index: int
    score: float
    text: str | None = None


class Prediction(msgspec.Struct):
    """How well a label fits."""

    score: float
    label: str


class SimpleToken(msgspec.Struct):
    """A token, and where it stands in the UTF-8 of its text; a special one stands nowhere."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


class EmbeddingModel(msgspec.Struct):
    """Of a model for vectors: how they come from hidden states."""

    pooling: str


class ClassifierModel(msgspec.Struct):
    """Of a reranker: the name of its score."""

    id2label: dict[str, str]
    label2id: dict[str, int]


class ModelType(msgspec.Struct, omit_defaults=True):
    """What a model is: one of these."""

    embedding: EmbeddingModel | None = None
    reranker: ClassifierModel | None = None


class InfoAnswer(msgspec.Struct, kw_only=True):
    """What `/info` says of one model."""

    model_id: str
    model_sha: str | None
    model_dtype: str
    model_fingerprint: str
    served_model_name: str
    model_type: ModelType
    max_concurrent_requests: int | None
    max_input_length: int | None
    max_batch_tokens: int
    max_batch_requests: int | None
    max_client_batch_size: int
    auto_truncate: bool
    tokenization_workers: int
    version: str
    sha: str | None = None
    docker_label: str | None = None
