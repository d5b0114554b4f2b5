"""Local embedding models behind `async for`: batched across callers, in order, with backpressure.

```python
async with TextEmbedding("BAAI/bge-small-en-v1.5") as model:
    async for vector in model.embed(documents):
        ...
```
"""

# The layout. A text goes down the parent's line, then down the worker's; its result comes back to the window.
#
#   parent  caller → embedders/text → roles → base → stream → feeding → embedders/intake → window
#                  → reuse/deduplication → engine/supervisor → dispatch → scheduler → worker
#   worker  engine/child → encoders/dense (a module per family) → tokenization → text_graph → runtime/onnx
#                  → encoders/pooling → projection → postprocess
#
#   errors, options, checks, migration      what may go wrong; the keywords, their checks, their names elsewhere
#   stream, feeding, window                 the handle; the tasks that read ahead; what is read ahead, and its order
#   results, scoring, muvera                what comes out, and what may be done with it
#   bars, observing                         how far a stream is, in numbers or a bar; what observers hear of calls
#   readers, sources, checkpoint, journal   files as sources; how far an ingest is, and what a kill leaves
#   sync, any_loop                          the seven classes without an event loop; a model's face for any loop
#   testing, faking                         models without weights for a program's tests; whether they are switched on
#   shared, background, remote              one engine for many; the loop it lives on; the way to a loop from elsewhere
#   files, repo_files, http, wakeup         files whole or not at all; a stranger's files; httpx; threads and the loop
#   __main__, _pyinstaller                  the shell's way in; packed programs
#   cli/        commands, model_options, output   the group of all; options of those that open models; what they print
#               download_command, models_command, serve_command, cache_command, doctor_command, bench_command
#               embed_command, embedding_run, draft, record_files, vector_files   records in; their vectors into a file
#               rerank_command, search_command, vector_index, ranking   what is nearest; in what; and how it is shown
#               stored, checkup, measuring, accuracy   what the caches hold; what doctor looks at; what bench measures
#               sample_inputs, charts, log_lines, http_server, unix_socket   for bench: inputs, figures; and for serve
#   embedders/  text, sparse, late_interaction, hybrid, image, multimodal, cross_encoder: the seven classes
#               base, roles, intake         what they share; chunks: long documents, in pieces
#   loading/    load, locate, made_graphs   from a name to what a worker needs: files, graphs; fake_loading: without
#   reuse/      deduplication, keeper       nothing computed twice: equal inputs, and what a cache has
#               vector_cache, cache_file, keys, packing, fingerprint   in a file; under what; as bytes; of which model
#   images/     inputs, urls, fetch_turns, connecting, decode, image_limits, preprocess
#   engine/     dispatch, scheduler, slot, model   decisions: no await, no clock, no process
#               supervisor, worker, child   tasks; the parent's end of a worker; the worker's
#               pool, lifetime              the public WorkerPool; opening and closing
#               spawn, fork_server, frozen  how processes start; cores, cgroups: how many; niceness: who makes way
#   encoders/   encoder, registry, settings the seam; which module serves a model, and what a model says to it
#               dense, static, colbert, one_pass, colpali, vision, reranker, sparse_graph, splade, bm25, bm42, minicoil
#               causal_reranker, pair_prompts, chat_template   language models that rerank; what they read; comparison
#               hashed, text_graph, run_cost, graph_inputs, graph_output, pooling, projection, postprocess, finite
#               tokenization, tokenizer_files, long_texts, token_pooling, word_table, word_pieces, stemming, batch
#               chunking, sentences         where a document is cut, and what goes through the model together
#   runtime/    session, memory             the seam; onnx, providers, openvino: implementations; onnx_graph, onnx_file
#               prepared, chunked_attention, digests, verdicts   once for all; loadable_path, safetensors, torch_file
#   catalogue/  spec, lookup                models as data
#               pipeline, described, sentence_modules, onnx_choice, limits, cpu   read from a repo's own files
#               reranker_repos, sparse_repos, late_interaction_repos, hybrid_repos: by family
#   hub/        api, access, model_files, repo, listing; client, hops, retry, addresses
#               download, partial, pace, verify, progress, archive, cache, locks
#   export/     graph_cache, architectures  built once; which is which
#               bert_like, deberta, rotary_bert, modernbert, decoders, t5: a module for architectures that are alike
#               construction, blocks, attention, rotary, heads, onnx_builder   what they are built of; objections
#               answers, int8_graph, foreign_int8, quantized   what a language model is asked; graphs in 8 bits
#   server/     app, service, served        models behind HTTP; what its handlers share; which model serves a request
#               endpoint, http_connection   a route from request to answer; what a client may take before
#               openai_dialect, tei_dialect, tei_bodies, cohere_dialect, jina_dialect: the interfaces that clients know
#               computing                   what several of them ask of a model; sent_images, vectors: in and out
#               model_facts, token_lists    what a model's files say beside; refusals, request_limits, openapi_document
#               meter, monitoring, page     what became of requests; metrics; the page; foreign_pages: for whom not
#   integrations/  a module per framework, store or tool: asgi, celery, chroma, haystack, lancedb, langchain, ray
#               langchain_qdrant, llama_index, llama_index_qdrant, opentelemetry, prometheus, pydantic_ai, qdrant
#
# Arrows point downwards: embedders → stream → engine → encoders → runtime; embedders → catalogue, hub, export.
# Public are the names below and the modules errors, hub, observing, readers, server, sync, testing, integrations.

import sys
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asyncembed.bars import StreamProgress
    from asyncembed.catalogue.spec import (
        ArchiveOrigin,
        CacheFolderOrigin,
        Family,
        HubOrigin,
        LocalOrigin,
        ModelSpec,
        Origin,
        Pooling,
    )
    from asyncembed.checkpoint import Checkpoint
    from asyncembed.embedders.base import (
        CallKeywords,
        ModelName,
        PriorityName,
        ReturningCall,
        StreamCall,
        StreamKeywords,
    )
    from asyncembed.embedders.chunks import ChunkCall, ChunkReturningCall, ChunkStreamCall, ChunkStreamKeywords
    from asyncembed.embedders.cross_encoder import (
        RerankKeywords,
        RerankReturningCall,
        RerankStreamCall,
        TextCrossEncoder,
    )
    from asyncembed.embedders.hybrid import (
        HybridCall,
        HybridKeywords,
        HybridReturningCall,
        HybridStreamCall,
        HybridStreamKeywords,
        HybridTextEmbedding,
    )
    from asyncembed.embedders.image import ImageEmbedder, ImageEmbedding, ImageKeywords, ImageVectorKeywords
    from asyncembed.embedders.late_interaction import LateInteractionKeywords, LateInteractionTextEmbedding
    from asyncembed.embedders.multimodal import LateInteractionMultimodalEmbedding, MultimodalKeywords
    from asyncembed.embedders.sparse import SparseTextEmbedding
    from asyncembed.embedders.text import (
        TextCall,
        TextEmbedding,
        TextKeywords,
        TextReturningCall,
        TextStreamCall,
        TextStreamKeywords,
    )
    from asyncembed.encoders.encoder import Call, Encoded, Encoder, EncoderConfig, ModelInfo
    from asyncembed.encoders.stemming import Stemmer
    from asyncembed.engine.model import Stats
    from asyncembed.engine.pool import PoolKeywords, WorkerPool
    from asyncembed.feeding import ErrorHandler, OnError, Source
    from asyncembed.hub.model_files import download
    from asyncembed.images.inputs import ImageInput
    from asyncembed.muvera import Muvera
    from asyncembed.options import OptionKeywords, Options
    from asyncembed.results import (
        Chunk,
        Counted,
        CountedBatch,
        HybridBatch,
        HybridEmbedding,
        HybridOutput,
        SparseEmbedding,
    )
    from asyncembed.reuse.cache_file import VectorCacheFile
    from asyncembed.reuse.vector_cache import VectorCache
    from asyncembed.runtime.session import Device, Runtime, SessionOptions
    from asyncembed.scoring import cosine, hybrid_scores, maxsim, maxsim_scores, sparse_scores, top_k
    from asyncembed.stream import BatchStream, EmbeddingStream, ReturningStream

__version__ = "0.2.0.dev0"

__all__ = [
    "ArchiveOrigin",
    "BatchStream",
    "CacheFolderOrigin",
    "Call",
    "CallKeywords",
    "Checkpoint",
    "Chunk",
    "ChunkCall",
    "ChunkReturningCall",
    "ChunkStreamCall",
    "ChunkStreamKeywords",
    "Counted",
    "CountedBatch",
    "Device",
    "EmbeddingStream",
    "Encoded",
    "Encoder",
    "EncoderConfig",
    "ErrorHandler",
    "Family",
    "HubOrigin",
    "HybridBatch",
    "HybridCall",
    "HybridEmbedding",
    "HybridKeywords",
    "HybridOutput",
    "HybridReturningCall",
    "HybridStreamCall",
    "HybridStreamKeywords",
    "HybridTextEmbedding",
    "ImageEmbedder",
    "ImageEmbedding",
    "ImageInput",
    "ImageKeywords",
    "ImageVectorKeywords",
    "LateInteractionKeywords",
    "LateInteractionMultimodalEmbedding",
    "LateInteractionTextEmbedding",
    "LocalOrigin",
    "ModelInfo",
    "ModelName",
    "ModelSpec",
    "MultimodalKeywords",
    "Muvera",
    "OnError",
    "OptionKeywords",
    "Options",
    "Origin",
    "PoolKeywords",
    "Pooling",
    "PriorityName",
    "RerankKeywords",
    "RerankReturningCall",
    "RerankStreamCall",
    "ReturningCall",
    "ReturningStream",
    "Runtime",
    "SessionOptions",
    "Source",
    "SparseEmbedding",
    "SparseTextEmbedding",
    "Stats",
    "Stemmer",
    "StreamCall",
    "StreamKeywords",
    "StreamProgress",
    "TextCall",
    "TextCrossEncoder",
    "TextEmbedding",
    "TextKeywords",
    "TextReturningCall",
    "TextStreamCall",
    "TextStreamKeywords",
    "VectorCache",
    "VectorCacheFile",
    "WorkerPool",
    "cosine",
    "download",
    "hybrid_scores",
    "maxsim",
    "maxsim_scores",
    "sparse_scores",
    "top_k",
]

# Worker processes import this package too: nothing is loaded before it is used.
_HOMES = {
    "ArchiveOrigin": "asyncembed.catalogue.spec",
    "BatchStream": "asyncembed.stream",
    "CacheFolderOrigin": "asyncembed.catalogue.spec",
    "Call": "asyncembed.encoders.encoder",
    "CallKeywords": "asyncembed.embedders.base",
    "Checkpoint": "asyncembed.checkpoint",
    "Chunk": "asyncembed.results",
    "ChunkCall": "asyncembed.embedders.chunks",
    "ChunkReturningCall": "asyncembed.embedders.chunks",
    "ChunkStreamCall": "asyncembed.embedders.chunks",
    "ChunkStreamKeywords": "asyncembed.embedders.chunks",
    "Counted": "asyncembed.results",
    "CountedBatch": "asyncembed.results",
    "Device": "asyncembed.runtime.session",
    "EmbeddingStream": "asyncembed.stream",
    "Encoded": "asyncembed.encoders.encoder",
    "Encoder": "asyncembed.encoders.encoder",
    "EncoderConfig": "asyncembed.encoders.encoder",
    "ErrorHandler": "asyncembed.feeding",
    "Family": "asyncembed.catalogue.spec",
    "HubOrigin": "asyncembed.catalogue.spec",
    "HybridBatch": "asyncembed.results",
    "HybridCall": "asyncembed.embedders.hybrid",
    "HybridEmbedding": "asyncembed.results",
    "HybridKeywords": "asyncembed.embedders.hybrid",
    "HybridOutput": "asyncembed.results",
    "HybridReturningCall": "asyncembed.embedders.hybrid",
    "HybridStreamCall": "asyncembed.embedders.hybrid",
    "HybridStreamKeywords": "asyncembed.embedders.hybrid",
    "HybridTextEmbedding": "asyncembed.embedders.hybrid",
    "ImageEmbedder": "asyncembed.embedders.image",
    "ImageEmbedding": "asyncembed.embedders.image",
    "ImageInput": "asyncembed.images.inputs",
    "ImageKeywords": "asyncembed.embedders.image",
    "ImageVectorKeywords": "asyncembed.embedders.image",
    "LateInteractionKeywords": "asyncembed.embedders.late_interaction",
    "LateInteractionMultimodalEmbedding": "asyncembed.embedders.multimodal",
    "LateInteractionTextEmbedding": "asyncembed.embedders.late_interaction",
    "LocalOrigin": "asyncembed.catalogue.spec",
    "ModelInfo": "asyncembed.encoders.encoder",
    "ModelName": "asyncembed.embedders.base",
    "ModelSpec": "asyncembed.catalogue.spec",
    "MultimodalKeywords": "asyncembed.embedders.multimodal",
    "Muvera": "asyncembed.muvera",
    "OnError": "asyncembed.feeding",
    "OptionKeywords": "asyncembed.options",
    "Options": "asyncembed.options",
    "Origin": "asyncembed.catalogue.spec",
    "PoolKeywords": "asyncembed.engine.pool",
    "Pooling": "asyncembed.catalogue.spec",
    "PriorityName": "asyncembed.embedders.base",
    "RerankKeywords": "asyncembed.embedders.cross_encoder",
    "RerankReturningCall": "asyncembed.embedders.cross_encoder",
    "RerankStreamCall": "asyncembed.embedders.cross_encoder",
    "ReturningCall": "asyncembed.embedders.base",
    "ReturningStream": "asyncembed.stream",
    "Runtime": "asyncembed.runtime.session",
    "SessionOptions": "asyncembed.runtime.session",
    "Source": "asyncembed.feeding",
    "SparseEmbedding": "asyncembed.results",
    "SparseTextEmbedding": "asyncembed.embedders.sparse",
    "Stats": "asyncembed.engine.model",
    "Stemmer": "asyncembed.encoders.stemming",
    "StreamCall": "asyncembed.embedders.base",
    "StreamKeywords": "asyncembed.embedders.base",
    "StreamProgress": "asyncembed.bars",
    "TextCall": "asyncembed.embedders.text",
    "TextCrossEncoder": "asyncembed.embedders.cross_encoder",
    "TextEmbedding": "asyncembed.embedders.text",
    "TextKeywords": "asyncembed.embedders.text",
    "TextReturningCall": "asyncembed.embedders.text",
    "TextStreamCall": "asyncembed.embedders.text",
    "TextStreamKeywords": "asyncembed.embedders.text",
    "VectorCache": "asyncembed.reuse.vector_cache",
    "VectorCacheFile": "asyncembed.reuse.cache_file",
    "WorkerPool": "asyncembed.engine.pool",
    "cosine": "asyncembed.scoring",
    "download": "asyncembed.hub.model_files",
    "hybrid_scores": "asyncembed.scoring",
    "maxsim": "asyncembed.scoring",
    "maxsim_scores": "asyncembed.scoring",
    "sparse_scores": "asyncembed.scoring",
    "top_k": "asyncembed.scoring",
}


if not TYPE_CHECKING:  # type checkers know all names there are

    def __getattr__(name: str) -> object:
        if name in _HOMES:
            return getattr(import_module(_HOMES[name]), name)
        from asyncembed.migration import no_such_name

        raise no_such_name(__name__, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


if getattr(sys, "frozen", False):
    from asyncembed.engine.frozen import become_child

    become_child()
