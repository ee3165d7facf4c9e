"""Random hostile calls, a few of them; tests/fuzz/hostile_calls.py makes as many as you like."""

from __future__ import annotations

import importlib.util

import pytest

from paths import ROOT

SCRIPT = ROOT / "tests" / "fuzz" / "hostile_calls.py"


@pytest.mark.filterwarnings("ignore")
def test_hostile_calls_return_or_raise_named_errors() -> None:
    spec = importlib.util.spec_from_file_location("hostile_calls", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = module.run(calls=1000, seed=0)
    assert sum(found["outcomes"].values()) == 1000
    assert found["outcomes"]["returned"] > 100
