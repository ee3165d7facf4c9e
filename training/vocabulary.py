"""The tokenizer of the demo model, which splits a text at spaces and has one token per word."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import models, pre_tokenizers

from sparsed.apps.eval.styles import SmallStyle
from sparsed.apps.eval.words import made_words
from sparsed.models.files import replacing

NUM_NAMES = 600
PAD, BOS, EOS, MASK = "<pad>", "<bos>", "<eos>", "<mask>"
_CHAT = (
    "{% for m in messages %}{% if m['role'] == 'user' %}<bos> user : {{ m['content'] }} "
    "{% else %}assistant : {{ m['content'] }} <eos> {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}assistant :{% endif %}"
)


class Vocabulary:
    """The words and their ids.

    The order is: special tokens, digits, names, "one" and the other words of the sentences, the numbers 100 ... 999.
    `SmallStyle.of` relies on it, because it finds the names between "9" and "one".
    """

    def __init__(self, num_names: int = NUM_NAMES) -> None:
        sentence_words = ["one", *SmallStyle.sentence_words()]
        digits = [str(digit) for digit in range(10)]
        made = made_words(np.random.default_rng(0), num_names + len(sentence_words))
        self.names = [word for word in made if word not in sentence_words][:num_names]
        self.numbers = [str(number) for number in range(100, 1000)]
        self.words = [PAD, BOS, EOS, MASK, *digits, *self.names, *sentence_words, *self.numbers]
        self._ids = {word: i for i, word in enumerate(self.words)}

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, word: str) -> int:
        return self._ids[word]

    def ids(self, text: str) -> list[int]:
        """Returns the ids of the words of a text."""
        return [self._ids[word] for word in text.split()]

    def style(self) -> SmallStyle:
        """Returns the style that words the tasks with this vocabulary."""
        return SmallStyle(self.names)

    def save(self, folder: Path, max_length: int) -> None:
        """Writes tokenizer.json, tokenizer_config.json and special_tokens_map.json."""
        special = [PAD, BOS, EOS, MASK]
        backend = tokenizers.Tokenizer(models.WordLevel(self._ids, unk_token=PAD))
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        backend.add_special_tokens(special)
        with replacing(folder / "tokenizer.json") as new:
            backend.save(str(new))
        names = dict(zip(("pad_token", "bos_token", "eos_token", "mask_token"), special, strict=True))
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **names,
            "model_max_length": max_length,
            "chat_template": _CHAT,
        }
        for name, values in (("tokenizer_config.json", config), ("special_tokens_map.json", names)):
            with replacing(folder / name) as new:
                new.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
