"""Sparse text embeddings: SPLADE, BM25, BM42 and miniCOIL behind one class."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal, Unpack, get_args

from asyncembed.catalogue.lookup import register
from asyncembed.catalogue.spec import Family
from asyncembed.checks import (
    check_bool,
    check_choice,
    check_count,
    check_long,
    check_number,
    check_text,
    check_words,
    checks_keywords,
)
from asyncembed.embedders.base import ModelName, Opened, StreamKeywords
from asyncembed.embedders.intake import as_source
from asyncembed.embedders.roles import TEXTS, TextRoles, role_prompt_of_two
from asyncembed.encoders.encoder import Call, Mode
from asyncembed.errors import OptionError, StateError
from asyncembed.feeding import Source
from asyncembed.options import OptionKeywords
from asyncembed.results import SPARSE, Assembly, SparseEmbedding

if TYPE_CHECKING:
    from asyncembed.encoders.stemming import Stemmer

CustomKind = Literal["splade", "inference_free_splade"]


class SparseKeywords(OptionKeywords, total=False):
    """The keywords, for signatures; `SparseTextEmbedding` documents them."""

    k: float | None
    b: float | None
    avg_len: float | None
    language: str | None
    token_max_length: int | None
    disable_stemmer: bool | None
    stemmer: "Stemmer | None"
    stopwords: Iterable[str] | None
    alpha: float | None
    max_active_dims: int | None
    pruning: float | None
    long: Literal["truncate", "error"]


class SparseTextEmbedding(TextRoles[SparseEmbedding, list[SparseEmbedding]]):
    """Sparse text embeddings: for each text the terms that count, and how much.

    ```python
    async with SparseTextEmbedding("Qdrant/bm25") as model:
        async for vector in model.embed(documents):
            index(vector.indices, vector.values)
        query = await model.embed_query("what is backpressure?")
    ```

    Queries have vectors of their own: `query_embed` and `embed_query` for them, `embed` for documents. BM25, BM42 and
    miniCOIL leave the rarity of a term to the database, whose index is to weigh with the IDF.

    A repo that sentence-transformers has saved as a `SparseEncoder` says itself how it is computed: SPLADE, or a router
    with a table of weights for queries. The prompts that it declares are put before texts.

    BM25 needs no ONNX runtime. BM42 and inference-free SPLADE load their graph with the first document, so that workers
    which only see queries do without it.

    Args:
        model_name: A name of the catalogue, a repo on the hub, a local directory, or a `ModelSpec`. BM25 with
            `stopwords` or `disable_stemmer` needs no files at all.
        k: BM25, miniCOIL: how late further occurrences of a term stop to count (1.2).
        b: BM25, miniCOIL: how much a long document is discounted, 0 to 1 (0.75).
        avg_len: BM25, miniCOIL: terms of an average document of the collection (256; miniCOIL 150).
        language: BM25: decides the stemmer and the stop words: "arabic", "danish", "dutch", "english" (unless said
            otherwise), "finnish", "french", "german", "greek", "hungarian", "italian", "norwegian", "portuguese",
            "romanian", "russian", "spanish", "swedish", "tamil" or "turkish".
        token_max_length: BM25: a word of more characters does not count (40).
        disable_stemmer: BM25: take words as they are; without `stopwords`, no stop words either.
        stemmer: BM25: an object with the method `stem_word(word) -> stem`; an empty stem drops the word. It is sent to
            the workers by pickle.
        stopwords: BM25: words that do not count, instead of the language's; empty: all do.
        alpha: BM42: exponent of a word's weight (0.5).
        max_active_dims: SPLADE: most entries of a vector, of a document or a query; the largest stay. What the model's
            files say unless given, which is mostly no limit.
        pruning: SPLADE: entries below this share of a vector's largest are left out, 0 to 1 (as OpenSearch's
            "max_ratio"; with its models, 0.1 leaves about half).
        long: What becomes of an input over the length limit: "truncate" cuts it there, "error" makes it an
            `InputError`. BM25 has no limit.
        options: The keywords that all classes share (`workers`, `device`, `pool`, ...): see `asyncembed.Options`.

    Raises:
        OptionError: A keyword or value that cannot work; on opening, one that the model does not have.
    """

    family: ClassVar[Family] = "sparse"

    @checks_keywords
    def __init__(
        self,
        model_name: ModelName,
        *,
        k: float | None = None,
        b: float | None = None,
        avg_len: float | None = None,
        language: str | None = None,
        token_max_length: int | None = None,
        disable_stemmer: bool | None = None,
        stemmer: "Stemmer | None" = None,
        stopwords: Iterable[str] | None = None,
        alpha: float | None = None,
        max_active_dims: int | None = None,
        pruning: float | None = None,
        long: Literal["truncate", "error"] = "truncate",
        **options: Unpack[OptionKeywords],
    ) -> None:
        super().__init__(model_name, **options)
        check_long(long)
        words = check_words("stopwords", stopwords)
        if type(stemmer).__module__ == "__main__" and self._options.workers != 0:
            raise OptionError(
                "the class of stemmer= is defined in the program's main module, which workers do not import: "
                "move it into a module of its own, or take workers=0"
            )
        given = {
            "k": k, "b": b, "avg_len": avg_len, "language": language, "token_max_length": token_max_length,
            "disable_stemmer": disable_stemmer, "stemmer": stemmer, "alpha": alpha,
            "stopwords": words, "max_active_dims": max_active_dims, "pruning": pruning,
        }  # fmt: skip
        _check(given)
        self._given = {name: value for name, value in given.items() if value is not None}
        self._long = long

    # ---------------------------------------------------------------- about texts and models

    @property
    def requires_idf(self) -> bool:
        """Whether its vectors leave the rarity of a term to the database: BM25, BM42, miniCOIL.

        Raises:
            StateError: The model is neither catalogued nor given as a spec, so this is known only while it is open.
        """
        opened = self._opened
        spec = self._known_spec() if opened is None or opened.loaded is None else opened.spec
        if spec is None:
            raise StateError(f"whether {self.model_name} requires the IDF is known once it is open")
        return bool(spec.settings.get("requires_idf"))

    @checks_keywords
    async def token_count(self, texts: Source[str], *, truncated: bool = True) -> int:
        """How many tokens the texts have together, special tokens included; for BM25 words, also those left out.

        As `embed` computes them, each cut at `max_length`; with `truncated=False` all that the whole texts have.
        """
        opened = await self._turn()
        asked = replace(self._call(opened, "count"), truncated=truncated)
        return await self._count(opened, as_source(texts), TEXTS, asked)

    @classmethod
    def add_custom_model(
        cls,
        model: str,
        sources: object,
        kind: CustomKind = "splade",
        model_file: str = "model.onnx",
        description: str = "",
        license: str = "",  # noqa: A002 (the name that fastembed's users know)
        size_in_gb: float = 0.0,
        additional_files: Sequence[str] | None = None,
    ) -> None:
        """Make a SPLADE model known by name, for this process and the workers it starts.

        Args:
            model: Its name; must not be taken.
            sources: Where its files come from: a hub repo ("organisation/name"), the URL of a `.tar.gz`, a directory
                as a `Path`, an `asyncembed.Origin`, any object with the attributes `hf` and `url`, or several of these.
            kind: "splade", whose graph computes queries and documents alike; "inference_free_splade", whose queries are
                looked up in the repo's `idf.json`, an object of tokens and weights.
            model_file: Path of the ONNX graph in the repo; its first output are logits (batch, tokens, words).
            description: For people.
            license: For people.
            size_in_gb: For people.
            additional_files: Further files that must be there, as paths in the repo.

        Raises:
            OptionError: The name is taken, there is no source, or no such kind.
        """
        check_choice("kind", kind, get_args(CustomKind))
        spec = cls._custom_spec(model, kind, sources, model_file, additional_files, description, license, size_in_gb)
        if kind == "inference_free_splade":
            spec = replace(spec, additional_files=tuple(dict.fromkeys([*spec.additional_files, "idf.json"])))
        register(spec)

    # ---------------------------------------------------------------- parts

    def _settings(self) -> Mapping[str, object]:
        return self._given

    def _wanted(self) -> ModelName:
        spec = self._known_spec()
        if spec is not None and spec.encoder == "bm25" and {"stopwords", "disable_stemmer"} & self._given.keys():
            # All that its files hold are stop words.
            return replace(spec, sources=(), additional_files=())
        return self._model_name

    def _call(self, opened: Opened, mode: Mode, asked: StreamKeywords | None = None) -> Call:  # noqa: ARG002 (of one kind)
        spec = opened.spec
        # Catalogued models are computed as the reference computes them.
        prompt = None if spec.is_catalogued else role_prompt_of_two(spec.prompts, mode)
        return Call(mode=mode, prompt=prompt, long=self._long)

    def _assembly(self, call: Call) -> Assembly[SparseEmbedding, list[SparseEmbedding]]:  # noqa: ARG002 (of one kind)
        return SPARSE


def _check(given: Mapping[str, object]) -> None:
    check_number("k", given["k"], minimum=0, may_be_none=True)
    check_number("b", given["b"], minimum=0, maximum=1, may_be_none=True)
    check_number("avg_len", given["avg_len"], minimum=1e-9, may_be_none=True)
    check_number("alpha", given["alpha"], minimum=0, may_be_none=True)
    check_number("pruning", given["pruning"], minimum=0, maximum=1, may_be_none=True)
    check_count("max_active_dims", given["max_active_dims"], minimum=1)
    check_count("token_max_length", given["token_max_length"], minimum=1)
    check_bool("disable_stemmer", given["disable_stemmer"], may_be_none=True)
    check_text("language", given["language"])
    stemmer = given["stemmer"]
    if stemmer is not None and not callable(getattr(stemmer, "stem_word", None)):
        raise OptionError(f"stemmer must have a method stem_word(word) that gives the stem; got {stemmer!r}")
