"""A warning fails a test where fedsim's own lines warn, and only there: no other release breaks a user's tests."""

import warnings

import pytest


@pytest.mark.parametrize("module", ["fedsim", "fedsim.models.decoding"])
def test_a_warning_of_fedsims_own_lines_is_an_error(module):
    with pytest.raises(FutureWarning):
        warnings.warn_explicit("old", FutureWarning, "file.py", 1, module=module)


@pytest.mark.parametrize("module", ["transformers.models", "fedsimilar"])
def test_a_warning_of_another_package_is_none(module):
    with warnings.catch_warnings(record=True) as caught:  # keeps the filters that pyproject.toml sets
        warnings.warn_explicit("old", FutureWarning, "file.py", 1, module=module)
    assert [str(warning.message) for warning in caught] == ["old"]
