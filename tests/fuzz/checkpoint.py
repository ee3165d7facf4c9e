"""Fuzzes the files of a checkpoint with atheris: safetensors, GGUF, config.json, the index, tokenizers, templates.

    python tests/fuzz/checkpoint.py CORPUS -max_total_time=30

An input is the number of a file and the content of the file. It replaces this file in a valid tiny folder, which is
then loaded. Loading must work, or raise an error that names the function or the file. Half of the time, JSON input is
mutated as a tree with hostile values, and the header of a safetensors file then gets its correct length and data.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["sparsed"]):
    import sparsed
    from sparsed.models.safetensors import SafetensorsFile

sys.path.insert(0, str(Path(__file__).parents[1] / "python"))
from tiny_checkpoint import random_tensors, safetensors_bytes, tiny_config, write_checkpoint
from tiny_gguf import tokenizer_metadata, write_gguf

TALK = [{"role": "user", "content": "Hi"}]
HOSTILE: list[Any] = [None, True, False, 0, -1, 1, 2**31, 2**63, 10**400, 0.5, 1e308, float("nan"), float("inf")]
HOSTILE += [
    "",
    "..",
    "/etc/passwd",
    "\0",
    "é",
    "\ud800",
    "x" * 1000,
    [],
    [[]],
    {},
    {"a": 1},
    [None],
    [-1],
    [2**62] * 20,
]
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def load_model(folder: Path) -> None:
    sparsed.load_model(folder)


def load_header(folder: Path) -> None:
    file = SafetensorsFile(folder / WEIGHTS)
    for name in file.tensors:
        file.array(name)


def load_tokenizer(folder: Path) -> None:
    tokenizer = sparsed.load_tokenizer(folder)
    tokenizer.decode(tokenizer.encode("Hello  2"))
    tokenizer.chat(TALK)


# What an input begins with -> the folder that it goes into, its file, what reads it.
TARGETS: tuple[tuple[str, str, Callable[[Path], None]], ...] = (
    ("model", WEIGHTS, load_header),
    ("model", "config.json", load_model),
    ("model", "generation_config.json", load_model),
    ("shards", INDEX, load_model),
    ("tokenizer", "tokenizer.json", load_tokenizer),
    ("tokenizer", "tokenizer_config.json", load_tokenizer),
    ("tokenizer", "special_tokens_map.json", load_tokenizer),
    ("tokenizer", "chat_template.jinja", load_tokenizer),
    ("words", "vocab.json", load_tokenizer),
    ("words", "merges.txt", load_tokenizer),
    ("words", "added_tokens.json", load_tokenizer),
    ("words", "tokenizer_config.json", load_tokenizer),
    ("gguf", "model.gguf", load_model),
    ("gguf", "model.gguf", load_tokenizer),
)


def write_folders(root: Path) -> None:
    """Good folders."""
    values = tiny_config("llada_8b", n_layers=1)
    write_checkpoint(root / "model", values, random_tensors(values))
    write_checkpoint(root / "shards", values, random_tensors(values), shards=2)
    (root / "model" / "generation_config.json").write_text('{"eos_token_id": [90, 91]}')
    template = "{% for m in messages %}{{ '<s>' + m['content'] | trim }}{% endfor %}"
    special = {"bos_token": "<s>", "eos_token": {"content": "</s>"}}
    added = [
        {"id": i, "content": token, "special": True} | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
        for i, token in enumerate(("<s>", "</s>"))
    ]
    vocab = {"<s>": 0, "</s>": 1} | {letter: i for i, letter in enumerate("helo HĠ2", start=2)} | {"he": 10}
    model = {"type": "BPE", "vocab": vocab, "merges": [["h", "e"]], "unk_token": "<s>"}
    backend = {
        "version": "1.0",
        "added_tokens": [entry | {"normalized": False} for entry in added],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "truncation": None,
        "padding": None,
        "model": model,
    }
    decoder = {str(entry["id"]): {key: value for key, value in entry.items() if key != "id"} for entry in added}
    for name in ("tokenizer", "words"):
        (root / name).mkdir()
        config = special | {"added_tokens_decoder": decoder, "chat_template": template}
        (root / name / "tokenizer_config.json").write_text(json.dumps(config))
        (root / name / "special_tokens_map.json").write_text(json.dumps(special))
    (root / "tokenizer" / "tokenizer.json").write_text(json.dumps(backend))
    (root / "tokenizer" / "chat_template.jinja").write_text(template)
    (root / "words" / "vocab.json").write_text(json.dumps(vocab))
    (root / "words" / "merges.txt").write_text("#version: 0.2\nh e\n")
    (root / "words" / "added_tokens.json").write_text('{"<more>": 11}')
    small = values | {"d_model": 16, "n_heads": 1, "n_kv_heads": 1, "mlp_hidden_size": 16}
    rows = values["embedding_size"]
    metadata = tokenizer_metadata(root / "tokenizer", "bailingmoe", num_tokens=rows)
    write_gguf(root / "gguf" / "model.gguf", small, random_tensors(small), metadata=metadata)


def seeds(root: Path) -> list[bytes]:
    """The good files; of the weights a small one."""
    small = safetensors_bytes({"a": random_tensors(tiny_config("llada_8b"))["model.transformer.ln_f.weight"][:4]})
    return [
        bytes([number]) + (small if name == WEIGHTS else (root / folder / name).read_bytes())
        for number, (folder, name, _) in enumerate(TARGETS)
    ]


def change_tree(values: Any, random_: random.Random) -> Any:
    """`values` with one node replaced, doubled or taken away."""
    nodes: list[tuple[Any, Any]] = []
    level = [values]
    while level:
        node = level.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else []
        nodes += [(node, key) for key in keys]
        level += [node[key] for key in keys]
    if not nodes:
        return random_.choice(HOSTILE)
    node, key = random_.choice(nodes)
    kind = random_.randrange(6)
    if kind == 0:
        del node[key]
    elif kind == 1:
        other, other_key = random_.choice(nodes)
        node[key] = json.loads(json.dumps(other.get(other_key) if isinstance(other, dict) else HOSTILE[0]))
    elif kind == 2 and isinstance(node, dict):
        node[random_.choice(["", "é", "\ud800", "x" * 300, "0", "unknown"])] = node[key]
    elif kind == 3 and isinstance(node[key], int):
        node[key] += random_.choice([-1, 1, 8, -8, 2**32])
    else:
        node[key] = random_.choice(HOSTILE)
    return values


def mutate(data: bytes, max_size: int, seed: int) -> bytes:
    """Another input: of bytes, or of the JSON in it."""
    random_ = random.Random(seed)
    if len(data) < 2 or random_.random() < 0.4:
        return bytes(atheris.Mutate(data, max_size))
    header = TARGETS[data[0] % len(TARGETS)][1] == WEIGHTS
    length = int.from_bytes(data[1:9], "little") if header else len(data) - 1
    begin = 9 if header else 1
    try:
        tree = change_tree(json.loads(data[begin : begin + length]), random_)
        text = json.dumps(tree).encode()
    except (ValueError, RecursionError):
        return bytes(atheris.Mutate(data, max_size))
    changed = len(text).to_bytes(8, "little") + text + data[begin + length :] if header else text
    return (data[:1] + changed)[:max_size]


def main() -> None:
    root = Path(tempfile.mkdtemp(prefix="sparsed-fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    write_folders(root)
    if len(sys.argv) > 1 and not sys.argv[1].startswith("-"):
        corpus = Path(sys.argv[1])
        corpus.mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(seeds(root)):
            (corpus / f"seed-{number}").write_bytes(seed)

    def run(data: bytes) -> None:
        if not data:
            return
        folder, name, load = TARGETS[data[0] % len(TARGETS)]
        path = root / folder / name
        good = path.read_bytes()
        path.write_bytes(data[1:])
        try:
            load(root / folder)
        except (ValueError, TypeError, OSError, MemoryError) as error:
            named = str(error).startswith(("load_model: ", "load_tokenizer: ", "apply_chat_template: "))
            if not named and str(root) not in str(error):
                raise
        finally:
            path.write_bytes(good)

    atheris.Setup(sys.argv, run, custom_mutator=mutate)
    try:
        atheris.Fuzz()
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
