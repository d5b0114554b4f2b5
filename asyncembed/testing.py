"""Models without weights, for the tests of programs that use asyncembed: no files, no network, no runtime, no process.

```python
with fake_models() as fakes:
    async with TextEmbedding("BAAI/bge-small-en-v1.5") as model:  # opens in a millisecond
        vector = await model.embed_query("what is backpressure?")  # (384,)
```

While it is switched on, every embedder that opens is a fake of its family, whatever its name: also those of
`asyncembed.sync`, those on any loop, and those in a `WorkerPool`, whose workers are threads then. `ASYNCEMBED_FAKE=1`
in the environment switches it on for a whole process, and the pytest fixtures `asyncembed_fakes` (a test) and
`asyncembed_fakes_session` (a whole run) for what uses them. They are plain fixtures, for tests of any event loop. One
WARNING line in the log says so.

Streams, order, windows, errors, limits and options are those of the real classes, since only what computes a batch is
another. Results have the catalogue's size where it knows the name. They are made up of hashes of the words: equal
inputs have equal results, anywhere; texts that share words are nearer than others; prompts and tasks count. A token is
a word; a text of more than 512 (or `max_length=`) is cut. Images are decoded, and are near to nothing but their equals.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from asyncembed.catalogue.spec import Family, ModelSpec
from asyncembed.errors import AsyncEmbedError, InputFailure
from asyncembed.faking import ENCODER, SETTING, Fakes, switch_off, switch_on

__all__ = ["Fakes", "fake_model", "fake_models"]


@contextmanager
def fake_models(
    *,
    dim: int | None = None,
    failures: Mapping[str, InputFailure] | None = None,
    seconds: float = 0.0,
    opening_error: AsyncEmbedError | None = None,
) -> Iterator[Fakes]:
    """Have every embedder that opens in this process be a fake, until the block is left. The arguments are `Fakes`'.

    Inside another such block, the inner one counts. What is open in the end stays what it is, except for the shared
    engines of `asyncembed.sync` and `on_any_loop`, whose next call opens them anew. A pool that is open already keeps
    its processes, and fakes are computed there, as they were when they opened.
    """
    fakes = Fakes(dim=dim, failures=failures, seconds=seconds, opening_error=opening_error)
    switch_on(fakes)
    try:
        yield fakes
    finally:
        switch_off(fakes)
        fakes.seconds = 0.0  # what still computes need not


def fake_model(
    family: Family = "text",
    *,
    dim: int | None = None,
    max_length: int | None = None,
    prompts: Mapping[str, str] | None = None,
    fakes: Fakes | None = None,
) -> ModelSpec:
    """One fake, whatever is switched on, for programs that are handed their model; computed in a thread.

    In a `pool=` of processes it is computed there, and does what `fakes` said when it was opened.

    ```python
    async with TextEmbedding(fake_model(dim=8)) as model:
        vector = await model.embed_query("what is backpressure?")  # (8,)
    ```

    Args:
        family: Of the class that it is for: "text", "sparse", "late_interaction", "hybrid",
            "image", "late_interaction_multimodal" or "cross_encoder".
        dim: Length of its vectors; None: as `Fakes.dim` says.
        max_length: Most words of a text; None: 512.
        prompts: Its prompts by name, as a repo has them.
        fakes: What it does besides; a test may keep it, and change it.
    """
    return ModelSpec(
        name=f"fake-{family}",
        family=family,
        encoder=ENCODER,
        sources=(),
        dim=dim,
        max_length=max_length,
        prompts=dict(prompts or {}),
        is_catalogued=False,
        settings={SETTING: fakes or Fakes()},
    )
