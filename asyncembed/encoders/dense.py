"""One vector per text, from a transformer's graph."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Encoding

from asyncembed.encoders.encoder import Call, Encoded, EncoderConfig, ModelInfo
from asyncembed.encoders.finite import quietly, rows_not_finite
from asyncembed.encoders.pooling import FloatArray, IntArray, normalize, pool
from asyncembed.encoders.postprocess import encoded_rows
from asyncembed.encoders.projection import read_projections
from asyncembed.encoders.text_graph import TextGraph, is_finished
from asyncembed.encoders.tokenization import TextTokenizer, Tokenized
from asyncembed.errors import OptionError, UnsupportedModelError
from asyncembed.runtime.session import Array

if TYPE_CHECKING:
    from asyncembed.catalogue.spec import Pooling


class DenseEncoder:
    """The encoder of all dense text models that have a graph.

    Results are one array (n, dim); with mode "count" they are the number of tokens of each text instead.

    Of `spec.settings` it reads:
        lower_case: Whether the letters of a text are lowered before it is tokenized.
        pad_to_limit: Whether every text is padded to the length limit (the graph pools its last position).
        include_prompt: Whether the tokens of a prompt count in the pooling (default True).
        projections: Folders of linear layers between pooling and normalisation, as sentence-transformers has
            them.
        output_name, takes_finished: See `find_output`. A finished vector is neither pooled nor projected.
        task_input, tasks, query_task, passage_task, default_task: A multi-task model's graph input, its tasks
            (name → number), and which of them a call means that names none.
    """

    def __init__(self, config: EncoderConfig) -> None:
        """Load tokenizer and graph; see `build` for the errors."""
        spec = config.spec
        settings = spec.settings
        self._spec = spec
        self.tokenizer: TextTokenizer = TextTokenizer(
            config.directory,
            max_length=config.max_length or spec.max_length,
            lower_case=bool(settings.get("lower_case", False)),
        )
        self._include_prompt = bool(settings.get("include_prompt", True))
        self._task_input = settings.get("task_input")
        pads_to_limit = bool(settings.get("pad_to_limit"))
        self._graph = TextGraph(
            config,
            extra_inputs=[str(self._task_input)] if self._task_input else [],
            takes_padding=pads_to_limit,
        )
        self._graph.fit(self.tokenizer, config.max_length)
        self._fixed_length = self._graph.fixed_length or (self.tokenizer.limit if pads_to_limit else None)
        # A finished vector has been through all that the repo lists after the hidden states.
        has_finished = is_finished(self._graph.session, spec, self._graph.output)
        self._pooling: Pooling = "none" if has_finished else spec.pooling
        self._projections = [] if has_finished else read_projections(config.directory, settings)
        self._finite = self._graph.finite
        self._prompt_lengths: dict[str, int] = {}
        # An empty text warms the session, and shows now whether pooling and graph fit together.
        vectors, _ = self._embed(self.tokenizer.encode([""]).encodings, "", self._task(Call()))
        self.info: ModelInfo = replace(
            self._graph.info,
            max_length=self.tokenizer.limit,
            special_tokens=self.tokenizer.special_tokens(),
            dim=vectors.shape[1],
        )

    @quietly
    def encode(self, inputs: Sequence[object], call: Call) -> Encoded:
        """Embed texts, or count their tokens; a text that cannot be tokenized is a failure.

        Raises:
            OptionError: The call asks for a task or a number of dimensions that the model does not have.
        """
        prompt = call.prompt or ""
        done = self.tokenizer.encode(inputs, prefix=prompt, truncate=call.truncate)
        if call.mode == "count":
            return counted(len(inputs), done)
        vectors, padded = self._embed(done.encodings, prompt, self._task(call))
        return encoded_rows(
            vectors,
            call,
            self._finite,
            positions=done.positions,
            failures=done.failures,
            tokens=sum(done.lengths),
            padded_tokens=padded,
        )

    def _embed(self, encodings: Sequence[Encoding], prompt: str, extra: Mapping[str, Array]) -> tuple[FloatArray, int]:
        """Pooled vectors in the order of `encodings`, float32 (n, dim), and the tokens computed for them."""
        vectors: FloatArray | None = None
        padded = 0
        if self._fixed_length is not None:
            runs = self._graph.plan([self._fixed_length] * len(encodings))
        else:
            runs = self._graph.plan([len(encoding) for encoding in encodings])
        for run in runs:
            ids, mask = self.tokenizer.pad([encodings[row] for row in run.rows], length=self._fixed_length)
            padded += ids.size
            pooled = self._pool(self._graph.run_text(ids, mask, **extra), mask, prompt)
            if vectors is None:
                vectors = np.empty((len(encodings), pooled.shape[1]), dtype=np.float32)
            vectors[list(run.rows)] = pooled
        if vectors is None:
            return np.empty((0, self._spec.dim or 0), dtype=np.float32), 0
        if self._projections:
            # An activation may turn infinity into a number: 1, or 0.
            spoilt = rows_not_finite(vectors)
            for projection in self._projections:
                vectors = projection(vectors)
            vectors[spoilt] = np.nan
        if self._spec.dim is not None and vectors.shape[1] != self._spec.dim:
            raise UnsupportedModelError(
                f"the model is declared with dim={self._spec.dim}, but its vectors have {vectors.shape[1]}",
                model=self._spec.name,
            )
        return normalize(vectors) if self._spec.normalize else vectors, padded

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
        return pool(output, mask, how, skip=0 if self._include_prompt else self._length_of(prompt))

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
        if self._task_input is None:
            if call.task is not None:
                raise OptionError(f"{self._spec.name} has no tasks; leave out task=")
            return {}
        settings = self._spec.settings
        tasks = settings["tasks"]
        assert isinstance(tasks, Mapping)
        by_mode = {"query": settings.get("query_task"), "passage": settings.get("passage_task")}
        task = next(
            (value for value in (call.task, by_mode.get(call.mode)) if value is not None),
            settings.get("default_task"),
        )
        number = tasks.get(task, task)
        if number not in tasks.values():
            names = ", ".join(f"{name!r} ({value})" for name, value in tasks.items())
            raise OptionError(f"{self._spec.name} has no task {task!r}; it has {names}")
        return {str(self._task_input): np.array(number, dtype=np.int64)}


def counted(batch_size: int, done: Tokenized) -> Encoded:
    """The answer to mode "count": an int per input, 0 where it could not be tokenized."""
    counts = [0] * batch_size
    for position, length in zip(done.positions, done.lengths, strict=True):
        counts[position] = length
    return Encoded(counts, done.failures)
