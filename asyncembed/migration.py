"""What the names of other libraries are called here: data, for the errors that refuse them.

Only what is refused is looked up, so a name that means something here too (`device` in a constructor) is answered where
it means nothing (in a call).
"""

from collections.abc import Mapping

_PROMPTS = (
    "TextEmbedding puts prompts before texts (prompts= of its constructor, prompt= and prompt_name= of its calls); "
    "elsewhere put them there yourself, as in key=lambda text: prompt + text"
)
_PLAIN_ARRAYS = "leave it out: results are numpy arrays"
_BY_POSITION = "what is to be computed comes first, without a keyword"
_OF_THE_REPO = (
    "leave it out: what the repo's files say holds; pooling=, normalize=, max_length= and onnx_file= change it"
)
_MODEL_ARGUMENTS = "onnx_file= or precision= for the file, device= or providers= for where it runs, dtype= for results"
_TRAINING = "leave it out: models are neither trained nor saved here"
_WORKERS = "workers= of the constructor: its processes serve every call"
_COMPARE = (
    "`cosine` and `top_k` compare vectors, `sparse_scores` those of sparse models, `maxsim_scores` matrices of late "
    "interaction"
)
_DEVICE = 'device= of the constructor ("auto", "cuda", "cpu") and device_ids='
_ACTIVATION = 'activation="auto" (as the repo says, like sentence-transformers), "sigmoid" or "none"'
_TRUNCATE_DIM = "TextEmbedding and ImageEmbedding cut vectors: truncate_dim= of their constructors"
_LONG = (
    'long="truncate" cuts an input over the length limit, as by default; long="error" refuses it; of '
    'TextEmbedding, long="mean" gives the mean of its windows'
)
_OUTPUTS = "HybridTextEmbedding gives several results from one pass: outputs= says which"

KEYWORDS: Mapping[str, str] = {
    # fastembed
    "cuda": 'device="cuda", or device="cpu"',
    "parallel": _WORKERS,
    "batch_size": (
        "batches form by themselves; max_batch_size= and max_batch_tokens= of the constructor bound them, and "
        "stream.batches(n) gives n results at a time"
    ),
    "lazy_load": "lazy=True: the first call loads the model; without it, opening does",
    "device_id": "device_ids=[...] of the constructor, which deals devices out to the workers",
    "specific_model_path": "model_path=, or the directory in the place of the name",
    "enable_cpu_mem_arena": "leave it out: it is on; max_batch_tokens= bounds what it holds",
    "mmap": "leave it out: weights are mapped into memory where the runtime can",
    "task_id": "task=, which takes its name or number",
    **dict.fromkeys(
        ["documents", "query", "queries", "passages", "texts", "text", "images", "pairs", "inputs", "sentences"],
        _BY_POSITION,
    ),
    # sentence-transformers: constructors
    "model_name_or_path": "model_name=, or the name first, without a keyword",
    "model": "model_name=, or the name first, without a keyword",
    "modules": "leave it out: a model is read from its files; a ModelSpec describes one that says too little",
    "device": _DEVICE,
    "prompts": _PROMPTS,
    "default_prompt_name": "prompt_name= or prompt= of each call; a default that the repo declares is put by itself",
    "cache_folder": "cache_dir=",
    "trust_remote_code": "leave it out: no code of a repo is ever run",
    "use_auth_token": "token=",
    **dict.fromkeys(("model_kwargs", "model_args", "automodel_args"), _MODEL_ARGUMENTS),
    **dict.fromkeys(
        ("processor_kwargs", "tokenizer_kwargs", "tokenizer_args"),
        "max_length= for the length limit; the rest is read from the repo's files",
    ),
    **dict.fromkeys(("config_kwargs", "config_args"), _OF_THE_REPO),
    **dict.fromkeys(("classifier_dropout", "model_card_data"), _TRAINING),
    "backend": 'leave it out: every model is run by ONNX Runtime, or with runtime="openvino" by OpenVINO',
    "similarity_fn_name": f"leave it out: {_COMPARE}",
    "truncate_dim": _TRUNCATE_DIM,
    "max_active_dims": "leave it out, and keep the largest entries: vector.values.argsort()[-n:]",
    "num_labels": "leave it out: a reranker gives one score per pair",
    "max_seq_length": "max_length= of the constructor",
    "truncate": _LONG,
    "truncation": _LONG,
    **dict.fromkeys(("activation_fn", "activation_fct", "default_activation_function", "apply_softmax"), _ACTIVATION),
    "keep_in_fp32_modules": "leave it out: precision= or onnx_file= chooses a file as a whole",
    # sentence-transformers: encode, predict and rank
    "prompt": _PROMPTS,
    "prompt_name": _PROMPTS,
    "task": "TextEmbedding has tasks, where the model has; queries and passages have methods of their own everywhere",
    "show_progress_bar": "progress=True of a call that gives a stream draws a bar; stream.progress() has the numbers",
    "output_value": "TextEmbedding gives a vector per text; LateInteractionTextEmbedding one per token",
    "precision": (
        'output="int8" or output="binary" of TextEmbedding\'s constructor makes vectors small; precision= of any '
        "constructor chooses one of a repo's model files"
    ),
    "convert_to_numpy": _PLAIN_ARRAYS,
    "convert_to_tensor": f"{_PLAIN_ARRAYS}, of which torch.from_numpy makes tensors",
    "convert_to_sparse_tensor": "leave it out: indices and values of a sparse vector are numpy arrays",
    "save_to_cpu": _PLAIN_ARRAYS,
    "normalize_embeddings": "normalize= of the constructors of TextEmbedding and ImageEmbedding",
    "pool": "pool= of the constructor, which takes a WorkerPool; without one the embedder has workers of its own",
    "chunk_size": "leave it out: work is dealt out batch by batch; max_in_flight= bounds how far a stream reads ahead",
    "token_pooling": "leave it out: a matrix has a row per token; Muvera makes one vector of it",
    "target_devices": "device_ids=[...] of the constructor, which deals devices out to the workers",
    "return_documents": "leave it out: `rank` gives positions, and documents[position] the text",
    "top_k": "`rank(query, documents, top_k=...)` gives the best; a stream gives all scores, in input order",
    "num_workers": _WORKERS,
    # FlagEmbedding
    **dict.fromkeys(("return_dense", "return_sparse", "return_colbert_vecs", "outputs"), _OUTPUTS),
    "use_fp16": 'precision="fp16" for the model, dtype="float16" for the vectors',
    "query_max_length": "max_length= of the constructor, for all texts",
    "passage_max_length": "max_length= of the constructor, for all texts",
    # What is said to a call here, and to a constructor elsewhere.
    "key": "the calls take it, as in embed(records, key=...)",
    "on_error": "the calls take it, as in embed(texts, on_error=...)",
    "priority": "the calls that give a stream take it, as in embed(texts, priority=...)",
    "ordered": "the calls that give a stream take it, as in embed(texts, ordered=...)",
}
"""By keyword: what to use instead."""

_ENCODE = "`embed(texts)` is a stream, for `async for` or `.collect()`; `await embed_documents(texts)` is for a few"

ATTRIBUTES: Mapping[str, str] = {
    "encode": _ENCODE,
    "encode_query": "`await embed_query(text)`, or `query_embed(texts)` for many",
    "encode_document": "`await embed_documents(texts)`, or `passage_embed(texts)` for many",
    **dict.fromkeys(("encode_multi_process", "start_multi_process_pool", "stop_multi_process_pool"), _WORKERS),
    **dict.fromkeys(("rank", "rerank", "rerank_pairs"), "TextCrossEncoder has it"),
    "predict": "`rerank_pairs(pairs)` is a stream of scores; TextCrossEncoder has it",
    **dict.fromkeys(("similarity", "similarity_pairwise", "similarity_fn_name"), _COMPARE),
    "prompts": "TextEmbedding has them: prompts= of its constructor",
    "default_prompt_name": "prompts= of TextEmbedding's constructor, prompt_name= or prompt= of each call",
    "truncate_dim": _TRUNCATE_DIM,
    "decode": "indices are ids of the model's tokenizer; `tokenizers.Tokenizer` makes words of them",
    "tokenize": "texts are tokenized in the workers; `await token_count(texts)` counts",
    "tokenizer": "texts are tokenized in the workers; `await token_count(texts)` counts",
    "processor": "inputs are prepared in the workers",
    "preprocess": "inputs are prepared in the workers",
    "max_seq_length": "`max_length`; max_length= of the constructor sets it",
    "get_max_seq_length": "`max_length`",
    "get_sentence_embedding_dimension": "`embedding_size`",
    "get_embedding_dimension": "`embedding_size`",
    "truncate_sentence_embeddings": _TRUNCATE_DIM,
    "truncate_embeddings": _TRUNCATE_DIM,
    **dict.fromkeys(("device", "to", "cpu", "cuda"), _DEVICE),
    "half": 'precision="fp16" for the model, dtype="float16" for the vectors',
    "eval": "leave it out: models only compute here",
    "compile": "leave it out: ONNX Runtime optimises the graph when it loads it",
    **dict.fromkeys(("save", "save_pretrained", "save_to_hub", "push_to_hub", "fit", "evaluate"), _TRAINING),
    "load_onnx_model": "`async with` or `await model.open()` loads the model",
    "raw_embed": "`embed(texts)`",
    "model_description": "`list_supported_models()`",
}
"""By attribute or method: what to use instead."""


NAMES: Mapping[str, str] = {
    # sentence-transformers
    "SentenceTransformer": "TextEmbedding, or ImageEmbedding for CLIP's images",
    "CrossEncoder": "TextCrossEncoder",
    "SparseEncoder": "SparseTextEmbedding",
    "MultiVectorEncoder": "LateInteractionTextEmbedding",
    "cos_sim": "cosine",
    "semantic_search": "top_k",
    "util": "`cosine`, which compares vectors, and `top_k`, which finds the nearest",
    # fastembed
    **dict.fromkeys(("DefaultEmbedding", "FlagEmbedding", "JinaEmbedding"), "TextEmbedding"),
    "PoolingType": 'a text in its place ("mean", "cls")',
    "ModelSource": "the name of the repo in its place, or HubOrigin",
    # FlagEmbedding, PyLate, model2vec, infinity
    **dict.fromkeys(("FlagModel", "FlagAutoModel", "StaticModel", "AsyncEmbeddingEngine"), "TextEmbedding"),
    "BGEM3FlagModel": "HybridTextEmbedding",
    **dict.fromkeys(("FlagReranker", "FlagLLMReranker", "FlagAutoReranker"), "TextCrossEncoder"),
    "ColBERT": "LateInteractionTextEmbedding",
}
"""By what programs import: what to import instead."""


def no_such_name(module: str, name: str) -> Exception:
    """What a module raises for a name that it does not have.

    For those of other libraries that is an `ImportError`: of an `AttributeError` nothing would be left in what
    `from ... import` raises.
    """
    if name in NAMES:
        return ImportError(f"cannot import name {name!r} from {module!r}: here it is {NAMES[name]}", name=module)
    return AttributeError(f"module {module!r} has no attribute {name!r}")


def refuse_assignment(model: object, name: str, hints: Mapping[str, str]) -> None:
    """Raise `AttributeError` for what other libraries' models are told by an assignment, as `max_seq_length` is.

    A subclass of somebody else may call its own attributes what it likes.
    """
    kind = type(model)
    if name in hints and kind.__module__.startswith("asyncembed.") and not hasattr(kind, name):
        message = f"{kind.__name__} takes no {name!r} by an assignment: {hints[name]}"
        raise AttributeError(message, name=name, obj=model)
