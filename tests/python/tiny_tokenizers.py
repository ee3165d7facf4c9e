"""Checkpoint folders with small tokenizers of several kinds, for comparisons with transformers."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from tiny_checkpoint import tiny_config, write_checkpoint

CORPUS = [
    "def f(x):\n    return x\n",
    "Question: what is 12 + 7?\nAnswer: 19\n\n",
    "the sun is yellow. ",
    "naïve 你好 </think>",
]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% if enable_thinking %}<think>{% endif %}{% endif %}"
)
KINDS = ("bytes", "bytes_bos", "words", "joined")
LENGTH = 64  # of the models


def write_folder(folder: Path, kind: str = "bytes", family: str = "llada_8b", template: str = TEMPLATE) -> Path:
    """A tiny random checkpoint of `family` with a tokenizer.

    Kinds: "bytes": byte-level BPE; "bytes_bos": with a bos token before every text; "words": words between spaces;
    "joined": BPE of letters that merges "ab" and "cd".
    """
    folder.mkdir(exist_ok=True)
    special = [AddedToken(token, special=True, normalized=False) for token in ("<pad>", "<bos>", "<eos>", "<mask>")]
    special += [AddedToken("<|end|>", special=True, normalized=False)]
    if kind == "words":
        words = sorted({word for text in CORPUS for word in text.split()})
        vocab = {token.content: i for i, token in enumerate(special)} | {word: i for i, word in enumerate(words, 5)}
        backend = Tokenizer(models.WordLevel(vocab, unk_token="<pad>"))
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    elif kind == "joined":
        vocab = {token.content: i for i, token in enumerate(special)}
        vocab |= {token: i for i, token in enumerate(["a", "b", "c", "d", "ab", "cd", " "], len(special))}
        backend = Tokenizer(models.BPE(vocab, [("a", "b"), ("c", "d")]))
    else:
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=360, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
        backend.train_from_iterator(CORPUS * 4, trainer)
        if kind == "bytes_bos":
            backend.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    backend.add_special_tokens(special)
    tokens = {"mask_token_id": 3, "eos_token_id": 2, "pad_token_id": 0}
    size = backend.get_vocab_size()
    if family == "llada_8b":
        shape = {"vocab_size": size, "embedding_size": size, "max_sequence_length": LENGTH}
    else:
        shape = {"vocab_size": size, "max_position_embeddings": LENGTH, "bos_token_id": 1}
    write_checkpoint(folder, tiny_config(family, **shape, **tokens))
    backend.save(str(folder / "tokenizer.json"))
    names = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "mask_token": "<mask>"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template, **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder
