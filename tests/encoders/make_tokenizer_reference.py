"""Asks transformers, which the project itself never needs, for the tokens of directories whose files disagree.

Run in a throwaway environment with transformers, without torch: `python -m tests.encoders.make_tokenizer_reference`. It
writes `tests/encoders/data/tokenizers.json`: the version, and for each case of `tests.support.tokenizer_files` the ids
of each text, or null where transformers itself fails.
"""

import json
import tempfile
from pathlib import Path

from tests.support.tokenizer_files import CASES, TEXTS, write_case

DATA = Path(__file__).parent / "data" / "tokenizers.json"


def main() -> None:
    """Write everything anew."""
    import transformers  # type: ignore[import-not-found]

    found: dict[str, object] = {}
    for name, case in CASES.items():
        with tempfile.TemporaryDirectory() as directory:
            write_case(Path(directory), case)
            try:
                tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
                found[name] = [tokenizer(text)["input_ids"] for text in TEXTS]
            except Exception as error:  # noqa: BLE001 (whatever it is, there is nothing to compare with)
                print(name, type(error), error)  # noqa: T201
                found[name] = None
    record = {"transformers": transformers.__version__, "ids": found}
    DATA.parent.mkdir(exist_ok=True)
    DATA.write_text(json.dumps(record, indent=None, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
