"""Sources: what they give, in order, in small portions, and closed when nobody wants more."""

import csv
import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import psutil
import pytest

from asyncembed import TextEmbedding
from asyncembed.errors import InputError
from asyncembed.sources import CHUNK_BYTES, csv_records, image_paths, json_lines, text_lines
from tests.support.models import spec_for, write_model

LONG = "long " * CHUNK_BYTES


async def everything(source: AsyncGenerator[Any]) -> list[Any]:
    return [record async for record in source]


async def test_the_images_of_a_folder_in_order(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "notes.txt", "c/d.webp", "c/e/f.tiff", "c.jpeg"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "c" / "again").symlink_to(tmp_path)
    found = [path.relative_to(tmp_path).as_posix() for path in await everything(image_paths(tmp_path))]
    assert found == ["a.png", "b.JPG", "c.jpeg", "c/d.webp", "c/e/f.tiff"]
    assert len(await everything(image_paths(str(tmp_path), recursive=False))) == 3
    assert len(await everything(image_paths(tmp_path, suffixes={".txt"}))) == 1
    with pytest.raises(NotADirectoryError):
        await everything(image_paths(tmp_path / "a.png"))


async def test_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffone\r\n\nzwölf\n".encode() + LONG.encode() + b"\n last")
    assert await everything(text_lines(path)) == ["one", "zwölf", LONG, " last"]
    path.write_bytes("zwölf".encode("latin-1"))
    assert await everything(text_lines(path, encoding="latin-1")) == ["zwölf"]
    with pytest.raises(InputError, match=r"a\.txt: line 1 is no utf-8"):
        await everything(text_lines(path))
    path.write_bytes(b"")
    assert await everything(text_lines(path)) == []
    with pytest.raises(FileNotFoundError):
        await everything(text_lines(tmp_path / "missing"))


async def test_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    records: list[Any] = [{"text": "é\n", "n": n} for n in range(5000)] + [LONG, [1], None, 7]
    path.write_text("\n\n".join(json.dumps(record) for record in records), encoding="utf-8")
    assert await everything(json_lines(path)) == records
    path.write_text('{"a": 1}\n\n{"a": \n')
    with pytest.raises(InputError, match="line 3 is no JSON"):
        await everything(json_lines(path))


async def test_csv_records(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    rows = [{"id": str(n), "text": f'say "{n}",\nthen\r\ngo; é'} for n in range(9000)]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["id", "text"])
        writer.writeheader()
        writer.writerows(rows)
    assert await everything(csv_records(path)) == rows
    path.write_text("a;b\r\n1;2\r\n\r\n3;4\r\n")
    assert await everything(csv_records(path, delimiter=";")) == [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]
    path.write_text("a,b\n1,2\n3\n")
    with pytest.raises(InputError, match="line 3: 1 fields"):
        await everything(csv_records(path))
    path.write_text(f"a,b\n1,{LONG}\n")
    with pytest.raises(InputError, match="line 2: field larger than field limit"):
        await everything(csv_records(path))
    path.write_text('a,b\n1,"2\n')
    with pytest.raises(InputError, match="inside a quoted field"):
        await everything(csv_records(path))


async def test_a_stream_reads_no_further_than_its_window_and_closes_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with path.open("w") as file:
        for number in range(20_000):
            file.write(json.dumps({"text": f"the {number}"}) + "\n")
    model_path = write_model(tmp_path / "model")
    spec = spec_for(model_path, pooling="mean")
    read: list[Any] = []

    def text_of(record: Any) -> str:
        read.append(record)
        return str(record["text"])

    async with TextEmbedding(spec, workers=0, max_in_flight=50) as model:
        before = psutil.Process().num_fds()
        stream = model.embed(json_lines(path), key=text_of).with_inputs()
        async for record, _ in stream:
            if record["text"] == "the 99":
                break
        assert psutil.Process().num_fds() == before + 1
        await stream.aclose()
        assert psutil.Process().num_fds() == before
    assert 100 <= len(read) <= 150
