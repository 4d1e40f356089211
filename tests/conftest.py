"""What many tests begin with: a tiny model in a folder, and a picture."""
import pytest

import tiny


@pytest.fixture
def folder(tmp_path):
    return tiny.model_folder(tmp_path / "model")


@pytest.fixture
def picture(tmp_path):
    return tiny.picture(tmp_path / "a picture.png", 61, 47)
