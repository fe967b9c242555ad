"""The JavaScript that draws the charts: Vega, Vega-Lite and vega-embed as one script, as it stands inside a page."""

import hashlib
from contextlib import suppress
from functools import cache

from dass.files import complete_file
from tasks.workspace.cache_folder import cache_folder

_VEGA_LITE = "6.4"
"""The version that altair writes for."""
_SHA256 = "3425bd951a44d478d0505c6b5d1e8d57656b6e9a4da7bfe88a718ce61d76e572"
"""Of the script that the locked vl-convert puts together."""


@cache
def library() -> str:
    """The script. Putting it together takes seconds, so the one whose digest is known is kept for this user."""
    kept = cache_folder() / "sha256" / _SHA256
    content = kept.read_bytes() if kept.is_file() else b""
    if hashlib.sha256(content).hexdigest() != _SHA256:
        from vl_convert import javascript_bundle

        bundle = javascript_bundle(vl_version=_VEGA_LITE)  # type: ignore[call-arg]  # its stub lacks the default
        content = bundle.encode()
        if hashlib.sha256(content).hexdigest() == _SHA256:
            with suppress(OSError), complete_file(kept) as temporary:  # not to be kept: made again the next time
                temporary.write_bytes(content)
    script = content.decode()
    assert "</script" not in script
    assert "<!--" not in script
    return script.strip()
