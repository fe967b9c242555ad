"""Who may work on a point."""

import pytest

from dass.errors import InfrastructureError
from tasks.sweep.work import check_code, code_here


def test_a_worker_with_other_code_is_refused_and_both_are_named() -> None:
    here = code_here()
    check_code(here)
    with pytest.raises(InfrastructureError, match=rf"code {here['code']} \(the sweep has 0123\)"):
        check_code({**here, "code": "0123"})
    with pytest.raises(
        InfrastructureError, match=rf"torch {here['torch']}.* \(the sweep has 1.0\)".replace("+", r"\+")
    ):
        check_code({**here, "torch": "1.0"})
