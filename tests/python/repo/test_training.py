"""The demo model's training: data, initialisation, steps that resume to the bit, export."""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import sparsed  # noqa: E402
from sparsed.apps.eval import SmallStyle, TaskSet  # noqa: E402
from tolerances import ORDER  # noqa: E402

attention: Any = importlib.import_module("training.attention")
data: Any = importlib.import_module("training.data")
model_module: Any = importlib.import_module("training.model")
train: Any = importlib.import_module("training.train")
vocabulary_module: Any = importlib.import_module("training.vocabulary")

SHAPE = model_module.Shape(width=32, layers=2, heads=2, mlp=32, max_length=4096)
PHASES = (
    train.Phase(128, 3, tokens=256, sparse=0.5, longest=1.0),
    train.Phase(2048, 3, tokens=2048, local=0.5, longest=0.7),
)
OPTIONS = train.Options(names=30, shape=SHAPE, phases=PHASES, warmup=2)


@pytest.fixture(scope="module")
def rows():
    return data.Rows(vocabulary_module.Vocabulary(60), 4096)


def words(rows, ids) -> str:
    return " ".join(rows.vocabulary.words[i] for i in ids)


# --- data ------------------------------------------------------------------------------------------------------------


def test_rows_are_questions_with_their_answers(rows) -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        row = rows.row(rng, 256, asked=True)
        text, answer = words(rows, row.ids[: row.answer]), words(rows, row.ids[row.answer :])
        assert len(row.ids) == 256 and text.startswith("<bos> user : ") and " assistant :" in text
        assert answer.endswith("<eos>") and " ; " in answer
        for begin, end in row.evidence:
            assert words(rows, row.ids[begin:end]).endswith(" .")
        for place, noted in row.hints:
            assert place < row.answer and words(rows, [noted]) in answer


def test_batches_repeat_and_mask_answers(rows) -> None:
    batch, again = (rows.batch(np.random.default_rng([3, 4]), 192, 8) for _ in range(2))
    for field in dataclasses.fields(batch):
        np.testing.assert_array_equal(getattr(batch, field.name), getattr(again, field.name))
    mask = rows.vocabulary["<mask>"]
    assert ((batch.ids == mask) <= (batch.early_ids == mask)).all()
    in_answer = batch.columns >= batch.answers[batch.rows]
    assert (batch.ids[batch.rows, batch.columns] == mask)[in_answer].all() and (batch.weights > 0).all()
    assert (np.diff(batch.positions, axis=1) >= 1).all() and batch.positions.max() < 4096
    assert batch.positions.max() > 192


# --- attention -------------------------------------------------------------------------------------------------------


def test_local_attention_is_dense_for_essential_tokens() -> None:
    q, k, v = (torch.randn(2, 3, 1024, 16, generator=torch.Generator().manual_seed(i)) for i in range(3))
    essential = torch.zeros(2, 1024, dtype=torch.bool)
    essential[0, 5:40], essential[1, 900:990] = True, True
    found, dense = attention.mostly_local(essential)(q, k, v), attention.dense(q, k, v)
    for row in range(2):
        torch.testing.assert_close(found[row][:, essential[row]], dense[row][:, essential[row]])
    one = attention.dense(q[:, :, 300:301], k[:, :, 224:544], v[:, :, 224:544])
    torch.testing.assert_close(found[:, :, 300:301], one)


def test_selected_patterns_are_those_of_the_library() -> None:
    q, k, v = (torch.randn(1, 2, 256, 16, generator=torch.Generator().manual_seed(i)) for i in range(3))
    (attend,) = attention.selected(lambda select: select(q, k, v), torch.tensor([200]), layers=1, block=32, rho=0.3)
    arrays = [x.numpy() for x in (q, k, v)]
    pattern = sparsed.select(arrays[0], arrays[1], prompt_length=200, block_size=32, rho=0.3, generation="sparse")
    np.testing.assert_allclose(attend(q, k, v).numpy(), sparsed.attention(*arrays, pattern), atol=ORDER)


# --- training --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_training_resumes_to_the_bit_and_exports(tmp_path) -> None:
    whole = train.Trainer(tmp_path / "whole", OPTIONS)
    whole.train()
    train.Trainer(tmp_path / "parts", OPTIONS).train(until=4)
    with (tmp_path / "parts" / train.LOG).open("a") as file:
        file.write('{"step": 4, "los')  # a crash
    assert train.read_log(tmp_path / "parts") == []
    resumed = train.Trainer(tmp_path / "parts", OPTIONS)
    assert resumed.step == 4
    resumed.train()
    assert train.read_log(tmp_path / "parts")[-1]["step"] == 6
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name
    assert train.read_log(tmp_path / "whole")[-1]["step"] == 6
    with pytest.raises(ValueError, match="the options are"):
        train.Trainer(tmp_path / "parts", dataclasses.replace(OPTIONS, seed=1))

    model_module.export(whole.model, whole.vocabulary, tmp_path / "checkpoint")
    model = sparsed.load_model(tmp_path / "checkpoint", "float32")
    tokenizer = sparsed.load_tokenizer(tmp_path / "checkpoint")
    style = SmallStyle.of(tokenizer)
    assert len(style.names(np.random.default_rng(0), "words", 30)) == 30
    ids = TaskSet(tokenizer, style, 160).sample("niah_single_1", 0).prompt_ids(tokenizer)
    assert tokenizer.token_id("<pad>") not in ids
    tensor = torch.tensor([ids])
    with torch.no_grad():
        for parameter in whole.model.parameters():
            parameter.copy_(parameter.bfloat16().float())
        logits = whole.model.head(whole.model(tensor, torch.arange(len(ids))[None])).numpy()
    np.testing.assert_allclose(model.forward([ids]), logits, atol=2e-3, rtol=1e-3)


def test_who_has_the_old_checkpoint_mapped_keeps_it(tmp_path) -> None:
    model = model_module.DemoModel(SHAPE, len(vocabulary_module.Vocabulary(30)))
    model_module.export(model, vocabulary_module.Vocabulary(30), tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    mapped = np.memmap(tmp_path / "model.safetensors", mode="r")
    before = mapped.copy()
    with torch.no_grad():
        model.norm.fill_(2.0)
    model_module.export(model, vocabulary_module.Vocabulary(30), tmp_path)
    np.testing.assert_array_equal(mapped, before)
    assert {path.name for path in tmp_path.iterdir()} == names
    assert sparsed.load_model(tmp_path).config.num_layers == SHAPE.layers
    assert (np.fromfile(tmp_path / "model.safetensors", np.uint8) != before).any()


def test_a_loss_curve_is_drawn(tmp_path) -> None:
    pytest.importorskip("matplotlib")
    trainer = train.Trainer(tmp_path, dataclasses.replace(OPTIONS, phases=PHASES[:1]))
    trainer.train()
    assert train.plot(tmp_path).read_bytes().startswith(b"\x89PNG")


def test_the_start_can_look_up() -> None:
    """Before any training, most keys of a question find their value in layer 1's first head."""
    options = train.Options()
    vocabulary = vocabulary_module.Vocabulary()
    model = model_module.DemoModel(options.shape, len(vocabulary))
    model_module.initialise(model, vocabulary, seed=0)
    hay = "the sky is blue . " * 10
    facts = {vocabulary.names[i]: str(200 + i) for i in range(6)}
    text = hay + "".join(f"the magic number for {name} is {value} . " for name, value in facts.items()) + hay
    asked = list(facts)[2]
    ids = vocabulary.ids(f"<bos> user : {text}question : what are the magic numbers for {asked} ?")
    weights: list[Any] = []

    def watch(q, k, v):
        weights.append((q @ k.transpose(-1, -2) / 8).softmax(-1))
        return attention.dense(q, k, v)

    with torch.no_grad():
        model(torch.tensor([ids]), torch.arange(len(ids))[None], watch)
    assert ids[int(weights[1][0, 0, len(ids) - 2].argmax())] == vocabulary[facts[asked]]


def test_rates_and_phases() -> None:
    options = train.Options()
    assert [options.phase_of(step) for step in (0, 1399, 1400)] == [0, 0, 1]
    assert options.phase_of(options.steps - 1) == len(options.phases) - 1
    assert options.rate_at(0) < options.rate_at(200) == options.rate > options.rate_at(options.steps - 1) > 0
