"""`SparsedLM` beside lm-eval's own `hf` backend, on the same tokenizers: tokens, prompts, stop strings, truncation."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("lm_eval")
pytest.importorskip("accelerate")
pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils_hf import stop_sequences_criteria

from sparsed.apps.lm_eval import SparsedLM
from tiny_tokenizers import CORPUS, KINDS, LENGTH, TEMPLATE, write_folder

PIECES = ["<bos>", "<eos>", "<|end|>", "<pad>", " ", "  ", "\n", "\n\n", "a", "b", "c", "d", "ab", "cd", "你", *CORPUS]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=6).map("".join)


def hf_of(folder, **options):
    marks = {"add_bos_token": options["add_bos_token"]} if "add_bos_token" in options else {}
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder, **marks)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=LENGTH,
    )
    return HFLM(transformers.LlamaForCausalLM(config), tokenizer=tokenizer, **options)


def make_pair(folder, **options):
    return hf_of(folder, **options), SparsedLM(folder, mc_num=1, is_check_greedy=False, **options)


@pytest.fixture(scope="module", params=KINDS)
def pair(request, tmp_path_factory):
    return make_pair(write_folder(tmp_path_factory.mktemp("model") / request.param, request.param))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("model") / "bytes")


def requests_of(kind, *arguments):
    return [Instance(kind, {}, args, index) for index, args in enumerate(arguments)]


# --- tokens ----------------------------------------------------------------------------------------------------------


@given(text=TEXTS, marks=st.sampled_from([None, True, False]), truncate=st.sampled_from([None, 3]))
def test_tokens_of_a_text(pair, text, marks, truncate) -> None:
    hf, lm = pair
    assert lm.tok_encode(text, marks, truncate) == hf.tok_encode(text, marks, truncate)


@pytest.mark.parametrize("kind", ["bytes", "bytes_bos"])
@pytest.mark.parametrize("add_bos_token", [True, False])
def test_add_bos_token(tmp_path, kind, add_bos_token) -> None:
    hf, lm = make_pair(write_folder(tmp_path, kind), add_bos_token=add_bos_token)
    for text in ("", "the sun", "<bos>the sun", " <bos>the sun", "<bos><bos>", "<eos>"):
        for marks in (None, True, False):
            assert lm.tok_encode(text, marks) == hf.tok_encode(text, marks), (text, marks)


def hf_split(hf, context, continuation):
    """What hf hands to the model for one request."""
    handed = []
    hf._loglikelihood_tokens = lambda requests, **_: handed.extend(requests)
    hf.loglikelihood(requests_of("loglikelihood", (context, continuation)), disable_tqdm=True)
    ((_, before, behind),) = handed
    return before, behind


@given(context=TEXTS, continuation=TEXTS)
def test_contexts_and_continuations_are_split_alike(pair, context, continuation) -> None:
    hf, lm = pair
    try:
        before, behind = hf_split(hf, context, continuation)
    except IndexError:  # an empty continuation of an empty context
        before, behind = [], []
    if behind:
        # hf cannot run without a context either.
        assert lm._encode_pair(context, continuation) == (before or [lm.prefix_token_id], behind)
        return
    # hf fails on a continuation without tokens. Here it is encoded on its own, with the spaces that hf moves to it.
    spaces = context[len(context.rstrip()) :] if context else ""
    alone = hf.tok_encode(spaces + continuation, add_special_tokens=False)
    if not alone or (not context and alone == [lm.prefix_token_id]):
        with pytest.raises(ValueError, match="has no tokens"):
            lm._encode_pair(context, continuation)
    else:
        assert lm._encode_pair(context, continuation) == (before or [lm.prefix_token_id], alone)


@pytest.mark.parametrize(("context", "continuation"), [("", ""), ("the sun", ""), ("", "<bos>")])
def test_a_continuation_without_tokens_is_refused_by_both(folder, context, continuation) -> None:
    hf, lm = make_pair(folder)
    request = requests_of("loglikelihood", (context, continuation))
    with pytest.raises((AssertionError, IndexError)):
        hf.loglikelihood(request, disable_tqdm=True)
    with pytest.raises(ValueError, match="has no tokens, expected at least one"):
        lm.loglikelihood(request, disable_tqdm=True)


@pytest.mark.parametrize("length", [0, 5, LENGTH, 3 * LENGTH])
def test_rolling_texts_have_the_same_tokens(pair, length) -> None:
    hf, lm = pair
    text = "<|end|>" * length
    scored = {}
    for model in (hf, lm):
        windows = []
        model._loglikelihood_tokens = lambda requests, windows=windows, **_: (
            windows.extend(requests) or [(-1.0, False)] * len(requests)
        )
        model.loglikelihood_rolling(requests_of("loglikelihood_rolling", (text,)), disable_tqdm=True)
        scored[model] = [token for _, _, behind in windows for token in behind]
        assert all(len(before) >= 1 for _, before, _ in windows)
    assert scored[lm] == scored[hf]
    assert all(len(before) + len(behind) <= LENGTH for _, before, behind in windows)


@pytest.mark.parametrize("prefix_token_id", [None, 5])
def test_special_tokens_of_the_model(pair, folder, prefix_token_id) -> None:
    hf, lm = pair if prefix_token_id is None else make_pair(folder, prefix_token_id=prefix_token_id)
    assert (lm.prefix_token_id, lm.eot_token_id) == (hf.prefix_token_id, hf.eot_token_id)
    assert lm.max_length == hf.max_length == LENGTH


# --- conversations ---------------------------------------------------------------------------------------------------

STRICT = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "[{{ m['content'] | trim }}]{% endfor %}"
)
SILENT = "{% for m in messages %}{{ m['role'] }}{% endfor %}"
CONTENTS = ["", " ", "\n", "Answer:", "Answer: ", "  Answer", "def f():\n    ", "<|end|>"]


@pytest.mark.parametrize("template", [TEMPLATE, STRICT, SILENT], ids=["open", "strict", "silent"])
@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_conversations(tmp_path, template, add_generation_prompt) -> None:
    hf, lm = make_pair(write_folder(tmp_path, template=template))
    for system in ([], [{"role": "system", "content": "be brief"}]):
        for content in CONTENTS:
            for last in ("user", "assistant"):
                chat = [*system, {"role": "user", "content": content}, {"role": last, "content": content}]
                try:
                    expected = hf.apply_chat_template(chat, add_generation_prompt)
                except ValueError:
                    with pytest.raises(ValueError, match="the last message|does not use 'content'"):
                        lm.apply_chat_template(chat, add_generation_prompt)
                else:
                    assert lm.apply_chat_template(chat, add_generation_prompt) == expected, chat


def test_a_conversation_of_the_system_only(tmp_path) -> None:
    hf, lm = make_pair(write_folder(tmp_path, template=STRICT))
    for model in (hf, lm):
        with pytest.raises(ValueError, match="empty"):
            model.apply_chat_template([{"role": "system", "content": "be brief"}])


@pytest.mark.parametrize(
    "options",
    [
        {"enable_thinking": True, "think_end_token": "</think>"},
        {"enable_thinking": False},
        {"chat_template_args": {"enable_thinking": True}},
        {"chat_template_args": {"bos_token": "BOS"}},
    ],
)
def test_variables_of_the_template(folder, options) -> None:
    hf, lm = make_pair(folder, **options)
    chat = [{"role": "user", "content": "q"}]
    assert lm.apply_chat_template(chat) == hf.apply_chat_template(chat)


def test_thinking_has_no_likelihood(folder) -> None:
    options = {"enable_thinking": True, "think_end_token": "</think>"}
    for model in make_pair(folder, **options):
        with pytest.raises(ValueError, match="enable_thinking"):
            model.loglikelihood(requests_of("loglikelihood", ("a", "b")), disable_tqdm=True)
    for kind in (hf_of, SparsedLM):
        with pytest.raises(ValueError, match="think_end_token"):
            kind(folder, enable_thinking=True)


# --- generation ------------------------------------------------------------------------------------------------------


def hf_text(hf, ids, gen_kwargs):
    """What hf makes of a model that writes `ids`, one after the other, until hf stops it."""

    def write(context, max_length, stop, **_):
        criteria = stop_sequences_criteria(hf.tokenizer, stop, context.shape[1], context.shape[0])
        tokens = context
        for token in ids:
            tokens = torch.cat([tokens, torch.tensor([[token]])], dim=1)
            stopped = any(criterion(tokens, None) for criterion in criteria)
            if stopped or token == hf.tokenizer.eos_token_id:
                break
        return tokens

    hf._model_generate = write
    (text,) = hf.generate_until(requests_of("generate_until", ("the sun", gen_kwargs)), disable_tqdm=True)
    return text


STOPS = ["\n\n", "\n", "<|end|>", "<eos>", "<|end|>\n", "sun", "un is", " ", "is yellow. the", "7?\nAnswer", "你", "ab"]


@given(
    written=st.lists(st.sampled_from(PIECES), max_size=6).map("".join),
    until=st.lists(st.sampled_from(STOPS), max_size=3),
)
def test_texts_end_alike(pair, written, until) -> None:
    hf, lm = pair
    ids = hf.tokenizer.encode(written, add_special_tokens=False)
    expected = hf_text(hf, ids, {"until": list(until), "max_gen_toks": 32})
    assert lm._answers.text(np.array(ids, np.int64), until) == expected


@pytest.mark.parametrize("until", ["\n", ["\n"], [], None, ...], ids=str)
def test_forms_of_until(folder, until) -> None:
    hf, lm = make_pair(folder)
    ids = hf.tokenizer.encode("the sun\nis yellow<eos> a", add_special_tokens=False)
    gen_kwargs = {"max_gen_toks": 32} | ({} if until is ... else {"until": until})
    expected = "the sun" if until not in ([], None, ...) else "the sun\nis yellow"
    if until is not None:  # there hf itself fails
        assert hf_text(hf, ids, dict(gen_kwargs)) == expected
    job = lm._job(0, "the sun", gen_kwargs)
    assert lm._answers.text(np.array(ids, np.int64), job.until) == expected


@pytest.mark.parametrize("think_end", ["</think>", "<|end|>", 4, "4"], ids=repr)
@pytest.mark.parametrize("written", ["a b</think> c", "a\n\nb</think>\n\nc", "a<|end|> b<|end|> c", "no end", ""])
def test_the_answer_begins_after_the_thinking(folder, think_end, written) -> None:
    hf, lm = make_pair(folder, think_end_token=think_end)
    if think_end == "<|end|>":  # hf finds a special token by its id only: its decoded text does not have it
        hf.think_end_token = 4
    ids = hf.tokenizer.encode(written, add_special_tokens=False)
    assert lm._answers.text(np.array(ids, np.int64), []) == hf_text(hf, ids, {"until": [], "max_gen_toks": 32})


def test_stop_strings_do_not_end_the_thinking(folder) -> None:
    lm = SparsedLM(folder, think_end_token="</think>")
    ids = np.array(lm.tok_encode("a\n\nb<|end|></think>c d\n\ne"))
    assert lm._answers.text(ids, ["\n\n", "<|end|>"]) == "c d"


@pytest.mark.parametrize("size", [3, LENGTH - 8, LENGTH, 2 * LENGTH])
def test_contexts_are_truncated_alike(pair, size, monkeypatch) -> None:
    hf, lm = pair
    context = "<|end|> " * size
    handed = []
    hf._model_generate = lambda context, **_: handed.append(context[0].tolist()) or context
    gen_kwargs = {"until": [], "max_gen_toks": 8}
    hf.generate_until(requests_of("generate_until", (context, gen_kwargs)), disable_tqdm=True)
    assert lm._job(0, context, gen_kwargs).ids == handed[0]
    with pytest.raises(AssertionError):
        hf.generate_until(requests_of("generate_until", (context, {"max_gen_toks": LENGTH})), disable_tqdm=True)
    with pytest.raises(ValueError, match="tokens follow the context"):
        lm._job(0, context, {"max_gen_toks": LENGTH})


@pytest.mark.parametrize(
    "gen_kwargs",
    [
        {},
        {"max_gen_toks": 7},
        {"max_new_tokens": 9},
        {"max_tokens": 5, "max_gen_toks": 6},
        {"max_length": 20, "max_gen_toks": 7},
    ],
    ids=str,
)
def test_numbers_of_new_tokens(folder, gen_kwargs) -> None:
    hf, lm = make_pair(folder, max_length=512)
    lengths = []
    hf._model_generate = lambda context, max_length, **_: lengths.append(max_length - context.shape[1]) or context
    hf.generate_until(requests_of("generate_until", ("the sun", gen_kwargs)), disable_tqdm=True)
    assert lm._job(0, "the sun", gen_kwargs).gen_length == lengths[0]


@pytest.mark.parametrize("do_sample", [True, False, ...])
@pytest.mark.parametrize("temperature", [0.0, 0.5, ...])
def test_the_same_tasks_sample(folder, do_sample, temperature) -> None:
    hf, lm = make_pair(folder)
    given = {"do_sample": do_sample, "temperature": temperature, "max_gen_toks": 4}
    gen_kwargs = {name: value for name, value in given.items() if value is not ...}
    handed = []
    hf.model.generate = lambda input_ids, **options: handed.append(options) or input_ids
    hf.generate_until(requests_of("generate_until", ("a", dict(gen_kwargs))), disable_tqdm=True)
    (options,) = handed
    sampled = bool(options["do_sample"]) and options.get("temperature") != 0.0
    if gen_kwargs.get("do_sample") is True and "temperature" not in gen_kwargs:
        sampled, options["temperature"] = True, 1.0  # hf gives 0 to transformers, which refuses it
    job = lm._job(0, "a", gen_kwargs)
    assert (dict(job.sampling).get("temperature", 0.0) > 0) == sampled
    if sampled:
        assert dict(job.sampling) == {"temperature": options["temperature"]}


def test_names_that_nobody_knows_are_refused(folder, caplog) -> None:
    hf, lm = make_pair(folder)
    caplog.clear()
    gen_kwargs = {"max_gen_toks": 4, "block_length": 4}
    with pytest.raises(ValueError, match="not used by the model"):
        hf.generate_until(requests_of("generate_until", ("a", gen_kwargs)), disable_tqdm=True)
    with pytest.raises(ValueError, match="generate_until: block_length given, expected only gen_kwargs .*model_args"):
        lm._job(0, "a", gen_kwargs)
    lm._job(0, "a", {"max_gen_toks": 4, "num_beams": 1, "do_sample": True, "temperature": 0.5, "top_k": 0, "top_p": 1})
    assert not caplog.text
    lm._job(0, "a", {"max_gen_toks": 4, "num_beams": 10})
    assert "a task's num_beams=10 has no effect" in caplog.text
