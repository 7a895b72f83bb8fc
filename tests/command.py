"""Calls the command line as the installed command does, in this process."""

from __future__ import annotations

import io
import json
import os
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from respodiff.cli.main import main


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


def respodiff(*arguments: str, cwd: Path | None = None) -> Done:
    """The entry point `respodiff.cli.main` in this process: what the installed command calls."""
    out, err = io.StringIO(), io.StringIO()
    before, argv, show = Path.cwd(), sys.argv, warnings.showwarning
    try:
        sys.argv = ["respodiff", *arguments]
        os.chdir(cwd or before)
        with redirect_stdout(out), redirect_stderr(err):
            main()
        code = 0
    except SystemExit as leave:
        code = int(leave.code or 0)
    finally:
        os.chdir(before)
        sys.argv, warnings.showwarning = argv, show
    return Done(code, out.getvalue(), err.getvalue())


def last_json(done: Done) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
