"""Our numbers are those of transformers, where it is not installed too."""
import pytest
import torch

from golden import GOLDEN, OURS, picked


@pytest.mark.parametrize("name", GOLDEN)
def test_a_model_of_sine_waves_gives_the_numbers_transformers_gave(name):
    with torch.no_grad():
        found = picked(OURS[name]())
    torch.testing.assert_close(found, torch.tensor(GOLDEN[name]), rtol=0, atol=1e-4)
