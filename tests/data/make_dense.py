"""Makes the golden cases of A2D and Open-dCoder with published code, which is not part of this repository.

    python tests/data/make_dense.py CHECKOUT_OF_DLLM CHECKOUT_OF_OPEN_DLLM

Three parts of that code run: dllm/pipelines/a2d/models (the forward passes, on transformers), dllm/core/samplers (the
MDLM sampler), and veomni/models/transformers/qwen2/generation_utils.py of Open-dLLM (its sampler). The packages around
them would import libraries for training, so that they are left out. Open-dCoder's forward pass is that of A2D-Qwen2,
because both are Qwen2 without a causal mask.
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

# Name: the class in dllm, and the options of the published sampler.
A2D: dict[str, tuple[str, dict[str, Any]]] = {
    "a2d_qwen3": ("qwen3", {"steps": 15, "block_size": 16, "max_new_tokens": 48}),
    "a2d_qwen2": ("qwen2", {"steps": 9, "block_size": 32, "max_new_tokens": 32, "cfg_scale": 0.5}),
    "a2d_llama": ("llama", {"steps": 24, "block_size": 24, "max_new_tokens": 24}),
}
OPEN_DCODER = {"steps": 11, "max_new_tokens": 28, "alg": "entropy", "temperature": 0.0, "eps": 1e-3}
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
    """A model that keeps its inputs, and the logits that predict the generation."""

    def __init__(self, model: Any, shift: int = 0) -> None:
        super().__init__()
        self.model, self.shift = model, shift
        self.inputs: list[np.ndarray] = []
        self.logits: list[np.ndarray] = []

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def forward(self, input_ids: torch.Tensor, attention_mask: Any = None, is_causal: bool = False) -> Any:
        assert not is_causal
        out = self.model(input_ids=input_ids, attention_mask=attention_mask)
        self.inputs.append(input_ids[:1].numpy().astype(np.int32))
        self.logits.append(out.logits[:1, PROMPT - self.shift : input_ids.shape[1] - self.shift].float().numpy())
        return out


def load_model(dllm: Path, kind: str, values: dict[str, Any], tensors: dict[str, np.ndarray]) -> Any:
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
    return model


def write_case(case: str, meta: dict[str, Any], prompt: np.ndarray, recorder: Recorder, sequence: Any) -> None:
    (HERE / case / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
    np.savez_compressed(
        HERE / case / "goldens.npz",
        prompt=prompt[None].astype(np.int32),
        dense_x=np.concatenate(recorder.inputs),
        dense_logits=np.concatenate(recorder.logits).astype(np.float32),
        dense_tokens=sequence.numpy().astype(np.int32),
    )


def checkpoint(case: str) -> tuple[dict[str, Any], dict[str, np.ndarray], np.ndarray]:
    """Writes a tiny checkpoint; returns its config, its tensors and a prompt."""
    values = tiny_config(case, max_position_embeddings=128)
    tensors = random_tensors(values, BFLOAT16, seed=len(case))
    write_checkpoint(HERE / case, values, tensors)
    return values, tensors, np.random.default_rng(len(case)).integers(0, 90, PROMPT)


def make_a2d(dllm: Path, case: str) -> None:
    from dllm.core.samplers.mdlm import MDLMSampler, MDLMSamplerConfig

    kind, options = A2D[case]
    values, tensors, prompt = checkpoint(case)
    recorder = Recorder(load_model(dllm, kind, values, tensors))
    tokens = types.SimpleNamespace(
        mask_token_id=values["mask_token_id"], bos_token_id=values["bos_token_id"], eos_token_id=values["eos_token_id"]
    )
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
    write_case(case, meta, prompt, recorder, sequence)


def make_open_dcoder(dllm: Path, open_dllm: Path) -> None:
    code = load_module("generation_utils", open_dllm / "veomni/models/transformers/qwen2/generation_utils.py")
    values, tensors, prompt = checkpoint("open_dcoder")

    class Model(Recorder, code.MDMGenerationMixin):
        config = types.SimpleNamespace(pad_token_id=None)

    recorder = Model(load_model(dllm, "qwen2", values, tensors), shift=1)
    settings = code.MDMGenerationConfig(mask_token_id=values["mask_token_id"], **OPEN_DCODER)
    sequence = recorder.diffusion_generate(inputs=torch.from_numpy(prompt[None]), generation_config=settings)
    meta = {"kind": "dream", "gen_length": OPEN_DCODER["max_new_tokens"], "steps": OPEN_DCODER["steps"]}
    meta |= {"alg": "entropy", "temperature": 0.0, "top_p": None, "top_k": None, "alg_temp": 0.0, "eps": 1e-3}
    write_case("open_dcoder", meta, prompt, recorder, sequence)


if __name__ == "__main__":
    add_packages(Path(sys.argv[1]))
    for one in A2D:
        make_a2d(Path(sys.argv[1]), one)
    make_open_dcoder(Path(sys.argv[1]), Path(sys.argv[2]))
