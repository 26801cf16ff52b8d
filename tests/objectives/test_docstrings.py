"""Every loss's docstring: its sections, its arguments and its example."""

from __future__ import annotations

import doctest
import inspect
import re

import mlx.core as mx
import numpy as np
import pytest

from mlx_dpo.objectives import LOSS_FUNCTIONS
from mlx_dpo.objectives.loss_inputs import example_pairs
from mlx_dpo.objectives.sampled_tokens import example_tokens

NUMBER = r"-?\d+\.?\d*(?:e[-+]\d+)?"


class NumberChecker(doctest.OutputChecker):
    """Compares numbers to four digits, as GPUs round differently."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        wanted, printed = (np.array(re.findall(NUMBER, text), float) for text in (want, got))
        return wanted.shape == printed.shape and np.allclose(wanted, printed, rtol=1e-4)


@pytest.mark.parametrize("name", LOSS_FUNCTIONS)
def test_docstring_states_everything(name: str) -> None:
    loss = LOSS_FUNCTIONS[name]
    assert loss.summary and loss.formula and loss.paper and loss.when_to_use
    documented = re.findall(r"^    (\w+): ", inspect.getdoc(loss.function) or "", re.MULTILINE)
    assert documented == list(inspect.signature(loss.function).parameters)


@pytest.mark.parametrize("name", LOSS_FUNCTIONS)
def test_example_runs(name: str) -> None:
    function = LOSS_FUNCTIONS[name].function
    scope = {name: function, "example_pairs": example_pairs, "example_tokens": example_tokens, "mx": mx}
    (example,) = doctest.DocTestFinder(recurse=False).find(function, name, globs=scope)
    assert example.examples
    assert not doctest.DocTestRunner(NumberChecker(), verbose=False).run(example).failed
