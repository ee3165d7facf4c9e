"""Makes words, sentences, numbers and identifiers: nothing is downloaded and no text is quoted."""

from __future__ import annotations

import uuid

import numpy as np

_ONSETS = tuple("b d f g k l m n p r s t v z br dr gr kl pr st tr".split())
_VOWELS = tuple("aeiou")
_CODAS = ("", "l", "n", "r", "s")

_ADJECTIVES = tuple(
    """
    amber ancient awkward bitter bold brave brief bright broad calm careful clever cold curious damp dark deep distant
    dusty eager early empty faint famous fierce flat formal fresh gentle golden grand green grey happy heavy hidden
    hollow honest humble icy idle kind large late lazy light lively lonely long loud lucky mild modern narrow neat
    noisy old pale patient plain polite proud quick quiet rapid rare rough round rusty sandy scarce sharp shiny short
    shy silent simple slow small smooth soft solid spare steady steep strange strict sturdy subtle sunny sweet tall
    thick thin tidy tiny tired vague vast vivid warm weary wide wild wise young
    """.split()
)
_NOUNS = tuple(
    """
    anchor apple archer attic badge baker barrel basket beacon bell bench bird blanket boat book bottle bridge brush
    bucket butter cabin camel candle carpet castle cellar chair cherry circle clock cloud coast copper corner cotton
    cousin crane cradle doctor donkey drawer eagle engine farmer feather fence ferry field fiddle forest fountain
    garden glove goose grain guitar hammer harbor hat hedge hill horse hotel island jacket jar jewel kettle kitchen
    ladder lake lamp lantern lemon letter lighthouse lion maple market meadow medal mirror monkey mountain needle
    nephew notebook ocean oven owl paddle painter palace parcel parrot path pepper piano pillow planet pocket pond
    rabbit railway ribbon river road robin rocket roof sailor scarf school shadow shelf ship spoon stable station
    stone table teacher temple thunder ticket tiger tower train turtle uncle valley village violin wagon wall window
    """.split()
)
_VERBS = tuple(
    """
    admires avoids borrows bothers buys calls carries catches chases counts covers draws drops empties fears feeds
    finds follows forgets gathers guards helps hides holds imagines joins keeps knows leaves lifts likes loses mends
    moves notices opens orders paints passes pushes reads remembers repairs reaches saves sees sells sends shows
    surprises takes teaches trusts visits wants warns washes watches
    """.split()
)
_ENDINGS = tuple(
    """
    after lunch|all day|at dawn|at noon|before supper|behind the wall|by the river|every spring|for a long time
    |in secret|in the rain|near the border|now and then|on market day|once a year|over the hills|under the stairs
    |without a word|with great care|with little hope
    """.replace("\n", " ").split("|")
)
KEYS = len(_ADJECTIVES) * len(_NOUNS)


def made_words(rng: np.random.Generator, count: int, syllables: tuple[int, int] = (2, 3)) -> list[str]:
    """Returns `count` different words that no language has.

    Args:
        rng: Draws them.
        count: How many.
        syllables: The fewest and the most that a word has.
    """
    words: dict[str, None] = {}
    while len(words) < count:
        parts = (
            _ONSETS[rng.integers(len(_ONSETS))] + _VOWELS[rng.integers(len(_VOWELS))]
            for _ in range(rng.integers(syllables[0], syllables[1] + 1))
        )
        words["".join(parts) + _CODAS[rng.integers(len(_CODAS))]] = None
    return list(words)


def coded_word(rng: np.random.Generator, letters: int, *, upper: bool = False) -> str:
    """Returns random letters."""
    first = ord("A" if upper else "a")
    return "".join(chr(first + int(letter)) for letter in rng.integers(0, 26, letters))


def keys(rng: np.random.Generator, count: int) -> list[str]:
    """Returns `count` different keys such as "quiet-lantern"; beyond KEYS of them a number is added."""
    if count > KEYS:
        return [*keys(rng, KEYS), *(f"{key}-{i}" for i, key in enumerate(keys(rng, count - KEYS)))]
    return [
        f"{_ADJECTIVES[i // len(_NOUNS)]}-{_NOUNS[i % len(_NOUNS)]}" for i in rng.choice(KEYS, count, replace=False)
    ]


def number(rng: np.random.Generator, digits: int) -> str:
    """Returns a number with this many digits, the first one not 0."""
    return str(int(rng.integers(10 ** (digits - 1), 10**digits)))


def identifier(rng: np.random.Generator) -> str:
    """Returns a UUID of version 4."""
    return str(uuid.UUID(bytes=rng.bytes(16), version=4))


def sentence(rng: np.random.Generator) -> str:
    """Returns a plain sentence such as "The old sailor watches a quiet harbor at dawn."."""

    def thing() -> str:
        return f"{_ADJECTIVES[rng.integers(len(_ADJECTIVES))]} {_NOUNS[rng.integers(len(_NOUNS))]}"

    verb, ending = _VERBS[rng.integers(len(_VERBS))], _ENDINGS[rng.integers(len(_ENDINGS))].strip()
    return f"The {thing()} {verb} the {thing()} {ending}."
