"""One vector per text, from a transformer's graph."""

from dataclasses import replace
from typing import TYPE_CHECKING, cast

import numpy as np

from asyncembed.encoders.batch import Usable
from asyncembed.encoders.encoder import Call, Encoded, EncoderConfig, ModelInfo, TokenWindow
from asyncembed.encoders.finite import quietly, rows_not_finite
from asyncembed.encoders.graph_inputs import as_declared
from asyncembed.encoders.graph_output import is_finished
from asyncembed.encoders.pooling import FloatArray, IntArray, in_order, normalize, pool, span_means
from asyncembed.encoders.postprocess import check_dim, encoded_matrices, encoded_rows
from asyncembed.encoders.projection import read_projections
from asyncembed.encoders.settings import DenseSettings, read_settings
from asyncembed.encoders.text_graph import TextGraph
from asyncembed.encoders.tokenization import Ids, TextTokenizer, Tokenized, count_tokens, tokenizer_of
from asyncembed.errors import OptionError, UnsupportedModelError
from asyncembed.runtime.session import Array

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from asyncembed.catalogue.spec import Pooling


class DenseEncoder:
    """The encoder of all dense text models that have a graph.

    Results are one array (n, dim); with mode "count" they are the number of tokens of each text instead, and with mode
    "chunks" a matrix (chunks, dim) per window.
    """

    def __init__(self, config: EncoderConfig) -> None:
        """Load tokenizer and graph; see `build` for the errors."""
        self._spec = spec = config.spec
        self._settings = settings = read_settings(DenseSettings, spec, config.keywords)
        tokenizer = tokenizer_of(config, lower_case=settings.lower_case)
        self._graph = TextGraph(
            config,
            settings,
            tokenizer,
            extra_inputs=[settings.task_input] if settings.task_input else [],
            pads_to_limit=settings.pad_to_limit,
        )
        # A graph of one of the tasks alone does not ask which.
        takes_task = settings.task_input in self._graph.session.input_names
        self._task_input = settings.task_input if takes_task else None
        self.tokenizer: TextTokenizer = self._graph.tokenizer
        # A finished vector has been through all that the repo lists after the hidden states.
        has_finished = is_finished(self._graph.session, spec, settings, self._graph.output)
        self._pooling: Pooling = "none" if has_finished else spec.pooling
        self._projections = [] if has_finished else read_projections(config.directory, settings.projections)
        self._prompt_lengths: dict[str, int] = {}
        # An empty text warms the session, and shows now whether pooling and graph fit together.
        empty = self.tokenizer.encode([""])
        vectors, _ = self._embed([encoding.ids for encoding in empty.values], "", self._task(Call()))
        self.info: ModelInfo = replace(self._graph.info, dim=vectors.shape[1])

    @quietly
    def encode(self, inputs: "Sequence[object]", call: Call) -> Encoded:
        """Embed texts, or count their tokens; a text that cannot be tokenized is a failure.

        Raises:
            OptionError: The call asks for a task or a number of dimensions that the model does not have.
        """
        if call.mode == "count":
            return count_tokens(self.tokenizer.count(inputs, call))
        if call.mode == "chunks":
            return self._chunks(cast("Sequence[TokenWindow]", inputs), call)
        prompt = call.prompt or ""
        done = self.tokenizer.encode(inputs, prefix=prompt, long=call.long)
        counts = self.tokenizer.computed(done)
        if call.long == "mean" and min(counts, default=0) < 0:
            vectors, padded, counts = self._embed_whole(done, counts, inputs, call)
        else:
            vectors, padded = self._embed([encoding.ids for encoding in done.values], prompt, self._task(call))
        vectors = normalize(vectors) if self._spec.normalize else vectors
        return encoded_rows(vectors, call, self._graph.finite, done, counts=counts, padded_tokens=padded)

    def _embed_whole(
        self, texts: Tokenized, counts: "Sequence[int]", inputs: "Sequence[object]", call: Call
    ) -> tuple[FloatArray, int, list[int]]:
        """Likewise where texts that were cut are taken whole; and the tokens of each text.

        One over the limit is cut into windows, whose vectors count by their tokens in its mean, as in vLLM's chunked
        processing of long texts.
        """
        prompt = call.prompt or ""
        windows = [
            self.tokenizer.windows(str(inputs[position]), prefix=prompt) if count < 0 else [encoding.ids]
            for encoding, position, count in zip(texts.values, texts.positions, counts, strict=True)
        ]
        vectors, padded = self._embed([ids for rows in windows for ids in rows], prompt, self._task(call))
        weights = np.array([len(ids) for rows in windows for ids in rows], np.float32)[:, None]
        starts = np.cumsum([0, *map(len, windows[:-1])])
        totals = np.add.reduceat(weights, starts)
        is_one = np.array([len(rows) == 1 for rows in windows])[:, None]
        means = np.where(is_one, vectors[starts], np.add.reduceat(vectors * weights, starts) / totals)
        return means, padded, [int(total) for total in totals[:, 0]]

    def _embed(self, texts: "Sequence[Ids]", prompt: str, extra: "Mapping[str, Array]") -> tuple[FloatArray, int]:
        """Pooled vectors of texts, float32 (n, dim), before they are normalised, and the tokens computed for them."""
        runs = self._graph.runs(texts)
        pooled = (
            (run.rows, self._pool(self._graph.run_text(run.ids, run.mask, **extra), run.mask, prompt)) for run in runs
        )
        vectors = in_order(pooled, len(texts), self._spec.dim)
        return (self._projected(vectors) if runs else vectors), sum(run.ids.size for run in runs)

    def _chunks(self, windows: "Sequence[TokenWindow]", call: Call) -> Encoded:
        """A matrix per window: the vectors of its chunks, each the mean of the hidden states of its tokens.

        Raises:
            OptionError: The graph gives finished vectors, and no states.
        """
        rows = [window.ids for window in windows]
        matrices: list[FloatArray] = [np.empty((0, 0), np.float32)] * len(rows)
        runs = self._graph.runs(rows)
        for run in runs:
            states = self._graph.run_text(run.ids, run.mask, **self._task(call))
            if self._pooling != "mean" or states.ndim != 3:
                raise OptionError(
                    f"{self._spec.name} has a graph that pools by itself: it gives no states for late chunking, so "
                    'say mode="plain"'
                )
            for row, values in zip(run.rows, states, strict=True):
                place = self.tokenizer.places(len(rows[row]), len(values))
                matrices[row] = span_means(values[place], windows[row].spans)
        bounds = np.cumsum([len(matrix) for matrix in matrices])[:-1]
        matrices = np.split(self._projected(np.concatenate(matrices)), bounds)
        usable = Usable(windows, range(len(windows)), {})
        padded = sum(run.ids.size for run in runs)
        return encoded_matrices(
            matrices,
            call,
            self._graph.finite,
            usable,
            scales=self._spec.normalize,
            counts=list(map(len, rows)),
            padded_tokens=padded,
        )

    def _projected(self, vectors: FloatArray) -> FloatArray:
        """What follows the pooling, for vectors (n, dim), and comes before they are normalised."""
        if self._projections:
            # An activation may turn infinity into a number: 1, or 0.
            spoilt = rows_not_finite(vectors)
            for projection in self._projections:
                vectors = projection(vectors)
            vectors[spoilt] = np.nan
        check_dim(self._spec, vectors.shape[1])
        return vectors

    def _pool(self, output: Array, mask: IntArray, prompt: str) -> FloatArray:
        how = self._pooling
        if output.ndim == 2 and how in ("none", "cls"):
            # Some graphs of models with CLS pooling do that themselves.
            pooled: FloatArray = output.astype(np.float32, copy=False)
            return pooled
        if output.ndim != 3 or how == "none":
            raise UnsupportedModelError(
                f"pooling={how!r} does not fit the graph's output of shape {output.shape}: "
                + ('its vectors are pooled already, say pooling="none"' if output.ndim == 2 else "say pooling="),
                model=self._spec.name,
            )
        return pool(output, mask, how, skip=0 if self._settings.include_prompt else self._length_of(prompt))

    def _length_of(self, prompt: str) -> int:
        """Tokens that `prompt` takes at the start of a text."""
        if not prompt:
            return 0
        length = self._prompt_lengths.get(prompt)
        if length is None:
            length = self._prompt_lengths[prompt] = self.tokenizer.prefix_length(prompt)
        return length

    def _task(self, call: Call) -> dict[str, Array]:
        """The graph's task input, for a multi-task model."""
        settings = self._settings
        if self._task_input is None:
            if call.task is not None:
                raise OptionError(f"{self._spec.name} has no tasks; leave out task=")
            return {}
        by_mode = {"query": settings.query_task, "passage": settings.passage_task}
        task = next(
            (value for value in (call.task, by_mode.get(call.mode)) if value is not None), settings.default_task
        )
        number = settings.tasks.get(task, task)  # type: ignore[arg-type]
        if number not in settings.tasks.values():
            names = ", ".join(f"{name!r} ({value})" for name, value in settings.tasks.items())
            raise OptionError(f"{self._spec.name} has no task {task!r}; it has {names}")
        assert isinstance(number, int)
        return {self._task_input: as_declared(number, self._graph.session.input_shape(self._task_input))}
