"""transformers' own layers of Qwen3, Qwen2 and Llama without a causal mask are the A2D models: logits, `accelerate`."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import sparsed
from paths import DATA
from sparsed.models.safetensors import SafetensorsFile
from tolerances import ENGINES, GOLDEN_LOGITS

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("transformers.masking_utils", reason="transformers is older than 4.53")

from sparsed.torch import accelerate  # noqa: E402

CASES = {"a2d_qwen3": "Qwen3", "a2d_qwen2": "Qwen2", "a2d_llama": "Llama"}
LENGTH = 90
TINY = sparsed.SparseConfig(skip=0.0, rho=0.3, block_size=16, min_length=0)


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Any:
    """The golden checkpoint, and transformers' model with its weights. Its layers still say that they are causal."""
    folder = DATA / request.param
    values = json.loads((folder / "config.json").read_text())
    for key in ("architectures", "model_type", "mask_token_id", "dtype"):
        values.pop(key, None)
    name = CASES[request.param]
    config = getattr(transformers, f"{name}Config")(**values, attn_implementation="sdpa")
    model = getattr(transformers, f"{name}ForCausalLM")(config).float().eval()
    file = SafetensorsFile(folder / "model.safetensors")
    weights = {key: torch.from_numpy(file.array(key).astype(np.float32)) for key in file.tensors}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert set(missing) <= {"lm_head.weight"} and not unexpected
    model.tie_weights()
    return folder, model


def call(model: Any, ids: np.ndarray, live: np.ndarray) -> np.ndarray:
    """Every token sees every real token, as dllm's mask says it."""
    mask = torch.from_numpy(np.where(live, np.float32(0), np.finfo(np.float32).min))[:, None, None, :]
    mask = mask.expand(-1, 1, ids.shape[1], -1)
    out = model(input_ids=torch.from_numpy(ids), attention_mask=mask, use_cache=False)
    return out.logits.numpy()


@torch.no_grad()
@pytest.mark.filterwarnings("ignore")
def test_logits_and_accelerate(case) -> None:
    folder, model = case
    own = sparsed.load_model(folder, "float32")
    ids = np.random.default_rng(0).integers(0, 90, (2, LENGTH))
    live = np.ones((2, LENGTH), bool)
    live[1, 70:] = False  # dllm pads on the right
    np.testing.assert_allclose(
        call(model, ids, live)[live], own.forward(ids, key_mask=live)[live], rtol=0, atol=GOLDEN_LOGITS
    )
    cache = sparsed.PatternCache(TINY, steps=3, prompt_length=50)
    with accelerate(model, TINY, steps=3, prompt_length=50) as acceleration:
        for step in range(3):
            cache.begin_step(step)
            expected = own.forward(ids, attend=cache.attend, key_mask=live)
            np.testing.assert_allclose(call(model, ids, live)[live], expected[live], rtol=0, atol=GOLDEN_LOGITS)
        assert len(acceleration.layers) == own.config.num_layers
        assert acceleration.cache.density() == pytest.approx(cache.density(), abs=ENGINES)
