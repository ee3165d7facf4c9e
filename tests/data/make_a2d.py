"""Makes the golden cases of the A2D family with the published code of dllm, which is not part of this repository.

    python tests/data/make_a2d.py PATH_OF_A_CHECKOUT_OF_DLLM

Only two parts of that code run: dllm/pipelines/a2d/models (the forward pass, on transformers) and dllm/core/samplers
(the MDLM sampler). The package around them would import libraries for training, so that it is left out.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "python"))

from tiny_checkpoint import BFLOAT16, random_tensors, tiny_config, write_checkpoint  # noqa: E402

# Name: the published config, the class in dllm, and the options of its sampler.
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "a2d_qwen3": ("a2d_qwen3", "qwen3", {"steps": 15, "block_size": 16, "max_new_tokens": 48}),
    "a2d_qwen2": ("a2d_qwen2", "qwen2", {"steps": 9, "block_size": 32, "max_new_tokens": 32, "cfg_scale": 0.5}),
    "a2d_llama": ("a2d_llama", "llama", {"steps": 24, "block_size": 24, "max_new_tokens": 24}),
}
PROMPT = 40


def load_module(name: str, path: Path) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def add_packages(dllm: Path) -> None:
    """Makes dllm.core importable without the code of dllm/__init__.py."""
    for name in ("dllm", "dllm.core"):
        package = types.ModuleType(name)
        package.__path__ = [str(dllm.joinpath(*name.split(".")))]
        sys.modules[name] = package


class Recorder(torch.nn.Module):
    """A model that keeps its inputs and its logits behind the prompt."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.inputs: list[np.ndarray] = []
        self.logits: list[np.ndarray] = []

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def forward(self, ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        out = self.model(input_ids=ids, attention_mask=attention_mask)
        self.inputs.append(ids[:1].numpy().astype(np.int32))
        self.logits.append(out.logits[:1, PROMPT:].float().numpy())
        return out


def make(dllm: Path, case: str) -> None:
    from dllm.core.samplers.mdlm import MDLMSampler, MDLMSamplerConfig

    name, kind, options = CASES[case]
    values = tiny_config(name, max_position_embeddings=128)
    tensors = random_tensors(values, BFLOAT16, seed=len(case))
    folder = write_checkpoint(HERE / case, values, tensors)
    module = load_module(f"modeling_{kind}", dllm / "dllm/pipelines/a2d/models" / kind / f"modeling_{kind}.py")
    prefix = f"A2D{kind.capitalize()}"
    keys = {key: value for key, value in values.items() if key not in ("architectures", "model_type", "mask_token_id")}
    config = getattr(module, f"{prefix}Config")(**keys)
    config._attn_implementation = "eager"
    model = getattr(module, f"{prefix}LMHeadModel")(config).float().eval()
    weights = {key: torch.from_numpy(value.astype(np.float32)) for key, value in tensors.items()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert set(missing) <= {"lm_head.weight"} and not unexpected, (missing, unexpected)
    model.tie_weights()
    prompt = np.random.default_rng(len(case)).integers(0, 90, PROMPT)
    tokens = types.SimpleNamespace(
        mask_token_id=values["mask_token_id"], bos_token_id=values["bos_token_id"], eos_token_id=values["eos_token_id"]
    )
    recorder = Recorder(model)
    sampler = MDLMSampler(model=recorder, tokenizer=tokens)
    sequence = sampler.sample([prompt.tolist()], MDLMSamplerConfig(**options))
    meta = {
        "kind": "a2d",
        "gen_length": options["max_new_tokens"],
        "steps": options["steps"],
        "block_length": options["block_size"],
        "cfg_scale": options.get("cfg_scale", 0.0),
        "remasking": "low_confidence",
    }
    (folder / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
    np.savez_compressed(
        folder / "goldens.npz",
        prompt=prompt[None].astype(np.int32),
        dense_x=np.concatenate(recorder.inputs),
        dense_logits=np.concatenate(recorder.logits).astype(np.float32),
        dense_tokens=sequence.numpy().astype(np.int32),
    )


if __name__ == "__main__":
    checkout = Path(sys.argv[1])
    add_packages(checkout)
    for one in CASES:
        make(checkout, one)
