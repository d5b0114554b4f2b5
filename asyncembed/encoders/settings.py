"""What a model's spec may say to its encoder beyond what every spec has: a record for each kind of encoder.

A caller may give some of these, too, as keywords of the public classes: those that are declared by `keyword`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from asyncembed.catalogue.spec import ModelSpec
from asyncembed.checks import check_number
from asyncembed.errors import OptionError, UnsupportedModelError

if TYPE_CHECKING:
    from asyncembed.encoders.stemming import Stemmer
    from asyncembed.results import HybridOutput

SettingsT = TypeVar("SettingsT", bound="Settings")


def keyword(default: Any) -> Any:
    """A field that a caller may give."""
    return field(default=default, metadata={"is_keyword": True})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What all have in common."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphSettings(Settings):
    """Of a model with a graph.

    Attributes:
        output_name: The output that is taken where the graph has it, rather than `spec.graph_output`.
        takes_finished: "any" takes a finished vector (batch, dim) where the graph has one, "named" only where the spec
            names it. Such a vector is neither pooled nor projected.
    """

    output_name: str | None = None
    takes_finished: Literal["any", "named"] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseSettings(GraphSettings):
    """Of a dense text model.

    Attributes:
        lower_case: Whether the letters of a text are lowered before it is tokenized.
        pad_to_limit: Whether every text is padded to the length limit (the graph pools its last position).
        include_prompt: Whether the tokens of a prompt count in the pooling.
        projections: Folders of linear layers between pooling and normalisation, as sentence-transformers has them.
        task_input: The graph's input for the task of a multi-task model.
        tasks: The number of each task.
        query_task, passage_task, default_task: Which of them a call means that names none.
    """

    lower_case: bool = False
    pad_to_limit: bool = False
    include_prompt: bool = True
    projections: tuple[str, ...] = ()
    task_input: str | None = None
    tasks: Mapping[str, int] = field(default_factory=dict)
    query_task: int | None = None
    passage_task: int | None = None
    default_task: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticSettings(Settings):
    """Of a static model.

    Attributes:
        folder: Where the files lie in the repo, if not at its root.
        drop_unknown: Whether unknown tokens are left out of the mean, as model2vec does.
    """

    folder: str = ""
    drop_unknown: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ColbertSettings(GraphSettings):
    """Of a late interaction text model.

    Attributes:
        query_marker_id, document_marker_id: Id put after a text's first token; None: none.
        query_marker, document_marker: The token that this is instead, as it stands in the vocabulary.
        mask_token: What lengthens a short query; None: the tokenizer's mask token, or its end token where it has none.
        query_pad_length: Tokens to which it is lengthened, the marker not included; None: not at all.
        query_mask_attended: Whether the mask tokens are attended to.
        query_max_length: Most tokens of a query, the marker included; None: as many as a document may have.
        reserved_markers: By how many tokens the tokenizer's limit is too high to leave room for the marker.
        skip_punctuation: Whether a document leaves out the vectors of ASCII punctuation.
        skip_padding_id: Whether a document leaves out a pad token that stands in its text.
        skip_words: Tokens of the vocabulary whose vectors a document leaves out.
        skip_unknown: Whether one of these that is not in the vocabulary means the unknown token, as for PyLate.
        skips_in_queries: Whether they are left out of queries, too.
        normalize_queries: Whether queries are scaled to unit length; documents are as `spec.normalize` says.
        lower_case: Whether the letters of a text are lowered before it is tokenized.
        projections: Folders of linear layers on the vectors of the graph, unless it has what they give.
        projection_in_weights: Whether such a layer is the tensor `linear.weight` beside those of the graph instead.
        finishes: Whether the graph must give what the layer would; hidden states are then none of its results.
        pool_factor: How many vectors of a document become one; None: no pooling.
        protected_tokens: How many vectors, from the first, it leaves as they are.
        normalize_pooled: Whether all are scaled to unit length after it.
    """

    query_marker_id: int | None = None
    document_marker_id: int | None = None
    query_marker: str | None = None
    document_marker: str | None = None
    mask_token: str | None = "[MASK]"  # noqa: S105 (of a text)
    query_pad_length: int | None = None
    query_mask_attended: bool = False
    query_max_length: int | None = None
    reserved_markers: int = 0
    skip_punctuation: bool = False
    skip_padding_id: bool = False
    skip_words: tuple[str, ...] = ()
    skip_unknown: bool = False
    skips_in_queries: bool = False
    normalize_queries: bool = False
    lower_case: bool = False
    projections: tuple[str, ...] = ()
    projection_in_weights: bool = False
    finishes: bool = False
    pool_factor: float | None = keyword(None)
    protected_tokens: int = keyword(1)
    normalize_pooled: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class HybridSettings(GraphSettings):
    """Of a model that gives several results for a text.

    Attributes:
        sparse_head, late_interaction_head: Files of linear layers on the hidden states, which give a token's weight and
            its vector; None: what the graph has for it, if it has anything.
        only: The one kind of result that it is used for, by a class that has no other; None: it is a hybrid one.
    """

    sparse_head: str | None = None
    late_interaction_head: str | None = None
    only: "HybridOutput | None" = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreSettings(GraphSettings):
    """Of a reranker.

    Attributes:
        own_activation: What its authors do to its scores: "none", "sigmoid", or something that is not computed.
    """

    # As sentence-transformers has it where a repo names none.
    own_activation: str = "sigmoid"


@dataclass(frozen=True, slots=True, kw_only=True)
class RerankerSettings(ScoreSettings):
    """Of a cross-encoder.

    Attributes:
        column: Which output is the score, for a graph with several.
        prompt: What its repo puts before every query.
    """

    column: int | None = None
    prompt: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CausalRerankerSettings(ScoreSettings):
    """Of a reranker that is a language model.

    Attributes:
        template: What it reads of a pair, as one of `pair_prompts.PROMPTS`; None: as the repo's chat template says.
        yes, no: The tokens, or their ids, whose logits make the score; without `no` it is that of `yes`, and without
            either the graph gives a score.
        instruction: What it is to look for, where a call does not say; None: as the template says.
    """

    template: str | None = None
    yes: int | str | None = "yes"
    no: int | str | None = "no"
    instruction: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReaderSettings(GraphSettings):
    """Of a model that takes images.

    Attributes:
        fast_decode: Decode JPEGs at a reduced scale, well above what the model needs.
        apply_orientation: Turn images as their EXIF tag says.
        max_image_pixels: Refuse larger images; None: those over `MAX_IMAGE_PIXELS`.
    """

    fast_decode: bool = keyword(False)
    apply_orientation: bool = keyword(False)
    max_image_pixels: int | None = keyword(None)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSettings(ReaderSettings):
    """Of a model with one vector per image.

    Attributes:
        flatten: Whether all that the graph gives for an image, of whatever shape, is its vector.
    """

    flatten: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ColPaliSettings(ReaderSettings):
    """Of ColPali.

    Attributes:
        query_prefix_ids: What the first tokens of a query are replaced by.
        query_pad_tokens: How many pad tokens end a query.
        image_token_id, image_tokens: The id that stands for a patch, and how many there are.
        image_suffix_ids: The ids after them.
        blank_image: Channels, height and width of what texts have for an image.
    """

    query_prefix_ids: tuple[int, ...]
    query_pad_tokens: int
    image_token_id: int
    image_tokens: int
    image_suffix_ids: tuple[int, ...]
    blank_image: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ColModernVBertSettings(ReaderSettings):
    """Of ColModernVBERT.

    Attributes:
        query_suffix_token, query_suffix_count: What ends a query, and how often.
        image_seq_len_default: Tokens of a tile, where `processor_config.json` does not say.
        tile: Edge of the stand-in image of texts, where `config.json` does not say.
    """

    query_suffix_token: str
    query_suffix_count: int
    image_seq_len_default: int = 64
    tile: int = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseSettings(GraphSettings):
    """Of a sparse model.

    Attributes:
        requires_idf: Whether the database is to weigh with the IDF.
        vocabulary_size: How many indices there are.
    """

    requires_idf: bool | None = None
    vocabulary_size: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SpladeSettings(SparseSettings):
    """Of SPLADE.

    Attributes:
        folder: Where the files of the language model lie in the repo, if not at its root.
        lower_case: Whether the letters of a text are lowered before it is tokenized.
        word_pooling: What becomes of the weights that a word has at a text's tokens: the largest, or their sum.
        activation: From a logit to a weight: "relu" is ln(1 + relu(logit)), "log1p_relu" ln(1 + that) once more.
        max_active_dims: How many entries a vector has at most, the largest; None: all that are not 0.
        pruning: Entries below this share of a vector's largest are left out; None: none.
    """

    folder: str = ""
    lower_case: bool = False
    word_pooling: Literal["max", "sum"] = "max"
    activation: Literal["relu", "log1p_relu"] = "relu"
    max_active_dims: int | None = keyword(None)
    pruning: float | None = keyword(None)


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceFreeSettings(SpladeSettings):
    """Of inference-free SPLADE.

    Attributes:
        idf_file: The weights of a query's tokens, as a JSON object of tokens.
        query_weights: They as a tensor `weight` in a file of safetensors, by the id of the token, instead.
        query_folder: Where the tokenizer of queries lies, which then puts no special tokens around them; None: queries
            are tokenized as documents are.
        drops_special_tokens: Whether these never count.
    """

    activation: Literal["relu", "log1p_relu"] = "log1p_relu"
    idf_file: str = "idf.json"
    query_weights: str | None = None
    query_folder: str | None = None
    drops_special_tokens: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class TermSettings(SparseSettings):
    """Of a model that counts terms.

    Attributes:
        k, b, avg_len: See `TermFrequency`.
        language: Decides the stemmer.
    """

    k: float = keyword(1.2)
    b: float = keyword(0.75)
    avg_len: float = keyword(256.0)
    language: str = keyword("english")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bm25Settings(TermSettings):
    """Of BM25. Its language decides the list of stop words, too.

    Attributes:
        token_max_length: A word of more characters does not count.
        disable_stemmer: Take words as they are; without `stopwords`, no stop words either.
        stemmer: A stemmer of your own; an instance of an importable class, since it travels to the workers.
        stopwords: Words that do not count, instead of the language's list; empty: all do.
    """

    token_max_length: int = keyword(40)
    disable_stemmer: bool = keyword(False)
    stemmer: "Stemmer | None" = keyword(None)  # noqa: RUF009 (makes a field)
    stopwords: Iterable[str] | None = keyword(None)

    def __post_init__(self) -> None:
        check_number("token_max_length", self.token_max_length, minimum=1)
        if self.disable_stemmer and self.stemmer is not None:
            raise OptionError("give either stemmer= or disable_stemmer=True, not both")
        if isinstance(self.stopwords, str):
            raise OptionError("stopwords must be a collection of words, not one string")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bm42Settings(SparseSettings):
    """Of BM42.

    Attributes:
        alpha: Exponent of a word's weight: below 1 it brings large and small ones closer together.
        language: Decides the stemmer.
    """

    alpha: float = keyword(0.5)
    language: str = keyword("english")

    def __post_init__(self) -> None:
        check_number("alpha", self.alpha, minimum=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class MiniCoilSettings(TermSettings):
    """Of miniCOIL. A stem of more than 40 characters does not count."""

    avg_len: float = keyword(150.0)


def read_settings(kind: type[SettingsT], spec: ModelSpec, given: Mapping[str, object] | None = None) -> SettingsT:
    """What the caller has given, else what the spec says, else the defaults of `kind`.

    Raises:
        OptionError: The caller gives something that this model does not understand; the message names what it does.
        UnsupportedModelError: The spec says something that its encoder does not know, or lacks what that needs.
    """
    keywords = [each.name for each in fields(kind) if each.metadata]
    for name in given or ():
        if name not in keywords:
            accepted = f"only {', '.join(keywords)}" if keywords else "none of its own"
            raise OptionError(f"{spec.name} has no keyword {name!r}: it takes {accepted}")
    for each in fields(kind):
        if each.default is each.default_factory is MISSING and spec.settings.get(each.name) is None:
            raise UnsupportedModelError(f"the spec of {spec.name} lacks the setting {each.name}", model=spec.name)
    if unknown := spec.settings.keys() - {each.name for each in fields(kind)}:
        raise UnsupportedModelError(
            f"the spec of {spec.name} has settings that its encoder {spec.encoder!r} does not know: "
            f"{', '.join(sorted(unknown))}",
            model=spec.name,
        )
    said = {name: tuple(value) if isinstance(value, list) else value for name, value in spec.settings.items()}
    return kind(**{**said, **(given or {})})
