"""Packages that an environment says it has."""

from pathlib import Path


def pretend_gpu_package(directory: Path) -> None:
    """What is left of onnxruntime-gpu in `directory` when another onnxruntime has replaced its files."""
    folder = directory / "onnxruntime_gpu-1.32.0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: onnxruntime-gpu\nVersion: 1.32.0\n", encoding="utf-8"
    )
