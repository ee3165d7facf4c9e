"""Chat templates: what transformers' renderer offers, which of a folder's templates is meant, and the text of both."""

from __future__ import annotations

import json

import numpy as np
import pytest

import sparsed

TALK = [
    {"role": "system", "content": "Be brief.\n"},
    {"role": "user", "content": " Hi <é> 🤖? "},
    {"role": "assistant", "content": "Yes. ", "thinking": "hm", "tool_calls": None},
    {"role": "user", "content": "So"},
]
CALLS = [
    {"role": "user", "content": [{"type": "text", "text": "Add"}, {"type": "text", "text": "1 and 2 "}]},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"function": {"name": "add", "arguments": {"a": 1.5, "b": 2}}}],
    },
    {"role": "tool", "content": "3", "name": "add"},
]
TOOLS = [
    {"type": "function", "function": {"name": "add", "description": 'Add "<a>" & b', "parameters": {"type": "object"}}}
]
DOCUMENTS = [{"title": "One", "text": "é"}, {"title": "Two", "text": ""}]

TEMPLATES = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m['content'] | trim }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}",
    "{% for m in messages %}{% if m.role == 'assistant' %}{%- generation -%} {{ m.content }} {%- endgeneration %}\n"
    "{% else %}{{ m.content }}{% endif %}{% endfor %}",
    "{% for m in messages %}{% generation %}{% for c in m.content %}{{ c }}{{ loop.last }}{% endfor %}"
    "{% endgeneration %}{% endfor %}",
    "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.content }}{% break %}{% endfor %}",
    "{% for m in messages %}\n  {% if loop.index is odd %}\n    a\n  {% else %}\nb\n  {% endif %}\n{% endfor %}\n",
    "{{ messages | tojson }}{{ tools | tojson(indent=2) }}{{ documents | tojson(ensure_ascii=True, sort_keys=True) }}",
    "{{ messages | tojson(True) }}{{ tools | tojson(False, 1) }}"
    "{{ [1, {'b': 2, 'a': 1}] | tojson(false, none, (',', ':'), true) }}",
    "{% if tools %}{{ tools[0].function.name }}{% else %}none{% endif %}{{ tools is none }}{{ documents is defined }}",
    "{% set ns = namespace(n=0, text='') %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
    "{% set ns.text = ns.text ~ m.role[0] %}{% endfor %}{{ ns.n }}{{ ns.text }}",
    "{% set d = dict(a=1, b=[2]) %}{{ d.a }}{{ dict.fromkeys('xy', 0) }}{{ dict([['k', 'v']]) | tojson }}",
    "{% for m in messages %}{{ m.reasoning_content }}|{{ m.thinking }}|{{ m.reasoning }}|{{ 'tool_calls' in m }}"
    "{% endfor %}",
    "{{ undefined_name }}{{ messages[0].nothing }}{{ messages[99] }}{% if enable_thinking is defined %}t{% endif %}",
    "{% macro turn(m) %}[{{ m.role }}]{{ caller() if caller else '' }}{% endmacro %}{% for m in messages %}"
    "{{ turn(m) }}{% call turn(m) %}{{ m.role | upper }}{% endcall %}{% endfor %}",
    "{% for m in messages if m.role != 'user' %}{{ loop.index0 }}/{{ loop.length }}/{{ loop.revindex }}"
    "{{ loop.previtem is defined }}{{ loop.nextitem is defined }}{{ loop.cycle('a', 'b') }}{% else %}none{% endfor %}",
    "{{ strftime_now('%Y') | length }}{{ messages | length }}{{ messages[::-1] | map(attribute='role') | join(',') }}",
    "{%- for m in messages -%}\n{{- m.role -}}\n{%- endfor -%}\n\n",
    "{% set m = messages | selectattr('role', 'equalto', 'user') | list %}{{ m | length }}{{ m[-1].content }}",
    "{{ messages[-1].content.strip().split('o') }}{{ messages[0].role.startswith('s') }}{{ 'x' in messages[0] }}",
    "{{ image_token }}|{{ mask_token }}|{{ unk_token }}|{{ pad_token }}",
)
REFUSED = (
    "{{ raise_exception('roles must alternate') }}",
    "{{ ''.__class__.__mro__ }}",
    "{{ messages.append(1) }}",
    "{% set ns = namespace(_x=1) %}",
    "{% set ns = namespace() %}{% set ns._x = 1 %}",
    "{{ namespace.__init__ }}{{ dict.__class__.x }}",
    "{{ messages[0].nothing.more }}",
    "{{ undefined_name + 1 }}",
    "{% generation %}",
    "{% endgeneration %}",
    "{{ undefined_name | tojson }}",
    "{{ messages | no_such_filter }}",
)


def write_folder(folder, templates=None, **config):
    """A folder of three words and four special tokens."""
    model = {"type": "WordLevel", "vocab": {"x": 0, "y": 1, "?": 2}, "unk_token": "?"}
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": model}))
    names = {"bos_token": "<s>", "eos_token": "</s>", "mask_token": "<m>", "image_token": "<i>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names | config))
    (folder / "config.json").write_text("{}")
    for path, text in (templates or {}).items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(text)
    return folder


def both(folder):
    transformers = pytest.importorskip("transformers", minversion="5")
    return sparsed.load_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return both(write_folder(tmp_path_factory.mktemp("chat")))


def outcome(tokenizer, messages, **options):
    """The text, or None where the conversation is refused."""
    try:
        return tokenizer.apply_chat_template(messages, **options)
    except Exception:
        return None


# Side by side with transformers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("messages", [TALK, TALK[1:2], CALLS], ids=["talk", "one", "calls"])
@pytest.mark.parametrize("template", TEMPLATES)
def test_the_text_is_that_of_transformers(pair, template, messages) -> None:
    ours, theirs = pair
    for options in (
        {"add_generation_prompt": True},
        {"add_generation_prompt": False, "tools": TOOLS, "documents": DOCUMENTS},
        {"add_generation_prompt": True, "enable_thinking": False, "bos_token": "<other>", "tools": []},
    ):
        options |= {"chat_template": template}
        expected = outcome(theirs, messages, tokenize=False, **options)
        assert outcome(ours, messages, **options) == expected


@pytest.mark.parametrize("template", REFUSED)
def test_what_transformers_refuses_is_refused(pair, template) -> None:
    ours, theirs = pair
    with pytest.raises(ValueError, match=r"^apply_chat_template: the chat template failed: "):
        ours.apply_chat_template(TALK, chat_template=template)
    assert outcome(theirs, TALK, tokenize=False, chat_template=template) is None


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize(
    ("last", "field"),
    [
        ({"content": "Sure, "}, True),
        ({"content": "Sure"}, "content"),
        ({"content": " "}, True),
        ({"content": ""}, True),
        ({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b "}]}, True),
        ({"content": "x", "reasoning": "because "}, "reasoning"),
        ({"content": "x", "thinking": "because "}, "reasoning_content"),
        ({"content": "x"}, "reasoning_content"),
        ({"tool_calls": []}, True),
    ],
)
def test_a_last_message_stays_open_as_in_transformers(pair, template, last, field) -> None:
    ours, theirs = pair
    messages = [TALK[1], {"role": "assistant"} | last]
    options = {"chat_template": template, "add_generation_prompt": False, "continue_final_message": field}
    assert outcome(ours, messages, **options) == outcome(theirs, messages, tokenize=False, **options)


FOLDERS = (
    ({}, {"chat_template": "config"}),
    ({"chat_template.jinja": "file"}, {"chat_template": "config"}),
    ({"chat_template.jinja": ""}, {"chat_template": "config"}),
    ({}, {"chat_template": ""}),
    ({"chat_template.jinja": "file", "additional_chat_templates/rag.jinja": "from documents"}, {}),
    ({"chat_template.jinja": "file", "additional_chat_templates/default.jinja": "other"}, {}),
    ({"additional_chat_templates/rag.jinja": "from documents"}, {"chat_template": "config"}),
    ({"additional_chat_templates/tool_use.jinja": "tools"}, {}),
    ({}, {"chat_template": [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]}),
    ({}, {"chat_template": [{"name": "rag", "template": "r"}, {"name": "tool_use", "template": "t"}]}),
    ({}, {"chat_template": [{"name": "default", "template": "d"}]}),
    ({}, {"chat_template": {"default": "d", "rag": "r"}}),
    ({}, {"chat_template": []}),
    ({}, {"chat_template": None}),
    ({}, {}),
)


@pytest.mark.parametrize(("templates", "config"), FOLDERS)
def test_the_folder_s_template_is_the_one_that_transformers_takes(tmp_path, templates, config) -> None:
    ours, theirs = both(write_folder(tmp_path, templates, **config))
    for options in ({}, {"tools": TOOLS}, {"tools": []}, {"chat_template": "rag"}, {"chat_template": "{{ 1 }}"}):
        expected = outcome(theirs, TALK, tokenize=False, **options)
        if expected == "rag":  # transformers takes an unknown name for a template
            expected = None
        assert outcome(ours, TALK, **options) == expected


# On its own ---------------------------------------------------------------------------------------------------------


def test_names_without_a_default_are_listed(tmp_path) -> None:
    templates = [{"name": "tool_use", "template": "t {{ messages[0].content }}"}, {"name": "rag", "template": "r"}]
    tokenizer = sparsed.load_tokenizer(write_folder(tmp_path, chat_template=templates, cls_token="<|im_start|>"))
    assert tokenizer.chat_template == {"tool_use": "t {{ messages[0].content }}", "rag": "r"}
    with pytest.raises(ValueError, match="none of them is the default, expected .* names 'rag', 'tool_use'"):
        tokenizer.chat("Hi")
    assert tokenizer.apply_chat_template(TALK[1:], chat_template="rag") == "r"
    assert tokenizer.apply_chat_template(TALK[3:], tools=TOOLS) == "t So"
    with pytest.raises(ValueError, match="chat_template is 'toll_use', expected a template or one of the names"):
        tokenizer.apply_chat_template(TALK, chat_template="toll_use")


def test_a_processor_s_template_comes_last(tmp_path) -> None:
    folder = write_folder(tmp_path, {"chat_template.json": json.dumps({"chat_template": "p"})})
    assert sparsed.load_tokenizer(folder).apply_chat_template(TALK) == "p"
    folder = write_folder(tmp_path, chat_template="c")
    assert sparsed.load_tokenizer(folder).apply_chat_template(TALK) == "c"


@pytest.mark.parametrize(
    "tokens",
    [
        ["<|im_start|>", "<|im_end|>"],  # Qwen's, and many others'
        ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],  # Llama 3's
    ],
)
def test_no_family_lends_its_template_to_another(tmp_path, tokens) -> None:
    tokenizer = sparsed.load_tokenizer(write_folder(tmp_path, additional_special_tokens=tokens))
    assert tokenizer.chat_template is None
    with pytest.raises(ValueError, match="has no chat_template, expected one in its folder"):
        tokenizer.chat("Hi")


def test_a_published_template_without_tools_refuses_them(tmp_path) -> None:
    tokens = ["<|beginoftext|>", "<|im_start|>", "<|im_end|>", "<|mask|>"]
    tokenizer = sparsed.load_tokenizer(write_folder(tmp_path, additional_special_tokens=tokens))
    assert tokenizer.apply_chat_template(TALK[3:]).endswith("user\nSo<|im_end|>\n<|im_start|>assistant\n")
    with pytest.raises(ValueError, match="has no tools"):
        tokenizer.apply_chat_template(TALK, tools=TOOLS)


@pytest.mark.parametrize(
    "template", [3, [3], [{"name": "a"}], [{"template": "a"}], [{"name": [], "template": "a"}], {"default": 3}]
)
@pytest.mark.parametrize("file", ["tokenizer_config.json", "chat_template.json"])
def test_malformed_templates(tmp_path, template, file) -> None:
    folder = write_folder(tmp_path)
    (folder / file).write_text(json.dumps({"chat_template": template}))
    with pytest.raises(ValueError, match=rf"^load_tokenizer: chat_template is .*, expected .* \(in {file}\)"):
        sparsed.load_tokenizer(folder)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"tools": {"name": "x"}}, TypeError, "tools is a dict, expected a list"),
        ({"tools": [print]}, TypeError, r"tools\[0\] is a builtin_function_or_method, expected a JSON schema"),
        ({"documents": ["text"]}, TypeError, r"documents\[0\] is a str, expected a dict"),
        ({"today": object()}, TypeError, "today has a object, expected text"),
        ({"continue_final_message": True}, ValueError, "continue_final_message and add_generation_prompt are both set"),
    ],
)
def test_arguments_that_are_wrong(tmp_path, options, error, message) -> None:
    tokenizer = sparsed.load_tokenizer(write_folder(tmp_path, chat_template="{{ messages[0].content }}"))
    with pytest.raises(error, match=f"^apply_chat_template: {message}"):
        tokenizer.apply_chat_template(TALK, **options)


def test_messages_are_left_as_they_are_and_numbers_are_plain(tmp_path) -> None:
    template = "{{ messages[-1].content }}{{ n | tojson }}"
    tokenizer = sparsed.load_tokenizer(write_folder(tmp_path, chat_template=template))
    messages = [{"role": "user", "content": "Hi"}]
    text = tokenizer.apply_chat_template(messages, False, continue_final_message=True, n=np.int64(3))
    assert text == "Hi"
    assert messages == [{"role": "user", "content": "Hi"}]
    assert tokenizer.apply_chat_template(messages, n=[np.float32(0.5), True]) == "Hi[0.5, true]"
