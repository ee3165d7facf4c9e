"""What is given to `load_model` and is no model that it loads: the error says what it is and what to do."""

from __future__ import annotations

import json

import pytest

import sparsed
from sparsed.models import recognise
from sparsed.models.safetensors import SafetensorsFile
from tiny_checkpoint import tiny_config, write_checkpoint

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d" * 32 + b"\nsize 4976698672\n"
GGUF = b"GGUF\x03\x00\x00\x00" + bytes(100)


def config_of(names):
    """The config.json of another model, by its class or by its model_type."""
    key, value = names
    return {key: [value] if key == "architectures" else value, "hidden_size": 64}


@pytest.mark.parametrize(
    ("names", "what", "runs_it"),
    [
        (("architectures", "LLaDAMoEModelLM"), "LLaDA-MoE", "llama.cpp"),
        (("architectures", "LLaDA2MoeModelLM"), "LLaDA2", "SGLang"),
        (("model_type", "llada2_moe"), "LLaDA2", "dInfer"),
        (("architectures", "SDARForCausalLM"), "SDAR or TraDo", "SGLang"),
        (("model_type", "sdar_moe"), "SDAR or TraDo", "SGLang"),
        (("architectures", "TraDoForCausalLM"), "SDAR or TraDo", "SGLang"),
        (("architectures", "Fast_dLLM_QwenForCausalLM"), "Fast-dLLM v2", "Fast-dLLM"),
        (("model_type", "Fast_dLLM_Qwen"), "Fast-dLLM v2", "Fast-dLLM"),
        (("architectures", "DiffusionGemmaForBlockDiffusion"), "DiffusionGemma", "transformers"),
        (("model_type", "diffusion_gemma"), "DiffusionGemma", "vLLM"),
        (("architectures", "A2DGemmaLMHeadModel"), "A2D", "dllm"),
        (("model_type", "a2d-qwen3_5"), "A2D", "dllm"),
        (("architectures", "RND1LM"), "RND1", "llama.cpp"),
        (("architectures", "NemotronLabsDiffusionModel"), "Nemotron-Labs-Diffusion", "remote code"),
        (("architectures", "LlavaLLaDAModelLM"), "diffusion model of another class", "remote code"),
        (("architectures", "DreamForCausalLM"), "diffusion model of another class", "remote code"),
        (("architectures", "LlamaForCausalLM"), "autoregressive", "vLLM"),
        (("architectures", "Qwen2ForCausalLM"), "autoregressive", "llama.cpp"),
        (("architectures", "Qwen3MoeForCausalLM"), "autoregressive", "transformers"),
        (("model_type", "qwen2"), "autoregressive", "transformers"),
        (("model_type", "llama"), "autoregressive", "transformers"),
        (("architectures", "GPT2LMHeadModel"), "autoregressive", "transformers"),
        (("architectures", "ModernBertForMaskedLM"), "masked language model", "sparsed.torch.accelerate"),
        (("architectures", "T5ForConditionalGeneration"), "sequence-to-sequence", "transformers"),
    ],
)
def test_other_models_are_named(tmp_path, names, what, runs_it) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config_of(names)))
    with pytest.raises(ValueError, match=rf"^load_model: {names[0]} is .*, expected one of .*LLaDA-8B.*Dream") as error:
        sparsed.load_model(tmp_path)
    message = str(error.value)
    assert f"{what}" in message and runs_it in message.partition("this is")[2]


def test_llada_moe_without_its_class(tmp_path) -> None:
    values = {"model_type": "llada", "hidden_size": 2048, "num_experts": 64}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"^load_model: model_type is 'llada', .*this is LLaDA-MoE"):
        sparsed.load_model(tmp_path)


def test_unknown_models_get_the_families(tmp_path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["Whatever"]}))
    with pytest.raises(
        ValueError, match=r"expected one of \[.*\]: this package loads LLaDA-8B, .*DiffuCoder, A2D-Qwen3, .* \(in "
    ):
        sparsed.load_model(tmp_path)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, r"\(gptq\)"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, r"\(awq\)"),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, r"\(bitsandbytes\)"),
        ({"quantization_config": {"quant_method": "fp8"}}, r"\(fp8\)"),
        ({"quantization_config": {"bits": 4}}, ""),
        ({"quantization": {"group_size": 64, "bits": 4}}, ""),
        ({"compression_config": {"format": "pack-quantized"}}, r"\(pack-quantized\)"),
    ],
)
@pytest.mark.parametrize("name", ["llada_8b", "illada_8b", "dream_7b"])
def test_quantised_weights_are_named(tmp_path, name, changes, named) -> None:
    (key,) = changes
    (tmp_path / "config.json").write_text(json.dumps(tiny_config(name, **changes)))
    with pytest.raises(ValueError, match=rf"^load_model: {key} is .*quantised weights {named}.*not read") as error:
        sparsed.load_model(tmp_path)
    assert "checkpoint that they were made from" in str(error.value)


# Folders ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_config", [False, True])
@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["pytorch_model.bin"], "pickled.*save_file of safetensors"),
        (["pytorch_model-00001-of-00004.bin", "pytorch_model.bin.index.json"], "pickled"),
        (["model.pt"], "pickled"),
        (["consolidated.00.pth"], "pickled"),
        (["model-00001-of-00006.safetensors"], r"model\.safetensors\.index\.json"),
        (["model.fp16.safetensors"], r"another name than model\.safetensors"),
        (["tf_model.h5"], "TensorFlow"),
        (["flax_model.msgpack"], "Flax"),
        (["model.onnx"], "ONNX"),
        (["model_index.json", "unet/config.json"], "diffusers"),
        (["snapshots/0f1e/config.json", "refs/main"], "Hugging Face cache"),
        (["LLaDA-8B/config.json"], "in a folder below it"),
        (["tokenizer.json", "tokenizer_config.json"], "tokenizer without a model: load_tokenizer"),
        (["vocab.json", "merges.txt"], "tokenizer without a model"),
    ],
)
def test_folders_without_a_model_are_described(tmp_path, files, expected, with_config) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"{}")
    missing = "config.json does not exist"
    if with_config:
        (tmp_path / "config.json").write_text(json.dumps(tiny_config("llada_8b")))
        missing = r"neither model\.safetensors nor model\.safetensors\.index\.json"
    with pytest.raises(FileNotFoundError, match=rf"^load_model: .*{missing}.*; the folder holds .*{expected}"):
        sparsed.load_model(tmp_path)


def test_weights_without_a_config_are_not_described(tmp_path) -> None:
    write_checkpoint(tmp_path, tiny_config("llada_8b"))
    (tmp_path / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.json does not exist$"):
        sparsed.load_model(tmp_path)


def test_adapters_are_named(tmp_path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"^load_model: .* is a PEFT adapter, .*merge_and_unload"):
        sparsed.load_model(tmp_path)
    write_checkpoint(tmp_path, tiny_config("llada_8b"))
    with pytest.raises(ValueError, match=r"^load_model: .* is a model with an adapter_config\.json, expected one"):
        sparsed.load_model(tmp_path)


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("adapter_config.json", "a PEFT adapter"),
        ("snapshots/0f1e/config.json", "Hugging Face cache"),
        ("tokenizer_config.json", "exist in"),
    ],
)
def test_folders_without_a_tokenizer_are_described(tmp_path, file, expected):
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text("{}")
    with pytest.raises(FileNotFoundError, match=f"^load_tokenizer: neither .*{expected}") as caught:
        sparsed.load_tokenizer(tmp_path)
    assert "without a model" not in str(caught.value)


# Paths --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("load", [sparsed.load_model, sparsed.load_tokenizer], ids=["load_model", "load_tokenizer"])
class TestPaths:
    @pytest.mark.parametrize(
        ("content", "expected"),
        [
            (POINTER, "it is a Git LFS pointer.*git lfs pull.*hf download"),
            (b"PK\x03\x04" + bytes(80), "it is pickled PyTorch weights"),
            (b"\x80\x02\x8a\x0a" + bytes(80), "it is pickled PyTorch weights"),
            (b"<!DOCTYPE html><html>", "it is a web page"),
            (b"", "it is a file, and the model is its folder"),
            (b"\x80\x02\x00\x00\x00\x00\x00\x00{}", "it is a file, and the model is its folder"),
        ],
    )
    def test_files(self, tmp_path, load, content, expected) -> None:
        path = tmp_path / "model.bin"
        path.write_bytes(content)
        with pytest.raises(FileNotFoundError, match=rf"^{load.__name__}: folder is .*model\.bin.*{expected}"):
            load(path)

    @pytest.mark.parametrize(
        ("content", "expected"),
        [
            (b"", "it is an empty file"),
            (b"GGU", "it is no GGUF file: it does not begin with GGUF"),
            (bytes(100), "it is no GGUF file: it does not begin with GGUF"),
            (POINTER, "it is a Git LFS pointer"),
        ],
    )
    def test_files_with_the_name_of_a_gguf_file(self, tmp_path, load, content, expected) -> None:
        path = tmp_path / "model.gguf"
        path.write_bytes(content)
        with pytest.raises(FileNotFoundError, match=rf"^{load.__name__}: folder is .*model\.gguf.*{expected}"):
            load(path)

    def test_a_truncated_gguf_file(self, tmp_path, load) -> None:
        path = tmp_path / "model.gguf"
        path.write_bytes(b"GGUF\x03\0\0\0")
        expected = r"model\.gguf is truncated or damaged: .* reaches to byte 16, but the file ends at byte 8$"
        with pytest.raises(ValueError, match=f"^{load.__name__}: .*{expected}"):
            load(path)

    def test_a_file_of_the_folder_leads_to_the_folder(self, tmp_path, load) -> None:
        write_checkpoint(tmp_path, tiny_config("llada_8b"))
        for name in ("config.json", "model.safetensors"):
            with pytest.raises(FileNotFoundError, match="'demo': it is a file, and") as error:
                load(tmp_path / name)
            assert str(tmp_path) in str(error.value).partition("its folder")[2]

    @pytest.mark.parametrize(
        "name",
        [
            "GSAI-ML/LLaDA-8B-Instruct",
            "https://huggingface.co/GSAI-ML/LLaDA-8B-Instruct",
            "https://huggingface.co/GSAI-ML/LLaDA-8B-Instruct/tree/main",
            "huggingface.co/GSAI-ML/LLaDA-8B-Instruct/",
            "hf://GSAI-ML/LLaDA-8B-Instruct",
        ],
    )
    def test_names_of_hugging_face_lead_to_the_download(self, load, name) -> None:
        with pytest.raises(FileNotFoundError, match=rf"^{load.__name__}: folder is '{name}', expected an ") as error:
            load(name)
        assert "hf download GSAI-ML/LLaDA-8B-Instruct --local-dir LLaDA-8B-Instruct" in str(error.value)

    @pytest.mark.parametrize("folder", [None, 3, b"model", ["model"]])
    def test_what_is_no_path(self, load, folder) -> None:
        with pytest.raises(TypeError, match=rf"^{load.__name__}: folder is .*, expected a path"):
            load(folder)


# Git LFS ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "generation_config.json",
        "model.safetensors.index.json",
        "model-00002-of-00002.safetensors",
    ],
)
def test_git_lfs_pointers_in_a_model(tmp_path, name) -> None:
    write_checkpoint(tmp_path, tiny_config("llada_8b"), shards=2)
    (tmp_path / name).write_bytes(POINTER)
    with pytest.raises(ValueError, match=rf"{name} is a Git LFS pointer.*`git lfs pull` \(or with `hf download`\)"):
        sparsed.load_model(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"])
def test_git_lfs_pointers_in_a_tokenizer(tmp_path, name) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0}))
    (tmp_path / "merges.txt").touch()
    (tmp_path / name).write_bytes(POINTER)
    with pytest.raises(ValueError, match=rf"{name} is a Git LFS pointer.*git lfs pull"):
        sparsed.load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (POINTER, "is a Git LFS pointer"),
        (POINTER.replace(b"git-lfs", b"hawser"), "is a Git LFS pointer"),
        (GGUF, "is a GGUF file: give load_model the path"),
        (b"PK\x03\x04" + bytes(80), "is pickled PyTorch weights"),
        (b"<!doctype html>\n<html>", "is a web page"),
        (b"something else", "is truncated or not a safetensors file"),
    ],
)
def test_weights_of_another_kind_under_the_name_of_safetensors(tmp_path, content, expected) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=rf"model\.safetensors {expected}"):
        SafetensorsFile(tmp_path / "model.safetensors")


def test_models_that_load_are_in_no_table() -> None:
    for text in (b"{}", b'{"architectures": ["LLaDAModelLM"]}', b"version 2 of the story", b"GG"):
        assert recognise.first_bytes(text) is None
    assert recognise.quantised("torch_dtype", "bfloat16") is None
