"""sparsed in lm-eval: the harness' own command line on local tasks, and the model's methods."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance

import sparsed
from sparsed.apps.demo import demo_model_folder
from sparsed.apps.lm_eval import SparsedLM
from sparsed.generation.likelihood import is_greedy, log_likelihood
from tiny_checkpoint import tiny_config, write_checkpoint
from tiny_tokenizers import write_folder

MODEL = demo_model_folder()
FACTS = {"zileba": "107", "trostan": "567", "dinin": "987"}
QUESTION = "the sun is yellow . the magic number for {} is {} . question : what are the magic numbers for {} ?"


@pytest.fixture(scope="module")
def dream(tmp_path_factory):
    """A tiny random Dream with the demo tokenizer."""
    folder = tmp_path_factory.mktemp("dream")
    tokens = {"mask_token_id": 3, "eos_token_id": 2, "pad_token_id": 0, "bos_token_id": 1}
    write_checkpoint(folder, tiny_config("dream_7b", vocab_size=1579, max_position_embeddings=64, **tokens))
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(MODEL / name, folder)
    return folder


@pytest.fixture(scope="module")
def joined(tmp_path_factory):
    """A tiny random LLaDA whose tokenizer merges "ab" and "cd"."""
    return write_folder(tmp_path_factory.mktemp("model") / "joined", "joined")


def requests_of(kind, *arguments):
    return [Instance(kind, {}, args, index) for index, args in enumerate(arguments)]


# --- the command line ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """Three tasks, one of each output type, as files that lm-eval reads."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = []
    for name, number in FACTS.items():
        choices = [f"{name} is {value} ;" for value in (number, number[::-1])]
        rows.append({"question": QUESTION.format(name, number, name), "answer": choices[0], "choices": choices})
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    shared = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "doc_to_text": "{{question}}",
    }
    kinds = {
        "local_generate": {
            "output_type": "generate_until",
            "doc_to_target": "{{answer}}",
            "generation_kwargs": {"until": ["<eos>"], "max_gen_toks": 8},
            "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        },
        "local_choice": {
            "output_type": "multiple_choice",
            "doc_to_choice": "choices",
            "doc_to_target": 0,
            "target_delimiter": " ",
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        },
        "local_texts": {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{answer}}",
            "metric_list": [{"metric": "word_perplexity"}],
        },
    }
    for name, values in kinds.items():
        (folder / f"{name}.yaml").write_text(json.dumps({"task": name} | shared | values))  # JSON is YAML
    return folder


def run_harness(tmp_path, tasks, names, model_args, *more):
    command = [sys.executable, "-m", "sparsed", "lm-eval", "--model", "sparsed", "--model_args", model_args]
    command += ["--tasks", names, "--include_path", str(tasks), "--output_path", str(tmp_path / "out"), *more]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    offline["LM_HARNESS_CACHE_PATH"] = str(tmp_path / "requests")
    run = subprocess.run(command, capture_output=True, text=True, env=os.environ | offline, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]
    (results,) = (tmp_path / "out").rglob("results_*.json")
    return json.loads(results.read_text())["results"]


@pytest.mark.slow
def test_every_output_type(tmp_path, tasks) -> None:
    # A rolling likelihood has a prefix of one token: only the published rule leaves it rows that can be sparse.
    sparse = "sparse=true,min_length=0,block_size=16,rho=0.9,skip=0.5,generation=sparse"
    model_args = f"pretrained={MODEL},mc_num=8,is_check_greedy=false,steps=8,{sparse}"
    names = "local_generate,local_choice,local_texts"
    results = run_harness(tmp_path, tasks, names, model_args, "--batch_size", "2", "--apply_chat_template")
    assert results["local_generate"]["exact_match,none"] == 1
    assert results["local_choice"]["acc,none"] == 1
    assert results["local_texts"]["word_perplexity,none"] > 1


@pytest.mark.slow
def test_flags_of_the_harness(tmp_path, tasks) -> None:
    """What every model of lm-eval is given: the demo model's template has no role of the system."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "special_tokens_map.json"):
        shutil.copy(MODEL / name, folder)
    settings = json.loads((MODEL / "tokenizer_config.json").read_text())
    refuse = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    settings["chat_template"] = refuse + settings["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    flags = ["--trust_remote_code", "--batch_size", "auto:2", "--max_batch_size", "4", "--device", "cpu"]
    flags += ["--apply_chat_template", "--system_instruction", "be brief", "--cache_requests", "true"]
    flags += ["--gen_kwargs", "until=;", "--use_cache", str(tmp_path / "answers")]
    model_args = f"pretrained={folder},mc_num=8,is_check_greedy=false,add_bos_token=true,max_length=256"
    results = run_harness(tmp_path, tasks, "local_generate,local_choice", model_args, *flags)
    assert results["local_generate"]["exact_match,none"] == 0  # the answers have a semicolon at the end
    assert results["local_choice"]["acc,none"] == 1


def test_no_lm_eval(tmp_path) -> None:
    """Where it is not installed, the command says how to get it."""
    (tmp_path / "lm_eval.py").write_text("raise ModuleNotFoundError(\"No module named 'lm_eval'\", name='lm_eval')")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "sparsed", "lm-eval", "--tasks", "arc"]
    run = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path})
    assert run.returncode == 2 and "lm-eval is not installed, expected the extra eval" in run.stderr


# --- generation ------------------------------------------------------------------------------------------------------


def ask():
    tokenizer = sparsed.load_tokenizer(MODEL)
    filler = ("", "the sky is blue . ", "here we go . the grass is green . ")
    return [
        tokenizer.apply_chat_template([{"role": "user", "content": more + QUESTION.format(name, number, name)}])
        for more, (name, number) in zip(filler, FACTS.items(), strict=True)
    ]


@pytest.mark.parametrize("options", [{}, {"sparse": sparsed.SparseConfig(block_size=16, rho=0.9, min_length=0)}])
def test_batches_give_what_each_text_gets_alone(options) -> None:
    texts = {}
    for batch_size in (1, 3):
        lm = SparsedLM(MODEL, batch_size=batch_size, **options)
        arguments = [(text, {"until": ["<eos>"], "max_gen_toks": 8}) for text in ask()]
        texts[batch_size] = lm.generate_until(requests_of("generate_until", *arguments), disable_tqdm=True)
    assert texts[1] == texts[3] == [f"{name} is {number} ;" for name, number in FACTS.items()]


def test_generation_options(monkeypatch, caplog) -> None:
    calls = []

    def note(model, prompts, **options):
        calls.append(options)
        return sparsed.generate(model, prompts, gen_length=4, steps=1)

    monkeypatch.setattr("sparsed.apps.lm_eval.model.generate", note)
    (text, *_) = ask()

    def options_of(gen_kwargs, **options):
        SparsedLM(MODEL, **options).generate_until(requests_of("generate_until", (text, gen_kwargs)), disable_tqdm=True)
        return calls[-1]

    made = options_of({"until": [], "max_gen_toks": 16, "temperature": 0.0})
    assert (made["gen_length"], made["steps"], made["seed"]) == (16, 16, 0)
    assert made["sampler"] == sparsed.LLaDASampler() and made["sparse"] is None
    made = options_of({"max_gen_toks": 16, "do_sample": True, "temperature": 0.5}, gen_length=32, steps=8, seed=5)
    assert (made["gen_length"], made["steps"], made["seed"]) == (32, 8, 5)
    assert made["sampler"] == sparsed.LLaDASampler(temperature=0.5)
    made = options_of({"do_sample": True, "temperature": 0.5}, temperature=0.0, block_length=8, sparse=True, rho=0.5)
    assert made["gen_length"] == 256
    assert made["sampler"] == sparsed.LLaDASampler(block_length=8) and made["sparse"] == sparsed.SparseConfig(rho=0.5)
    assert options_of({}, sparse="sliding_window", window=64)["sparse"] == sparsed.SlidingWindow(64)
    made = options_of({"do_sample": True, "top_p": 0.9}, gen_length=8)
    assert made["sampler"] == sparsed.LLaDASampler(temperature=1.0)
    assert "a task's top_p=0.9 has no effect: not an option of LLaDASampler" in caplog.text
    made = options_of({"do_sample": False, "temperature": 0.5, "top_k": 3}, gen_length=8)
    assert made["sampler"] == sparsed.LLaDASampler()


def test_stop_strings() -> None:
    request = requests_of("generate_until", (ask()[0], {"until": [" 701", " 107"], "max_gen_toks": 8}))
    assert SparsedLM(MODEL).generate_until(request, disable_tqdm=True) == ["zileba is"]
    assert SparsedLM(MODEL, escape_until=True).generate_until(request, disable_tqdm=True) == ["zileba is 107 ;"]


@pytest.mark.parametrize("until", [["<|end|>"], ["is", "<|end|>"], ["<|end|>", "sun<|"], [" sun", ""]], ids=str)
def test_special_tokens_stop_a_text(tmp_path, until) -> None:
    """Decoded texts do not show them."""
    lm = SparsedLM(write_folder(tmp_path))
    ids = np.array(lm.tok_encode("the sun<|end|> is yellow"))
    assert lm._answers.text(ids, until) == ("the" if " sun" in until else "the sun")
    assert lm._answers.text(ids, []) == "the sun is yellow"


@pytest.mark.parametrize(
    ("gen_kwargs", "error", "message"),
    [
        ({"until": [1]}, TypeError, r"generate_until: until is \[1\], expected a string or a list of strings"),
        ({"max_gen_toks": 0}, ValueError, "generate_until: max_gen_toks is 0, expected at least 1"),
        ({"max_length": 2, "max_gen_toks": 8}, ValueError, "max_length is 2, expected more than the 2 tokens of"),
        ({"steps": 4}, ValueError, "generate_until: steps given, expected only gen_kwargs among .*--model_args"),
    ],
)
def test_refused_gen_kwargs(joined, gen_kwargs, error, message) -> None:
    with pytest.raises(error, match=message):
        SparsedLM(joined).generate_until(requests_of("generate_until", ("ac", gen_kwargs)), disable_tqdm=True)


def test_a_value_of_none_is_an_absent_one(joined) -> None:
    lm = SparsedLM(joined, max_length=512)
    none = dict.fromkeys(("until", "max_gen_toks", "temperature", "do_sample", "top_p"))
    assert lm._job(0, "ac", none) == lm._job(0, "ac", {})


def test_dream_generates(dream) -> None:
    lm = SparsedLM(dream, batch_size=2, alg="maskgit_plus", temperature=0.1, top_p=0.9)
    assert isinstance(lm.sampler, sparsed.DreamSampler)
    requests = requests_of("generate_until", *[(text, {"max_gen_toks": 4}) for text in ("", "the sun", "the sky is")])
    once, again = (lm.generate_until(requests, disable_tqdm=True) for _ in range(2))
    assert once == again and len(once) == 3


def test_a_task_decides_what_the_sampler_has(dream) -> None:
    lm = SparsedLM(dream, top_k=7)
    job = lm._job(0, "the sun", {"max_gen_toks": 4, "temperature": 0.2, "top_p": 0.95, "top_k": 5})
    assert dict(job.sampling) == {"temperature": 0.2, "top_p": 0.95}  # the model's own top_k stays


# --- likelihood ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["native", "torch"])
def test_loglikelihood(engine, monkeypatch) -> None:
    if engine == "torch":
        torch = pytest.importorskip("torch")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    # The harness' own command line gives this device where the user gives none.
    lm = SparsedLM(MODEL, "float32", engine=engine, device="cuda:0", mc_num=8, batch_size=4)
    (text, *_) = ask()
    requests = requests_of("loglikelihood", (text, " zileba is 107 ;"), (text, " zileba is 701 ;"), ("", "sun"))
    (right, greedy), (wrong, not_greedy), (single, _) = lm.loglikelihood(requests, disable_tqdm=True)
    assert right > wrong and greedy and not not_greedy
    model, tokenizer = sparsed.load_model(MODEL, "float32"), sparsed.load_tokenizer(MODEL)
    context = tokenizer.encode(text)
    answer = tokenizer.encode(" zileba is 107 ;", add_special_tokens=False)
    expected = log_likelihood(model, context, answer, samples=8, batch_size=4, seed=0)
    assert right == pytest.approx(expected, rel=1e-3)
    sun = tokenizer.encode("sun", add_special_tokens=False)
    expected = log_likelihood(model, [tokenizer.bos_token_id], sun, samples=4)
    assert single == pytest.approx(expected, rel=1e-3)
    assert not SparsedLM(MODEL, mc_num=1, is_check_greedy=False).loglikelihood(requests[:1], disable_tqdm=True)[0][1]


@pytest.mark.parametrize(
    ("context", "continuation", "before", "behind"),
    [
        ("a", "c", ["a"], ["c"]),
        ("ca", "b", ["c", "a"], ["b"]),  # together they are c, ab: no token is left for the b
        ("c", "d", ["c"], ["d"]),
        ("c", "dab", ["c"], ["ab"]),  # lm-eval scores what comes after the token that they share
        ("a ", "c", ["a"], [" ", "c"]),  # spaces belong to the continuation
        ("a ", "", ["a"], [" "]),
        ("  ", "c", ["<bos>"], [" ", " ", "c"]),
        ("", "<bos>c", ["<bos>"], ["c"]),
    ],
)
def test_tokens_that_span_the_join(joined, context, continuation, before, behind) -> None:
    lm = SparsedLM(joined, mc_num=2)
    ((value, greedy),) = lm.loglikelihood(requests_of("loglikelihood", (context, continuation)), disable_tqdm=True)
    prefix, target = ([lm.tokenizer.token_id(token) for token in tokens] for tokens in (before, behind))
    assert value == pytest.approx(log_likelihood(lm.model, prefix, target, samples=2, seed=0)) and value < 0
    assert greedy == is_greedy(lm.model, prefix, target)


@pytest.mark.parametrize(("context", "continuation"), [("a", ""), ("", ""), ("", "<bos>")])
def test_a_continuation_without_tokens(joined, context, continuation) -> None:
    request = requests_of("loglikelihood", ("a", "b"), (context, continuation))
    with pytest.raises(ValueError, match=f"loglikelihood: the continuation '{continuation}' of '{context}' has no tok"):
        SparsedLM(joined, mc_num=2).loglikelihood(request, disable_tqdm=True)


def test_dream_likelihoods_are_shifted(dream) -> None:
    lm = SparsedLM(dream, mc_num=2, add_bos_token=True)
    ((value, greedy),) = lm.loglikelihood(requests_of("loglikelihood", ("the", " sun")), disable_tqdm=True)
    model = sparsed.load_model(dream)
    the, sun = lm.tok_encode("the", add_special_tokens=False), lm.tok_encode("sun", add_special_tokens=False)
    logits = model.forward([[1, *the, 3]])[0, len(the)].astype(np.float64)
    assert value == pytest.approx(logits[sun[0]] - np.log(np.exp(logits).sum()), abs=1e-4)
    assert greedy == (int(np.argmax(logits)) == sun[0])


def test_rolling_windows_follow_each_other(dream) -> None:
    """64 tokens at most: a longer text is split, each part behind as much context as there is room for."""
    lm = SparsedLM(dream, mc_num=4, batch_size=4)
    text = "the sun is yellow . " * 20
    ids = lm.tok_encode(text, add_special_tokens=False)
    (value,) = lm.loglikelihood_rolling(requests_of("loglikelihood_rolling", (text,)), disable_tqdm=True)
    parts = [([1], ids[:63]), (ids[36:63], ids[63:])]
    model = sparsed.load_model(dream)
    expected = sum(log_likelihood(model, *part, samples=4, batch_size=4, seed=0) for part in parts)
    assert len(ids) == 100 and value == pytest.approx(expected, rel=1e-5)


def test_long_contexts_lose_their_beginning(dream, caplog) -> None:
    lm = SparsedLM(dream, mc_num=2, is_check_greedy=False)
    context = "the sky is blue . " * 20
    ((value, _),) = lm.loglikelihood(requests_of("loglikelihood", (context, " sun")), disable_tqdm=True)
    assert "loses all but its last 63" in caplog.text
    ids, sun = lm.tok_encode(context)[-63:], lm.tok_encode("sun", add_special_tokens=False)
    assert value == pytest.approx(log_likelihood(lm.model, ids, sun, samples=2), rel=1e-5)
    with pytest.raises(ValueError, match="64 tokens follow the context, expected less than max_length 64"):
        lm.generate_until(requests_of("generate_until", ("the", {"max_gen_toks": 64})), disable_tqdm=True)
