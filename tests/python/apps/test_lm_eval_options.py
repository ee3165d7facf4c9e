"""The arguments of `SparsedLM` and of lm-eval's own flags; batch sizes; what lm-eval's caches know requests by."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance
from lm_eval.api.model import CachingLM
from lm_eval.api.registry import get_model

import sparsed
from sparsed import LLaDASampler, MDLMSampler
from sparsed.apps.demo import demo_model_folder
from sparsed.apps.lm_eval import SparsedLM, main
from sparsed.apps.lm_eval.batches import BatchSize, largest_divisor
from tiny_tokenizers import write_folder

MODEL = demo_model_folder()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("model") / "bytes")


def requests_of(kind, *arguments):
    return [Instance(kind, {}, args, index) for index, args in enumerate(arguments)]


# --- arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": "many"}, "SparsedLM: batch_size is 'many', expected an integer of at least 1, \"auto\""),
        ({"batch_size": "auto:0"}, "SparsedLM: batch_size is 'auto:0'"),
        ({"batch_size": True}, "SparsedLM: batch_size is True"),
        ({"batch_size": 0}, "SparsedLM: batch_size is 0"),
        ({"max_batch_size": 0}, "SparsedLM: max_batch_size is 0, expected an integer >= 1"),
        ({"max_length": 0}, "SparsedLM: max_length is 0, expected an integer >= 1"),
        ({"gen_length": 0}, "SparsedLM: gen_length is 0, expected an integer >= 1"),
        ({"steps": 0}, "SparsedLM: steps is 0, expected an integer >= 1"),
        ({"alg": "entropy"}, "SparsedLM: alg given, expected only options that apply .* llada family"),
        ({"cfg": 0.5}, r"SparsedLM: cfg given, .* \(cfg is called cfg_scale here; the model is of the llada family"),
        ({"rho": 0.5}, "SparsedLM: rho given, expected only options that apply .* sparse is False"),
        ({"sparse": "dense"}, "SparsedLM: sparse is 'dense', expected True, False or one of"),
        ({"device_map": "auto"}, "load_model: device_map is given, expected engine 'torch' with it"),
        ({"backend": "seq2seq"}, "SparsedLM: backend is 'seq2seq', expected None or 'default' or 'causal'"),
        ({"revision": "v2"}, "SparsedLM: revision is 'v2', expected None or 'main'"),
        ({"truncation": True}, "SparsedLM: truncation is True, expected None or False"),
        ({"softmax_dtype": "float64"}, "SparsedLM: softmax_dtype is 'float64', expected None or 'float32'"),
        ({"mixed_precision_dtype": "bfloat16"}, "SparsedLM: mixed_precision_dtype is 'bfloat16', expected None"),
        ({"use_fast_tokenizer": False}, "SparsedLM: use_fast_tokenizer is False, expected None or True"),
        ({"parallelize": True}, "SparsedLM: parallelize is True, expected None or False .*device_map=auto"),
        ({"peft": "adapter"}, "SparsedLM: peft is 'adapter', expected None"),
        ({"load_in_4bit": True}, "SparsedLM: load_in_4bit is True, expected None or False"),
        ({"gguf_file": "model.gguf"}, "SparsedLM: gguf_file is 'model.gguf', expected None"),
        ({"dtype": "float16"}, "load_model: dtype is 'float16', expected one of"),
        ({"threshold": 0.9, "factor": 1.0}, "LLaDASampler: threshold and factor are given, expected at most one"),
        ({"enable_thinking": True}, "SparsedLM: enable_thinking is True, expected think_end_token with it"),
        ({"kv_cache": "triple"}, "SparsedLM: kv_cache is 'triple', expected one of"),
        ({"preset": "quick"}, "preset: name is 'quick', expected one of 'exact', 'balanced', 'fast'"),
        ({"preset": "fast", "sparse": True}, "SparsedLM: preset is 'fast' with sparse or kv_cache, expected only one"),
        ({"preset": "fast", "refresh": 2}, "SparsedLM: refresh given, .*the preset fast decides attention and cache"),
        ({"kv_cache": ["dual"]}, r"SparsedLM: kv_cache is \['dual'\], expected one of"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_refused_values(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        SparsedLM(MODEL, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": "none"}, "SparsedLM: seed is 'none', expected an integer or None"),
        ({"prefix_token_id": "<bos>"}, "SparsedLM: prefix_token_id is '<bos>', expected an integer or None"),
        ({"steps": 2.5}, "SparsedLM: steps is 2.5, expected an integer or None"),
        ({"escape_until": "yes"}, "SparsedLM: escape_until is 'yes', expected True or False"),
        ({"add_bos_token": 1}, "SparsedLM: add_bos_token is 1, expected True or False or None"),
        ({"chat_template_args": "a=1"}, "SparsedLM: chat_template_args is 'a=1', expected names and values"),
        ({"think_end_token": 1.5}, "SparsedLM: think_end_token is 1.5, expected a token or its id"),
        ({"sparse": 1}, "SparsedLM: sparse is 1, expected True, False, a name"),
    ],
)
def test_refused_types(options, message) -> None:
    with pytest.raises(TypeError, match=message):
        SparsedLM(MODEL, **options)


def test_options_that_need_fewer_steps_are_arguments(folder) -> None:
    lm = SparsedLM(folder, block_length=8, entropy_bound=0.1, early_commit=True, confidence_eos_eot_inf=False)
    assert lm.sampler == LLaDASampler(block_length=8, entropy_bound=0.1, early_commit=True)


def test_caches_and_presets_are_arguments(folder) -> None:
    lm = SparsedLM(folder, kv_cache="dual", refresh=3, refresh_every=2, sparse=True, skip=0, block_length=8)
    assert lm.kv_cache == sparsed.DualCache(3, 2) and lm.sparse == sparsed.SparseConfig(skip=0)
    assert SparsedLM(folder, kv_cache="prefix", refresh_every=0).kv_cache == sparsed.PrefixCache(refresh_every=None)
    assert SparsedLM(folder, preset="fast", factor=1.0).sampler == LLaDASampler(32, factor=1.0)
    lm = SparsedLM(folder, preset="balanced", threshold=0.8)
    expected = sparsed.preset("balanced", lm.model)
    assert (lm.kv_cache, lm.sparse) == (expected["kv_cache"], expected["sparse"])
    assert lm.sampler == LLaDASampler(32, threshold=0.8)


def test_arguments_of_the_hf_backend_that_ask_for_nothing_special() -> None:
    asked = "trust_remote_code=True,backend=causal,revision=main,truncation=False,logits_cache=False,parallelize=False"
    asked += ",use_fast_tokenizer=True,softmax_dtype=float32,peft=None,dtype=auto,add_bos_token=False"
    flags = {"batch_size": "2", "max_batch_size": None, "device": "cpu"}
    lm = get_model("sparsed").create_from_arg_string(f"pretrained={MODEL},{asked}", flags)
    assert (lm.batch_size, lm.model.dtype) == (2, sparsed.load_model(MODEL).dtype)


@pytest.mark.parametrize(("device", "warns"), [("cuda:0", True), ("cpu", False), (None, False)])
def test_the_native_engine_says_that_it_uses_no_device(folder, device, warns, caplog) -> None:
    SparsedLM(folder, device=device)
    assert ("but engine=native runs on the CPU" in caplog.text) == warns


def test_dtype_and_weights_are_those_of_load_model(folder) -> None:
    assert (
        SparsedLM(folder).model.dtype == SparsedLM(folder, dtype="auto").model.dtype == sparsed.load_model(folder).dtype
    )
    for dtype in ("float32", "bfloat16"):
        assert SparsedLM(folder, dtype=dtype).model.dtype == dtype
    lm = get_model("sparsed").create_from_arg_string(f"pretrained={folder},weights=int8", {})
    assert lm.model.weights == "int8"
    with pytest.raises(ValueError, match="load_in_8bit is True, expected None or False .weights=int8 quantises"):
        SparsedLM(folder, load_in_8bit=True)


def test_subfolder_and_tokenizer(tmp_path, folder) -> None:
    write_folder(tmp_path / "words", "words")
    lm = SparsedLM(tmp_path, subfolder="words")
    assert lm.tokenizer.vocab_size == sparsed.load_tokenizer(tmp_path / "words").vocab_size
    assert SparsedLM(MODEL, tokenizer=folder).tok_encode("naïve") == SparsedLM(folder).tok_encode("naïve")


def test_a_bos_token_that_is_not_there(tmp_path, caplog) -> None:
    write_folder(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    del settings["bos_token"], settings["eos_token"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    lm = SparsedLM(tmp_path, add_bos_token=True)
    assert "add_bos_token has no effect: the tokenizer has no bos token" in caplog.text
    assert lm.prefix_token_id == lm.eot_token_id == lm.model.config.eos_token_id
    lm.model = type("Model", (), {"config": sparsed.load_model(tmp_path).config})()
    object.__setattr__(lm.model.config, "eos_token_id", None)
    with pytest.raises(ValueError, match="SparsedLM: .* has no bos or eos token, expected one"):
        lm.tok_encode("a")


@pytest.mark.parametrize(("numpy_seed", "same"), [(1, True), (2, False)])
def test_a_seed_of_none_follows_numpy(folder, numpy_seed, same) -> None:
    request = requests_of("loglikelihood", ("the sun", " is yellow. naïve"))
    values = []
    for seed in (1, numpy_seed):
        lm = SparsedLM(folder, seed=None, mc_num=2, is_check_greedy=False)
        np.random.seed(seed)
        values.append(lm.loglikelihood(request, disable_tqdm=True))
    assert (values[0] == values[1]) == same


@pytest.mark.parametrize(
    ("arguments", "warns"),
    [
        (["--seed", "3"], True),
        (["--seed=3", "--model_args", "pretrained=model"], True),
        (["--seed", "3", "--model_args", "pretrained=model,seed=None"], False),
        (["--seed", "3", "--model_args", "seed=3", "pretrained=model"], False),
        (["--model_args", "pretrained=model"], False),
    ],
)
def test_the_seed_of_the_harness_is_another_one(arguments, warns, monkeypatch, caplog) -> None:
    given = []
    monkeypatch.setattr("lm_eval.__main__.cli_evaluate", lambda: given.append(sys.argv))
    assert main(arguments) == 0 and given == [["lm-eval", *arguments]]
    assert ("--seed changes examples and orders, but not sampling and masks" in caplog.text) == warns


@pytest.mark.parametrize("given", ["linear:2", {"rope_type": "linear", "factor": 2}, '{"type": "linear", "factor": 2}'])
def test_rope_scaling(folder, given) -> None:
    assert SparsedLM(folder).max_length == 64
    assert SparsedLM(folder, rope_scaling=given).max_length == 128
    assert SparsedLM(folder, rope_scaling=given, max_length=70).max_length == 70
    with pytest.raises(ValueError, match="^SparsedLM: rope_scaling is 'linear', expected TYPE:NUMBER"):
        SparsedLM(folder, rope_scaling="linear")


def test_a_model_of_the_a2d_family_takes_the_options_of_its_sampler(tmp_path) -> None:
    write_folder(tmp_path, family="a2d_qwen3")
    assert SparsedLM(tmp_path, block_length=8, threshold=0.5).sampler == MDLMSampler(block_length=8, threshold=0.5)
    with pytest.raises(ValueError, match="alg given, .* a2d family"):
        SparsedLM(tmp_path, alg="entropy")


# --- batch sizes -----------------------------------------------------------------------------------------------------


class Scarce:
    """Memory for `rows` rows; `tried` counts what was asked for."""

    def __init__(self, rows, error=MemoryError):
        self.rows, self.error, self.tried = rows, error, []

    def __call__(self, items):
        self.tried.append(len(items))
        if len(items) > self.rows:
            raise self.error("too much")
        return list(items)


class OutOfMemoryError(RuntimeError):
    """As torch calls it."""


@pytest.mark.parametrize("error", [MemoryError, OutOfMemoryError])
@pytest.mark.parametrize(
    ("given", "maximum", "tried"),
    [
        ("auto", None, [20, 10, 5, 5, 5, 5]),
        ("auto", 8, [8, 4, 4, 4, 4, 4]),
        ("auto:2", 8, [8, 4, 4, 4, 8, 4, 4]),
        (4, None, [4, 4, 4, 4, 4]),
    ],
)
def test_rows_that_fit_into_memory(given, maximum, tried, error) -> None:
    work = Scarce(5, error)
    done = [item for _, result in BatchSize(given, maximum).run(range(20), work) for item in result]
    assert done == list(range(20)) and work.tried == tried


@pytest.mark.parametrize(("given", "error"), [(8, MemoryError), ("auto", RuntimeError), ("auto", ValueError)])
def test_other_errors_end_a_run(given, error) -> None:
    with pytest.raises(error, match="too much"):
        list(BatchSize(given).run(range(20), Scarce(0, error)))


def test_not_even_one_row_fits() -> None:
    work = Scarce(0)
    with pytest.raises(MemoryError):
        list(BatchSize("auto").run(range(3), work))
    assert work.tried == [3, 1]


@pytest.mark.parametrize(("number", "at_most", "expected"), [(128, 64, 64), (30, 16, 15), (7, 6, 1), (4, 64, 4)])
def test_largest_divisor(number, at_most, expected) -> None:
    assert largest_divisor(number, at_most) == expected


def test_auto_gives_what_a_number_gives(folder, monkeypatch) -> None:
    texts = [(text, {"max_gen_toks": 4}) for text in ("the sun", "a b", "def f(x):", "", "naïve")]
    expected = SparsedLM(folder, batch_size=1).generate_until(requests_of("generate_until", *texts), disable_tqdm=True)
    sizes = []

    def scarce(model, prompts, **options):
        sizes.append(len(prompts))
        if len(prompts) > 2:
            raise MemoryError
        return sparsed.generate(model, prompts, **options)

    monkeypatch.setattr("sparsed.apps.lm_eval.model.generate", scarce)
    lm = SparsedLM(folder, batch_size="auto", max_batch_size=4)
    assert lm.batch_size == "auto"
    assert lm.generate_until(requests_of("generate_until", *texts), disable_tqdm=True) == expected
    assert sizes == [4, 2, 2, 1]


def test_auto_draws_a_divisor_of_the_masks(folder, monkeypatch) -> None:
    sizes = []

    def scarce(model, prefix, target, *, batch_size, **options):
        sizes.append(batch_size)
        if batch_size > 4:
            raise MemoryError
        return sparsed.generation.likelihood.log_likelihood(model, prefix, target, batch_size=batch_size, **options)

    monkeypatch.setattr("sparsed.apps.lm_eval.model.log_likelihood", scarce)
    lm = SparsedLM(folder, batch_size="auto", mc_num=12, is_check_greedy=False)
    ((value, _),) = lm.loglikelihood(requests_of("loglikelihood", ("a", " sun is")), disable_tqdm=True)
    assert np.isfinite(value) and sizes == [12, 6, 3]
    lm = SparsedLM(folder, batch_size="auto", sparse=True)
    with pytest.raises(ValueError, match='loglikelihood: batch_size is "auto", expected a number with SparseConfig'):
        lm.loglikelihood(requests_of("loglikelihood", ("a", " sun is")), disable_tqdm=True)


# --- chat templates and caches ---------------------------------------------------------------------------------------


def test_the_demo_conversation() -> None:
    lm = SparsedLM(MODEL)
    turns = [{"role": "user", "content": "the sun"}, {"role": "assistant", "content": " is "}]
    assert lm.apply_chat_template(turns[:1]) == "<bos> user : the sun assistant :"
    assert lm.apply_chat_template(turns, add_generation_prompt=False) == "<bos> user : the sun assistant :  is "
    assert lm.chat_template(True) == lm.tokenizer.chat_template


@pytest.mark.parametrize("last", ["Answer:", "Answer: ", "def f():\n    ", "\n", "", "<|end|>"])
def test_a_message_to_be_continued_keeps_its_spaces(folder, last) -> None:
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": last}]
    text = SparsedLM(folder).apply_chat_template(messages, add_generation_prompt=False)
    assert text == "<bos><|user|>q<|end|><|assistant|>" + last


def test_a_template_without_a_role_of_the_system(tmp_path, caplog) -> None:
    refuse = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no such role') }}{% endif %}"
    lm = SparsedLM(write_folder(tmp_path, template=refuse + "[{{ m.content }}]{% endfor %}"))
    user = {"role": "user", "content": "q"}
    assert lm.apply_chat_template([{"role": "system", "content": "be brief"}, user]) == "[q]"
    assert "no such role; the system messages are left out" in caplog.text
    lm = SparsedLM(write_folder(tmp_path, template="{{ raise_exception('never') }}"))
    with pytest.raises(ValueError, match="the chat template failed: never"):
        lm.apply_chat_template([user])


@pytest.mark.parametrize("where", ["list", "folder"])
def test_a_name_selects_a_chat_template(tmp_path, where) -> None:
    write_folder(tmp_path)
    templates = {"default": "D {{ messages[0].content }}", "rag": "R {{ messages[0].content }}"}
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    if where == "list":
        settings["chat_template"] = [{"name": name, "template": text} for name, text in templates.items()]
    else:
        del settings["chat_template"]
        (tmp_path / "chat_template.jinja").write_text(templates["default"])
        (tmp_path / "additional_chat_templates").mkdir()
        (tmp_path / "additional_chat_templates" / "rag.jinja").write_text(templates["rag"])
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    lm = SparsedLM(tmp_path)
    messages = [{"role": "user", "content": "q"}]
    assert lm.apply_chat_template(messages) == "D q"
    before = lm.tokenizer_name
    assert lm.chat_template("rag") == templates["rag"] and lm.apply_chat_template(messages) == "R q"
    assert lm.tokenizer_name != before
    with pytest.raises(ValueError, match=r"'chat' is not available.*'default', 'rag'"):
        lm.chat_template("chat")


def test_a_name_for_the_only_chat_template_is_a_warning(folder, caplog) -> None:
    lm = SparsedLM(folder)
    assert lm.chat_template("rag") == lm.tokenizer.chat_template
    assert "Chat template name provided" in caplog.text


def test_cached_requests_belong_to_a_template(tmp_path) -> None:
    write_folder(tmp_path)
    name = SparsedLM(tmp_path).tokenizer_name
    assert "/" not in name and SparsedLM(tmp_path).tokenizer_name == name
    assert SparsedLM(tmp_path, chat_template_args={"tone": "dry"}).tokenizer_name != name
    assert SparsedLM(tmp_path, enable_thinking=False).tokenizer_name != name
    write_folder(tmp_path, template="{{ messages[0].content }}")
    assert SparsedLM(tmp_path).tokenizer_name != name


def test_answers_are_cached(tmp_path, folder, monkeypatch) -> None:
    pytest.importorskip("sqlitedict")
    texts = requests_of("generate_until", ("the sun", {"until": ["\n"], "max_gen_toks": 4}), ("a", {"max_gen_toks": 4}))
    pairs = requests_of("loglikelihood", ("the sun", " is"), ("", "sun"))
    rolling = requests_of("loglikelihood_rolling", ("the sun is yellow.",), ("",))
    lm = CachingLM(SparsedLM(folder, mc_num=2), str(tmp_path / "answers.db"))
    first = [lm.generate_until(texts), lm.loglikelihood(pairs), lm.loglikelihood_rolling(rolling)]
    for name in ("generate", "log_likelihood"):
        monkeypatch.setattr(f"sparsed.apps.lm_eval.model.{name}", None)
    again = [lm.generate_until(texts), lm.loglikelihood(pairs), lm.loglikelihood_rolling(rolling)]
    assert [list(map(tuple, again[1])), again[0], again[2]] == [first[1], first[0], first[2]]
