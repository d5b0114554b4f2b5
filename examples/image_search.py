"""Search photographs by text, with the two towers of CLIP.

    uv run python -m examples.image_search                               # the photographs of scikit-image, some queries
    uv run python -m examples.image_search --folder ~/Pictures "a dog on a beach"
    uv run python -m examples.image_search --text-model DIRECTORY --image-model DIRECTORY

The folder is walked while images are decoded and embedded in the workers, several at a time; what is no image is left
out. Both towers share one pool of workers.

The weights (0.6 GB) come from the hub the first time. Without a way to it, give directories that hold the files of
`Qdrant/clip-ViT-B-32-text` and `Qdrant/clip-ViT-B-32-vision`. No other example of this folder needs any.
"""

import argparse
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import anyio
import numpy as np

from asyncembed import ImageEmbedding, TextEmbedding, WorkerPool
from asyncembed.errors import DownloadError
from asyncembed.readers import image_paths

TEXT_MODEL = "Qdrant/clip-ViT-B-32-text"
IMAGE_MODEL = "Qdrant/clip-ViT-B-32-vision"
QUERIES = ["a photo of a cat", "a cup of coffee", "a rocket on its launch pad", "a person in a space suit", "coins"]
BATCH = 16
HITS = 3


def demo_folder() -> Path:
    """The pictures that come with scikit-image; the package is not imported."""
    spec = find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("The photographs are missing: start this with `uv run`, or say --folder.")
    return Path(spec.submodule_search_locations[0]) / "data"


async def main() -> None:
    arguments = parse_arguments()
    options: dict[str, Any] = {"local_files_only": arguments.offline}
    try:
        async with (
            WorkerPool(workers=arguments.workers) as pool,
            TextEmbedding(TEXT_MODEL, pool=pool, **located(arguments.text_model, options)) as texts,
            ImageEmbedding(
                IMAGE_MODEL, pool=pool, fast_decode=True, **located(arguments.image_model, options)
            ) as images,
        ):
            paths, matrix = await index(images, arguments.folder)
            for query in arguments.queries:
                vector = await texts.embed_query(query)
                show(query, matrix @ (vector / np.linalg.norm(vector)), paths)
    except DownloadError as error:
        sys.exit(
            f"{error}\n\nThe weights of CLIP cannot be had from the hub. If you have their files, say where: "
            "--text-model DIRECTORY --image-model DIRECTORY"
        )


async def index(model: ImageEmbedding, folder: Path) -> tuple[list[Path], "np.ndarray[Any, Any]"]:
    """The images of a folder and their vectors, of unit length."""
    started = time.perf_counter()
    paths: list[Path] = []
    parts = []
    stream = model.embed(image_paths(folder), on_error="skip").with_inputs()
    async for batch, vectors in stream.batches(BATCH):
        paths += batch
        parts.append(vectors)
    if not paths:
        sys.exit(f"no images in {folder}")
    seconds = time.perf_counter() - started
    print(f"{len(paths)} images in {seconds:.1f} s with {model.stats().workers} workers")
    return paths, np.concatenate(parts)


def show(query: str, scores: "np.ndarray[Any, Any]", paths: list[Path]) -> None:
    """The best hits: the cosines of a text and images are low with CLIP; their order is what counts."""
    print(f"\n{query}")
    for position in np.argsort(-scores)[:HITS]:
        print(f"  {scores[position]:.3f}  {paths[position].name}")


def located(directory: Path | None, options: dict[str, Any]) -> dict[str, Any]:
    return options if directory is None else {"model_path": directory}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("queries", nargs="*", default=QUERIES, help="what to look for")
    parser.add_argument("--folder", type=Path, help="images to search (default: those of scikit-image)")
    parser.add_argument("--text-model", type=Path, metavar="DIRECTORY", help=f"files of {TEXT_MODEL}")
    parser.add_argument("--image-model", type=Path, metavar="DIRECTORY", help=f"files of {IMAGE_MODEL}")
    parser.add_argument("--workers", type=int, help="worker processes (default: from the cores)")
    parser.add_argument("--offline", action="store_true", help="take the weights from the cache only")
    arguments = parser.parse_args()
    arguments.folder = arguments.folder or demo_folder()
    return arguments


if __name__ == "__main__":
    anyio.run(main)
