"""What the README and the docs show runs as it stands; checkpoints that they name are tiny ones here."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import sparsed
from paths import DATA, ROOT
from sparsed.apps import cli

SECTION = re.compile(r"^## (.+?)\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SCRIPTS = [
    (f"{page.stem}: {title}", script)
    for page in PAGES
    for title, text in SECTION.findall(page.read_text(encoding="utf-8"))
    for script in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
]
LINES = [
    shlex.split(line, comments=True)[1:]
    for page in ("README.md", "docs/tutorial.md")
    for block in re.findall(r"^```sh\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    for line in re.findall(r"^sparsed (?!lm-eval|bench).*", block, re.MULTILINE)
]
EXTRAS = ("torch", "transformers")


def torch_checkpoints(monkeypatch: pytest.MonkeyPatch, transformers: Any) -> list[str]:
    """`from_pretrained` gives tiny models; the names that were asked for."""
    import torch

    import torch_models

    names = []

    def dream(name: str, **kwargs: Any) -> Any:
        names.append(name)
        model = torch_models.load(DATA / "dream_b32")

        def diffusion_generate(ids: Any, max_new_tokens: int, steps: int, alg: str) -> Any:
            ids = torch.cat([ids, torch.full((1, max_new_tokens), 197)], dim=1)
            with torch.no_grad():
                for _ in range(steps):
                    model(ids)
            return ids

        object.__setattr__(model, "diffusion_generate", diffusion_generate)
        return model

    def tokenizer(name: str, **kwargs: Any) -> Any:
        return SimpleNamespace(
            apply_chat_template=lambda messages, **_: torch.randint(0, 190, (1, 60)),
            decode=lambda ids: str(ids.tolist()),
        )

    def encoder(name: str, **kwargs: Any) -> Any:
        names.append(name)
        if not hasattr(transformers, "EuroBertConfig"):
            pytest.skip(f"transformers {transformers.__version__} has no EuroBert")
        config = transformers.EuroBertConfig(
            vocab_size=96, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            pad_token_id=0, bos_token_id=1, eos_token_id=2,
        )  # fmt: skip
        model = transformers.AutoModelForMaskedLM.from_config(config, **kwargs).eval()
        with torch.no_grad():
            model(torch.randint(3, 96, (1, 40)))
        return model

    monkeypatch.setattr(transformers.AutoModel, "from_pretrained", dream)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", tokenizer)
    monkeypatch.setattr(transformers.AutoModelForMaskedLM, "from_pretrained", encoder)
    return names


def test_the_sections_are_there() -> None:
    expected = {"README: Quick start", "torch: Tensors", "torch: Models of transformers"}
    assert expected <= {title for title, _ in SCRIPTS}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("number", range(len(SCRIPTS)), ids=[title for title, _ in SCRIPTS])
def test_script(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, script = SCRIPTS[number]
    needed = [extra for extra in EXTRAS if re.search(rf"^\s*(import|from) .*\b{extra}\b", script, re.MULTILINE)]
    modules = {extra: pytest.importorskip(extra) for extra in needed}
    if "sparsed.torch.hf" in script:
        pytest.importorskip("transformers.masking_utils", reason="transformers is older than 4.53")
    names = torch_checkpoints(monkeypatch, modules["transformers"]) if "transformers" in modules else []
    (tmp_path / "LLaDA-8B-Instruct").symlink_to(Path(sparsed.__file__).parent / "demo_model")
    monkeypatch.chdir(tmp_path)
    exec(compile(script, "README.md", "exec"), {})
    assert all(f'"{name}"' in script for name in names)
    printed = capsys.readouterr().out
    assert "print(found)" not in script or "DreamAttention" in printed


@pytest.mark.slow
@pytest.mark.parametrize("line", LINES, ids=" ".join)
def test_line(line: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LLaDA-8B-Instruct", "MODEL_DIR"):
        (tmp_path / name).symlink_to(Path(sparsed.__file__).parent / "demo_model")
    (tmp_path / "report.txt").write_text("the sun is yellow .", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert cli.main([*line, *(("--gen-length", "8", "--steps", "8") if line[0] == "generate" else ())]) == 0
