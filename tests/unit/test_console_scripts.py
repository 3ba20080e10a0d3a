"""Scripts of the console's pages, on stand-ins for what browsers give them."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from urllib.parse import quote

import pytest

from edgellm.console.pages import STATIC

NODE = shutil.which("node")
ORIGIN = "http://127.0.0.1:8643"

# Logs in on a page with the query in its first argument; prints where the browser is sent.
_LOG_IN = """
const handlers = {};
const form = {
  addEventListener: (name, handler) => { handlers[name] = handler; },
  elements: { token: { value: "t", select() {} } },
};
globalThis.document = { getElementById: (id) => (id === "login" ? form : {}) };
globalThis.location = {
  search: process.argv[2],
  origin: process.argv[3],
  replace: (target) => console.log(JSON.stringify(new URL(target, process.argv[3]).href)),
};
globalThis.fetch = async () => ({ ok: true });
require(process.argv[4]);
handlers.submit({ preventDefault() {} });
"""


@pytest.mark.skipif(NODE is None, reason="there is no node to run scripts with")
@pytest.mark.parametrize(
    ("wanted", "leads_to"),
    [
        ("/console/machine", f"{ORIGIN}/console/machine"),
        ("/.//evil.example", f"{ORIGIN}//evil.example"),
        ("//evil.example", f"{ORIGIN}/"),
        ("/\\evil.example", f"{ORIGIN}/"),
        ("https://evil.example/", f"{ORIGIN}/"),
    ],
)
def test_logging_in_leads_to_no_other_site(wanted: str, leads_to: str, tmp_path: Path) -> None:
    script = tmp_path / "log_in.cjs"
    script.write_text(_LOG_IN)
    query = f"?next={quote(wanted, safe='')}"
    ran = subprocess.run(
        [str(NODE), script, query, ORIGIN, STATIC / "login.js"],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert json.loads(ran.stdout) == leads_to
