"""Makes what `benchmarks.exported` compares: a random model of full size, as weights and as torch exports it to ONNX.

Needs an environment of its own with torch and transformers, which the project never needs:
`PYTHON benchmarks/torch_export.py DIRECTORY [MODEL_TYPE]` writes `DIRECTORY/weights` and `DIRECTORY/torch/model.onnx`.
"""

import sys
from pathlib import Path
from typing import Any

# Where the defaults of transformers are not a size that people use: Qwen3-0.6B and EuroBERT-210m.
SIZES: dict[str, dict[str, Any]] = {
    "modernbert": {},
    "bert": {},
    "qwen3": {
        "hidden_size": 1024,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 3072,
        "rope_theta": 1_000_000,
    },
    "eurobert": {"vocab_size": 128256},
}


def main() -> None:
    """Write both."""
    import torch  # type: ignore[import-not-found]
    from transformers import AutoConfig, AutoModel  # type: ignore[import-not-found]

    directory = Path(sys.argv[1])
    kind = sys.argv[2] if len(sys.argv) > 2 else "modernbert"
    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model(kind, **SIZES[kind])).eval()
    with torch.no_grad():
        for tensor in model.parameters():
            if tensor.ndim == 1:  # norms and biases, which are all equal in a new model
                tensor.add_(torch.randn_like(tensor) * 0.05)
    model.save_pretrained(directory / "weights")

    class States(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = model  # as its parameters must be those of a module to be exported

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

    ids = torch.randint(5, 1000, (2, 40))
    mask = torch.ones_like(ids)
    mask[1, 30:] = 0
    names = ["input_ids", "attention_mask"]
    (directory / "torch").mkdir(exist_ok=True)
    # The exporter that optimum, and so nearly every repo of the hub, has used.
    torch.onnx.export(
        States(),
        (ids, mask),
        str(directory / "torch" / "model.onnx"),
        input_names=names,
        output_names=["last_hidden_state"],
        dynamic_axes={name: {0: "batch", 1: "tokens"} for name in (*names, "last_hidden_state")},
        opset_version=17,
        dynamo=False,
    )


if __name__ == "__main__":
    main()
