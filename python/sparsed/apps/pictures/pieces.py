"""The text of single tokens: what each one adds to the text before it."""

from __future__ import annotations

from collections.abc import Sequence

from ...models.tokenizer import Tokenizer

_CONTEXT = 6  # tokens before, that a token's text can depend on: spaces, the bytes of one character
_INCOMPLETE = "\ufffd"


def token_texts(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """The text of each token, in order; together they are the text of all.

    A character of several tokens comes with the last of them, the others are empty.

    Args:
        tokenizer: What `load_tokenizer` returns.
        ids: (n,) token ids; special tokens show their names.
    """
    texts: list[str] = []
    start = done = 0  # the context of the next token, and the first token whose text is not out yet
    for end in range(1, len(ids) + 1):
        before = tokenizer.decode(ids[start:done], skip_special_tokens=False)
        now = tokenizer.decode(ids[start:end], skip_special_tokens=False)
        if now.endswith(_INCOMPLETE) and end < len(ids) and end - done < _CONTEXT:
            texts.append("")
            continue
        texts.append(now[len(before) :])
        start, done = max(0, end - _CONTEXT), end
    return texts


def is_special(tokenizer: Tokenizer, token: int) -> bool:
    """Whether a token is a mark and no text: an end, a mask, padding."""
    return not tokenizer.decode([token])
