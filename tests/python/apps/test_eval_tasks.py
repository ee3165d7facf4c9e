"""Tasks: what a sample holds, lengths, seeds, RULER's files, scores."""

from __future__ import annotations

import json

import numpy as np
import pytest

import sparsed
from sparsed.apps.demo import demo_model_folder
from sparsed.apps.eval import (
    RulerStyle,
    Sample,
    SmallStyle,
    TaskSet,
    read_samples,
    score,
    words,
    write_samples,
)
from sparsed.apps.eval.styles import RULER_BUDGETS
from sparsed.apps.eval.tasks import NIAH, Niah, frequent_words, kind_of, niah, variable_tracking

SQUAD = {
    "data": [
        {
            "paragraphs": [
                {
                    "context": f"Town {i} has {i} bells.",
                    "qas": [
                        {
                            "question": f"How many bells has town {i}?",
                            "answers": [{"text": str(i)}, {"text": f"{i} bells"}],
                        }
                    ],
                }
                for i in range(40)
            ]
            + [{"context": "Nobody knows.", "qas": [{"question": "Why?", "answers": [], "is_impossible": True}]}]
        }
    ]
}
HOTPOT = [
    {
        "question": f"Who owns {i}?",
        "answer": f"Owner {i}",
        "context": [[f"House {i}", [f"Owner {i} ", "lives here."]], [f"Street {i}", ["Long."]]],
    }
    for i in range(30)
]


@pytest.fixture(scope="module")
def tokenizer():
    return sparsed.load_tokenizer(demo_model_folder())


@pytest.fixture
def files(tmp_path):
    (tmp_path / "squad.json").write_text(json.dumps(SQUAD))
    (tmp_path / "hotpot.json").write_text(json.dumps(HOTPOT))
    return {"qa_1": tmp_path / "squad.json", "qa_2": tmp_path / "hotpot.json"}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# --- samples ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("length", [700, 4096])
@pytest.mark.parametrize("task", RulerStyle.tasks)
def test_ruler_tasks_fill_their_length_and_repeat(tokenizer, files, task, length) -> None:
    style = RulerStyle()
    tasks = TaskSet(tokenizer, style, length, seed=3, files=files)
    samples = [tasks.sample(task, index) for index in range(3)]
    again = TaskSet(tokenizer, style, length, seed=3, files=files)
    assert [again.sample(task, index) for index in (2, 1, 0)] == samples[::-1]
    assert TaskSet(tokenizer, style, length, seed=4, files=files).sample(task, 1).input != samples[1].input
    for index, sample in enumerate(samples):
        tokens = len(sample.prompt_ids(tokenizer)) + sample.gen_length
        assert tokens <= length and (tokens > 0.85 * length or kind_of(task) in ("cwe", "qa"))
        assert sample.index == index and sample.gen_length == RULER_BUDGETS[kind_of(task)]
        if task != "qa_1":
            assert all(output in sample.input for output in sample.outputs)
        assert score(task, sample.answer, sample.outputs) == 1


@pytest.mark.parametrize(("task", "spec"), NIAH.items())
def test_needles(task, spec) -> None:
    text = niah(RulerStyle(), spec)(rng(), 40)
    assert len(text.outputs) == spec.queries * spec.values == len(text.evidence)
    assert len(text.units) == 40 + max(spec.keys, spec.queries) * spec.values
    needles = " ".join(text.units[i] for i in text.evidence)
    assert all(output in needles for output in text.outputs)
    assert ("uuid" in text.frame.after) == (spec.value == "uuids")


def test_variables_form_one_chain_in_order() -> None:
    text = variable_tracking(RulerStyle())(rng(), 30)
    value = text.frame.after.split("assigned the value ")[1].split(" ")[0]
    for name, unit, source in zip(
        text.outputs, (text.units[i] for i in text.evidence), [value, *text.outputs], strict=False
    ):
        assert unit.removeprefix(f"VAR {name} = ").removeprefix("VAR ") == source
    assert len(text.outputs) == 5 and list(text.evidence) == sorted(text.evidence)


def test_a_solved_chain_goes_before_in_rulers_style() -> None:
    before = variable_tracking(RulerStyle())(rng(), 3).frame.before
    solved, _, rest = before.partition("\n\nMemorize")[0], "", before.rpartition("\n\nMemorize")[2]
    names = solved.rpartition("they are: ")[2].split()
    assert len(names) == 5 and all(len(name) == 3 and f"VAR {name} = " in solved for name in names)
    assert solved.count("The grass is green.") == 10 and "VAR" not in rest
    assert before == variable_tracking(RulerStyle())(rng(), 40).frame.before
    assert variable_tracking(SmallStyle(list("abcdefgh")))(rng(), 3).frame.before == ""


def test_a_large_vocabulary_is_not_of_the_small_kind(tokenizer) -> None:
    class Large:
        """Has every word, its numbers in another order."""

        def token_id(self, token: str) -> int:
            return tokenizer.token_id(token) if not token.isdecimal() else 5000 - int(token)

    assert SmallStyle.fits(tokenizer) and not SmallStyle.fits(Large())
    with pytest.raises(ValueError, match="SmallStyle: the tokenizer has not"):
        SmallStyle.of(Large())


def test_frequent_words_are_the_three_after_the_dots() -> None:
    text = frequent_words(RulerStyle(), 40)(rng(), 2000)
    counts = {unit: list(text.units).count(unit) for unit in set(text.units)}
    assert sorted(counts, key=counts.__getitem__, reverse=True)[:4] == ["...", *text.outputs]


def test_the_ten_common_words(tokenizer) -> None:
    sample = TaskSet(tokenizer, RulerStyle(), 4096).sample("cwe", 0)
    listed = sample.input.rpartition("appear most often.\n")[2].split("\n")[0].split()[1::2]
    assert all(listed.count(name) == 30 for name in sample.outputs) and len(sample.outputs) == 10
    assert {listed.count(name) for name in set(listed) - set(sample.outputs)} == {3}


def test_answers_stand_among_other_documents(tokenizer, files) -> None:
    tasks = TaskSet(tokenizer, RulerStyle(), 1024, files=files)
    sample = tasks.sample("qa_1", 7)
    assert "How many bells has town 7?" in sample.input and "Town 7 has 7 bells." in sample.input
    assert sample.outputs == ("7", "7 bells") and sample.input.count("Document ") > 5
    assert "Owner 3 lives here." in tasks.sample("qa_2", 3).input
    assert TaskSet(tokenizer, RulerStyle(), 1024, files=files).sample("qa_1", 40 + 7).outputs == sample.outputs


def test_paper_budgets_are_powers_of_two() -> None:
    assert RulerStyle("paper").gen_lengths == {"niah": 128, "vt": 32, "cwe": 128, "fwe": 64, "qa": 32}


@pytest.mark.parametrize("task", SmallStyle.tasks)
def test_small_words_are_all_in_the_vocabulary(tokenizer, task) -> None:
    tasks = TaskSet(tokenizer, SmallStyle.of(tokenizer), 512, seed=1)
    sample = tasks.sample(task, 0)
    for word in (sample.input + sample.answer_prefix + " " + sample.answer).split():
        assert tokenizer.token_id(word) is not None, word
    assert 480 < len(sample.prompt_ids(tokenizer)) + sample.gen_length <= 512
    assert score(task, sample.answer, sample.outputs) == 1


def test_small_style_knows_its_words(tokenizer) -> None:
    style = SmallStyle(["zileba", "movil"])
    assert sorted(style.names(rng(), "words", 2)) == ["movil", "zileba"]
    assert 100 <= int(style.value(rng(), "numbers")) < 1000
    with pytest.raises(ValueError, match="3 names needed, expected at most the 2"):
        style.names(rng(), "words", 3)
    assert set("the magic numbers var =".split()) <= set(SmallStyle.sentence_words())
    assert not {"N", "V"} & set(SmallStyle.sentence_words())
    with pytest.raises(ValueError, match="task is 'cwe'"):
        style.cwe_frame()
    assert set(SmallStyle.of(tokenizer).names(rng(), "words", 50)) <= set(tokenizer._backend.get_vocab())


def test_prompt_without_a_chat_template(tokenizer) -> None:
    sample = TaskSet(tokenizer, SmallStyle.of(tokenizer), 256).sample("vt", 0)
    ids = sample.prompt_ids(tokenizer)
    assert tokenizer.decode(ids).startswith("user :") and tokenizer.decode(ids).endswith(sample.answer_prefix.strip())


@pytest.mark.parametrize(
    ("task", "length", "message"),
    [
        ("niah_single_9", 512, "task is 'niah_single_9', expected one of"),
        ("qa_1", 512, "task qa_1 needs a file"),
        ("niah_single_1", 130, "length is 130, expected at least"),
    ],
)
def test_tasks_refuse(tokenizer, task, length, message) -> None:
    with pytest.raises(ValueError, match=message):
        TaskSet(tokenizer, RulerStyle(), length).sample(task, 0)


# --- words -----------------------------------------------------------------------------------------------------------


def test_words_are_different_and_repeat() -> None:
    made = words.made_words(rng(), 3000)
    assert len(set(made)) == 3000 and made == words.made_words(rng(), 3000)
    keys = words.keys(rng(), words.KEYS + 5)
    assert len(set(keys)) == words.KEYS + 5
    assert words.sentence(rng()).endswith(".") and len(words.number(rng(), 7)) == 7
    assert words.identifier(rng(1)) == words.identifier(rng(1)) != words.identifier(rng(2))


# --- files -----------------------------------------------------------------------------------------------------------


def test_jsonl_comes_back(tokenizer, tmp_path) -> None:
    tasks = TaskSet(tokenizer, RulerStyle(), 600)
    samples = [tasks.sample("vt", index) for index in range(3)]
    write_samples(tmp_path / "a" / "vt.jsonl", samples)
    found = read_samples(tmp_path / "a" / "vt.jsonl", "vt")
    assert [(s.input, s.outputs, s.answer_prefix, s.gen_length) for s in found] == [
        (s.input, s.outputs, s.answer_prefix, s.gen_length) for s in samples
    ]


def test_jsonl_lines_end_at_newlines_alone(tmp_path) -> None:
    text = "one\u2028two\x85three\x0cfour"
    sample = Sample("niah_single_1", 0, text, "", ("a",), "", 9)
    write_samples(tmp_path / "x.jsonl", [sample, sample])
    found = read_samples(tmp_path / "x.jsonl", "niah_single_1", gen_length=5)
    assert [(s.input, s.gen_length) for s in found] == [(text, 9)] * 2  # the file's own budget goes first
    (tmp_path / "x.jsonl").write_bytes(b'{"input": "\xff"}\n')
    with pytest.raises(ValueError, match="line 1 of .*x.jsonl is not JSON"):
        read_samples(tmp_path / "x.jsonl", "vt")


def test_jsonl_of_ruler_itself(tmp_path) -> None:
    line = {"index": 4, "input": "Text. What?", "outputs": ["a", "b"], "length": 99}
    (tmp_path / "x.jsonl").write_text(json.dumps(line) + "\n\n")
    (sample,) = read_samples(tmp_path / "x.jsonl", "niah_multiquery")
    assert (sample.index, sample.outputs, sample.gen_length, sample.answer_prefix) == (4, ("a", "b"), 128, "")
    assert read_samples(tmp_path / "x.jsonl", "own", gen_length=7)[0].gen_length == 7


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1 of .* is not JSON"),
        ("[]", 'has no text "input"'),
        ('{"input": " \\n", "outputs": ["b"]}', 'has no text "input"'),
        ('{"input": "a", "outputs": []}', r'"outputs" \[\], expected a list of texts'),
        ('{"input": "a", "outputs": ["b", ""]}', "expected a list of texts, none of them blank"),
        ('{"input": "a", "outputs": ["b", " "]}', "expected a list of texts, none of them blank"),
        ('{"input": "a", "outputs": "abc"}', "\"outputs\" 'abc', expected a list of texts"),
        ('{"input": "a", "outputs": ["b", 1]}', "expected a list of texts"),
        ('{"input": "a", "outputs": [["b"]]}', "expected a list of texts"),
        ('{"input": "a", "outputs": ["b"], "answer_prefix": null}', '"answer_prefix" None, expected a text'),
        ('{"input": "a", "outputs": ["b"], "index": "1"}', """"index" '1', expected an integer"""),
        ('{"input": "a", "outputs": ["b"], "index": 1.5}', '"index" 1.5, expected an integer'),
        ('{"input": "a", "outputs": ["b"], "gen_length": 0}', '"gen_length" 0, expected an integer of at least 1'),
        ('{"input": "\\udc00", "outputs": ["b"]}', "task is 'own'"),
        ('{"input": "a", "outputs": ["b"]}', "task is 'own', expected a known one or gen_length"),
    ],
)
def test_jsonl_refuses(tmp_path, line, message) -> None:
    (tmp_path / "x.jsonl").write_text(line)
    with pytest.raises(ValueError, match=message):
        read_samples(tmp_path / "x.jsonl", "own")


@pytest.mark.parametrize(
    ("task", "content"), [("qa_1", "{}"), ("qa_1", '{"data": []}'), ("qa_2", "[{}]"), ("qa_2", "no")]
)
def test_damaged_question_files_are_refused(tokenizer, tmp_path, task, content) -> None:
    (tmp_path / "file.json").write_text(content)
    with pytest.raises(ValueError, match=r"file\.json"):
        TaskSet(tokenizer, RulerStyle(), 600, files={task: tmp_path / "file.json"}).sample(task, 0)


# --- scores ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "prediction", "outputs", "expected"),
    [
        ("niah_single_1", "It is 123.", ["123"], 1.0),
        ("niah_multiquery", "1234 and 77", ["123", "77", "9", "8"], 0.5),
        ("cwe", "1. ALPHA\x002. beta", ["alpha", "Beta"], 1.0),
        ("qa_1", "the answer is Rome", ["Paris", "rome"], 1.0),
        ("qa_2", "", ["yes"], 0.0),
    ],
)
def test_scores(task, prediction, outputs, expected) -> None:
    assert score(task, prediction, outputs) == expected


def test_custom_needles_leave_room(tokenizer) -> None:
    style = SmallStyle.of(tokenizer)
    maker = niah(style, Niah(hay="noise", keys=3, queries=2))
    sample = TaskSet(tokenizer, style, 300).custom("niah_own", 5, maker, gen_length=10)
    assert 280 < len(sample.prompt_ids(tokenizer)) + 10 <= 300 and len(sample.outputs) == 2
