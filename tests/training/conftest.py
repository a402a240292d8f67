import pytest

from amos_fairseq.methods import METHODS


@pytest.fixture(params=METHODS)
def name(request):
    return request.param
