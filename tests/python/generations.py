"""Generations for the tests of what shows them."""

from __future__ import annotations

from functools import cache

import numpy as np
import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers

import sparsed
from sparsed.apps.demo import demo_model_folder
from sparsed.generation.result import RowGroup
from sparsed.generation.stats import GroupStep

# What must not become a tag, words of other scripts, a line break, a character of three tokens.
HOSTILE = [
    "</script><img src=x onerror=fail()>",
    "<!--",
    "&amp;",
    '"quoted"',
    "日本語",
    "\n",
    "\x1b[2J",
    "naïve",
    "open",
]


@cache
def demo_generation() -> tuple[sparsed.GenerationResult, sparsed.Tokenizer]:
    """A sparse generation of the demo model after about 400 tokens, 24 tokens in 16 steps."""
    folder = demo_model_folder()
    tokenizer = sparsed.load_tokenizer(folder)
    hay = ["the grass is green .", "the sky is blue .", "rivers run to the sea ."] * 22
    hay.insert(10, "the magic number for zileba is 107 .")
    hay.insert(40, "the magic number for klostir is 502 .")
    prompt = tokenizer.chat(" ".join(hay) + " question : what are the magic numbers for zileba and klostir ?")
    sparse = sparsed.SparseConfig(block_size=16, min_length=0)
    result = sparsed.generate(sparsed.load_model(folder), prompt, gen_length=24, steps=16, sparse=sparse)
    return result, tokenizer


def hostile_generation() -> tuple[sparsed.GenerationResult, sparsed.Tokenizer]:
    """Every word of HOSTILE and three tokens of one character, one a step; one letter more is still open. Dense."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    encoder = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words = [encoder.pre_tokenize_str(word)[0][0] for word in HOSTILE]
    vocab = {text: i for i, text in enumerate(dict.fromkeys([*letters, *words, "<end>"]))}
    backend = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="<end>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"\s"), behavior="removed")
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<end>"])
    tokenizer = sparsed.Tokenizer(backend, {"eos_token": "<end>"})

    euro = [vocab[token] for token in encoder.pre_tokenize_str("€")[0][0]]
    ids = [vocab["<end>"], *(vocab[word] for word in words), *euro, vocab["o"]]
    stats = sparsed.GenerationStats()
    for step in range(len(ids) - 1):
        stats.add(
            step,
            [
                GroupStep(
                    "dense",
                    0.01 * (step + 1),
                    1.0,
                    1,
                    1,
                    0,
                    [np.array([step + 2])],
                    [np.ones(1, np.float32)],
                    [np.array([], np.int64)],
                )
            ],
        )
    filled_at = np.arange(len(ids), dtype=np.int32)[None]
    filled_at[0, -1] = -1
    confidence = np.linspace(-2, 0, len(ids), dtype=np.float32)[None]
    confidence[0, -1] = np.nan
    prompt = [vocab[words[0]], vocab[words[1]]]
    result = sparsed.GenerationResult(
        tokens=np.array([[*prompt, *ids]]),
        history=None,
        stats=stats,
        groups=(RowGroup(np.array([0]), 1, None),),
        prompt_length=2,
        filled_at=filled_at,
        confidence=confidence,
        interrupted=True,
    )
    return result, tokenizer
